package apiextensions

import (
	"errors"
	"fmt"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// condition sets one condition of c; its transition time changes with its status.
func condition(c *CRD, now metav1.Time, kind v1.CustomResourceDefinitionConditionType, status v1.ConditionStatus, reason, message string) {
	have := apihelpers.FindCRDCondition(c, kind)
	if have == nil {
		c.Status.Conditions = append(c.Status.Conditions, v1.CustomResourceDefinitionCondition{Type: kind})
		have = &c.Status.Conditions[len(c.Status.Conditions)-1]
	}
	if have.Status != status || have.LastTransitionTime.IsZero() {
		have.LastTransitionTime = now
	}
	have.Status, have.Reason, have.Message = status, reason, message
}

// Decide brings the accepted names and the conditions of c up to date; others,
// asked when it matters, are the other definitions of its group. It changes only c.Status.
func Decide(c *CRD, others func() []*CRD, now metav1.Time) {
	if !SameNames(c) {
		acceptNames(c, others(), now)
	}
	if apihelpers.IsProtectedCommunityGroup(c.Spec.Group) {
		status, reason, message := approval(c)
		condition(c, now, v1.KubernetesAPIApprovalPolicyConformant, status, reason, message)
	}
	switch {
	case c.Spec.PreserveUnknownFields:
		condition(c, now, v1.NonStructuralSchema, v1.ConditionTrue, "Violations",
			field.Invalid(specPath.Child("preserveUnknownFields"), true, "must be false").Error())
	default:
		c.Status.Conditions = slices.DeleteFunc(c.Status.Conditions, func(d v1.CustomResourceDefinitionCondition) bool { return d.Type == v1.NonStructuralSchema })
	}
}

// Establish makes c served once its names are accepted; that is a step of its
// own, so that watchers see both.
func Establish(c *CRD, now metav1.Time) {
	if !apihelpers.IsCRDConditionTrue(c, v1.NamesAccepted) || apihelpers.IsCRDConditionTrue(c, v1.Established) {
		return
	}
	if hook := c.Spec.Conversion; hook != nil && hook.Webhook != nil && hook.Webhook.ClientConfig != nil && checkCABundle(hook.Webhook.ClientConfig.CABundle) != nil {
		condition(c, now, v1.Established, v1.ConditionFalse, "InvalidCABundle", "The conversion webhook CABundle is invalid")
		return
	}
	condition(c, now, v1.Established, v1.ConditionTrue, "InitialNamesAccepted", "the initial names have been accepted")
}

func approval(c *CRD) (status v1.ConditionStatus, reason, message string) {
	state, message := apihelpers.GetAPIApprovalState(c.Annotations)
	switch state {
	case apihelpers.APIApprovalInvalid:
		return v1.ConditionFalse, "InvalidAnnotation", message
	case apihelpers.APIApprovalMissing:
		return v1.ConditionFalse, "MissingAnnotation", message
	case apihelpers.APIApproved:
		return v1.ConditionTrue, "ApprovedAnnotation", message
	case apihelpers.APIApprovalBypassed:
		return v1.ConditionFalse, "UnapprovedAnnotation", message
	}
	return v1.ConditionUnknown, "UnknownAnnotation", message
}

// acceptNames takes over the names nobody else in the group has.
func acceptNames(c *CRD, others []*CRD, now metav1.Time) {
	resources, kinds := map[string]bool{}, map[string]bool{}
	for _, o := range append(slices.Clip(others), c) {
		n := &o.Status.AcceptedNames
		for _, name := range append([]string{n.Plural, n.Singular}, n.ShortNames...) {
			resources[name] = true
		}
		kinds[n.Kind], kinds[n.ListKind] = true, true
	}
	status, reason, message := v1.ConditionTrue, "NoConflicts", "no conflicts found"
	want, got := &c.Spec.Names, &c.Status.AcceptedNames
	take := func(why, asked string, have *string, used map[string]bool) {
		if err := fresh(asked, *have, used); err != nil {
			status, reason, message = v1.ConditionFalse, why, err.Error()
			return
		}
		*have = asked
	}
	take("PluralConflict", want.Plural, &got.Plural, resources)
	take("SingularConflict", want.Singular, &got.Singular, resources)
	if !slices.Equal(want.ShortNames, got.ShortNames) {
		var errs []error
		for _, name := range want.ShortNames {
			if !slices.Contains(got.ShortNames, name) {
				errs = append(errs, fresh(name, "", resources))
			}
		}
		if err := utilerrors.NewAggregate(errs); err != nil {
			status, reason, message = v1.ConditionFalse, "ShortNamesConflict", err.Error()
		} else {
			got.ShortNames = slices.Clone(want.ShortNames)
		}
	}
	take("KindConflict", want.Kind, &got.Kind, kinds)
	take("ListKindConflict", want.ListKind, &got.ListKind, kinds)
	got.Categories = slices.Clone(want.Categories)
	condition(c, now, v1.NamesAccepted, status, reason, message)
	if apihelpers.IsCRDConditionTrue(c, v1.Established) {
		return
	}
	if status == v1.ConditionTrue {
		condition(c, now, v1.Established, v1.ConditionFalse, "Installing", "the initial names have been accepted")
	} else if apihelpers.FindCRDCondition(c, v1.Established) == nil {
		condition(c, now, v1.Established, v1.ConditionFalse, "NotAccepted", "not all names are accepted")
	}
}

func fresh(asked, have string, used map[string]bool) error {
	if asked == have || !used[asked] {
		return nil
	}
	return fmt.Errorf("%q is already in use", asked)
}

// Served tells whether the instances of c can be reached at all.
func Served(c *CRD) bool {
	return apihelpers.IsCRDConditionTrue(c, v1.NamesAccepted) || apihelpers.IsCRDConditionTrue(c, v1.Established)
}

// Published tells whether discovery shows c.
func Published(c *CRD) bool { return apihelpers.IsCRDConditionTrue(c, v1.Established) }

// Terminating tells whether no new instance may be made.
func Terminating(c *CRD) bool {
	return c.DeletionTimestamp != nil || apihelpers.IsCRDConditionTrue(c, v1.Terminating)
}

// BeginDeletion marks a definition that is asked to be deleted: first its
// instances go.
func BeginDeletion(c *CRD, now metav1.Time) {
	if !apihelpers.CRDHasFinalizer(c, v1.CustomResourceCleanupFinalizer) {
		c.Generation-- // what the definition says has not changed
		c.Finalizers = append(c.Finalizers, v1.CustomResourceCleanupFinalizer)
	}
	condition(c, now, v1.Terminating, v1.ConditionTrue, "InstanceDeletionPending",
		"CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon")
}

// MustCleanUp tells whether the instances of c have to be deleted.
func MustCleanUp(c *CRD) bool {
	return c.DeletionTimestamp != nil && apihelpers.CRDHasFinalizer(c, v1.CustomResourceCleanupFinalizer)
}

// CleaningUp notes that the instances are being deleted.
func CleaningUp(c *CRD, now metav1.Time) {
	condition(c, now, v1.Terminating, v1.ConditionTrue, "InstanceDeletionInProgress", "CustomResource deletion is in progress")
}

// ErrRemaining says that instances have not gone yet.
var ErrRemaining = errors.New("timed out waiting for the condition")

// CleanedUp notes how the deletion of the instances ended; without an error
// the definition may go.
func CleanedUp(c *CRD, now metav1.Time, err error) {
	switch {
	case errors.Is(err, ErrRemaining):
		condition(c, now, v1.Terminating, v1.ConditionTrue, "InstanceDeletionCheck", fmt.Sprintf("could not confirm zero CustomResources remaining: %v", err))
		return
	case err != nil:
		condition(c, now, v1.Terminating, v1.ConditionTrue, "InstanceDeletionFailed", fmt.Sprintf("could not issue all deletes: %v", err))
		return
	case Published(c):
		condition(c, now, v1.Terminating, v1.ConditionFalse, "InstanceDeletionCompleted", "removed all instances")
	default:
		condition(c, now, v1.Terminating, v1.ConditionFalse, "NeverEstablished", "resource was never established")
	}
	apihelpers.CRDRemoveFinalizer(c, v1.CustomResourceCleanupFinalizer)
}

// SameNames tells whether c has all the names it asks for.
func SameNames(c *CRD) bool {
	return apiequality.Semantic.DeepEqual(c.Spec.Names, c.Status.AcceptedNames)
}

package core

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func namespaceResource() *api.Resource {
	return &api.Resource{
		Name: "namespaces", Singular: "namespace", Kind: "Namespace",
		ShortNames: []string{"ns"},
		Versions:   []api.Version{api.Versioned[corev1.Namespace, corev1.NamespaceList]("v1", defaultNamespace)},
		Verbs:      []string{"create", "delete", "get", "list", "patch", "update", "watch"},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(prepareNewNamespace),
			PrepareForUpdate: api.OnUpdate(func(n, old *corev1.Namespace) {
				n.Spec.Finalizers, n.Status = old.Spec.Finalizers, old.Status
			}),
			Validate: api.Check(func(n *corev1.Namespace) field.ErrorList {
				return checkFinalizers(n, specPath.Child("finalizers"))
			}),
			NameValid: apivalidation.ValidateNamespaceName,
			Selectable: api.Select(func(n *corev1.Namespace) fields.Set {
				return fields.Set{"status.phase": string(n.Status.Phase), "name": n.Name}
			}),
		},
		Subresources: []api.Subresource{
			{Name: "finalize", Verbs: []string{"update"}, View: api.NewView(
				func(n, old *corev1.Namespace) { n.Status = old.Status },
				func(n, _ *corev1.Namespace) field.ErrorList { return checkFinalizers(n, specPath.Child("finalizers")) },
			)},
			api.StatusView(func(n, old *corev1.Namespace) { n.Spec = old.Spec }, validateNamespaceStatus),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Status", "string", "The status of the namespace"),
			api.AgeColumn(),
		},
		Cells: api.Row(func(n *corev1.Namespace, now metav1.Time) []any {
			return []any{n.Name, string(n.Status.Phase), api.Age(n.CreationTimestamp, now)}
		}),
	}
}

// prepareNewNamespace makes a namespace active, with the finalizer that keeps
// it until its content is gone.
func prepareNewNamespace(n *corev1.Namespace) {
	n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	if !slices.Contains(n.Spec.Finalizers, corev1.FinalizerKubernetes) {
		n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
	defaultNamespace(n) // the name is known by now, generated ones too
}

func checkFinalizers(n *corev1.Namespace, p *field.Path) field.ErrorList {
	l := &check.List{}
	for _, f := range n.Spec.Finalizers {
		name := string(f)
		l.Add(apivalidation.ValidateFinalizerName(name, p))
		if !strings.Contains(name, "/") && name != string(corev1.FinalizerKubernetes) && name != metav1.FinalizerOrphanDependents && name != metav1.FinalizerDeleteDependents {
			l.Invalid(p, name, "name is neither a standard finalizer name nor is it fully qualified")
		}
	}
	return l.Errors
}

func validateNamespaceStatus(n, _ *corev1.Namespace) field.ErrorList {
	l := &check.List{}
	at := statusPath.Child("Phase")
	if n.DeletionTimestamp.IsZero() {
		if n.Status.Phase != corev1.NamespaceActive {
			l.Invalid(at, n.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")
		}
	} else if n.Status.Phase != corev1.NamespaceTerminating {
		l.Invalid(at, n.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
	}
	return l.Errors
}

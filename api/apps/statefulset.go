package apps

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

// statefulSetVersion shows claim templates as whole objects: their kind has no
// place in protobuf, and upstream's server stores them without a phase.
func statefulSetVersion() api.Version {
	v := api.Versioned[appsv1.StatefulSet, appsv1.StatefulSetList]("v1", defaultStatefulSet)
	v.FromStorage = func(o api.Object) (api.Object, error) {
		nameClaims(&o.(*appsv1.StatefulSet).Spec)
		return o, nil
	}
	return v
}

func nameClaims(s *appsv1.StatefulSetSpec) {
	for i := range s.VolumeClaimTemplates {
		c := &s.VolumeClaimTemplates[i]
		c.APIVersion, c.Kind = "v1", "PersistentVolumeClaim"
		api.SetIfEmpty(&c.Status.Phase, corev1.ClaimPending)
	}
}

func statefulSetResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "statefulsets", Singular: "statefulset", Kind: "StatefulSet",
		ShortNames: []string{"sts"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   []api.Version{statefulSetVersion()},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(s *appsv1.StatefulSet) {
				s.Status, s.Generation = appsv1.StatefulSetStatus{}, 1
				core.DropTemplateFields(&s.Spec.Template, nil)
			}),
			PrepareForUpdate: api.OnUpdate(func(s, old *appsv1.StatefulSet) {
				s.Status = old.Status
				was := old.Spec.DeepCopy()
				if nameClaims(was); !api.Changed(s.Spec.VolumeClaimTemplates, was.VolumeClaimTemplates) {
					s.Spec.VolumeClaimTemplates = old.Spec.VolumeClaimTemplates // they differ in what is not stored
				}
				core.DropTemplateFields(&s.Spec.Template, &old.Spec.Template)
				api.BumpGeneration(s, old, api.Changed(s.Spec, old.Spec))
			}),
			// Its pods' names, and so their hostnames, begin with it.
			NameValid:      apivalidation.NameIsDNSLabel,
			Validate:       api.Check(func(s *appsv1.StatefulSet) field.ErrorList { return validateStatefulSet(s, true) }),
			ValidateUpdate: api.CheckUpdate(validateStatefulSetUpdate),
			Warnings: api.Warn(func(s, old *appsv1.StatefulSet) []string {
				if old != nil && old.Generation == s.Generation {
					return nil
				}
				out := templateWarnings(&s.Spec.Template)
				if n := s.Spec.RevisionHistoryLimit; n != nil && *n < 0 {
					out = append(out, "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
				}
				return out
			}),
		},
		Subresources: []api.Subresource{
			scale(func(s *appsv1.StatefulSet) (**int32, *metav1.LabelSelector) { return &s.Spec.Replicas, s.Spec.Selector },
				func(s *appsv1.StatefulSet) int32 { return s.Status.Replicas }),
			api.StatusView(func(s, old *appsv1.StatefulSet) { s.Spec = old.Spec }, validateStatefulSetStatus),
		},
		Columns: append([]metav1.TableColumnDefinition{
			api.Column("Ready", "string", "Number of the pod with ready state"),
			api.AgeColumn(),
		}, core.ContainerColumns("")[:2]...),
		Cells: api.Row(func(s *appsv1.StatefulSet, now metav1.Time) []any {
			names, images := core.ContainerCells(s.Spec.Template.Spec.Containers)
			return []any{s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, core.Replicas(s.Spec.Replicas)), api.Age(s.CreationTimestamp, now), names, images}
		}),
	}
}

func defaultStatefulSet(set *appsv1.StatefulSet) {
	s := &set.Spec
	if s.PodManagementPolicy == "" {
		s.PodManagementPolicy = appsv1.OrderedReadyPodManagement
	}
	u := &s.UpdateStrategy
	if u.Type == "" {
		u.Type = appsv1.RollingUpdateStatefulSetStrategyType
		api.SetIfNil(&u.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
	}
	if u.Type == appsv1.RollingUpdateStatefulSetStrategyType && u.RollingUpdate != nil {
		api.SetIfNil(&u.RollingUpdate.Partition, 0)
		api.SetIfNil(&u.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	api.SetIfNil(&s.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	for _, p := range []*appsv1.PersistentVolumeClaimRetentionPolicyType{&s.PersistentVolumeClaimRetentionPolicy.WhenDeleted, &s.PersistentVolumeClaimRetentionPolicy.WhenScaled} {
		if *p == "" {
			*p = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
		}
	}
	api.SetIfNil(&s.Replicas, 1)
	api.SetIfNil(&s.RevisionHistoryLimit, 10)
	podspec.DefaultPodTemplate(&s.Template)
	for i := range s.VolumeClaimTemplates {
		core.DefaultPersistentVolumeClaim(&s.VolumeClaimTemplates[i])
	}
	nameClaims(s)
}

// validateStatefulSet checks a set; what cannot change only if it is new.
func validateStatefulSet(set *appsv1.StatefulSet, isNew bool) field.ErrorList {
	l, s, template := &check.List{}, &set.Spec, specPath.Child("template")
	switch s.PodManagementPolicy {
	case "":
		l.Required(specPath.Child("podManagementPolicy"), "")
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		l.Invalid(specPath.Child("podManagementPolicy"), s.PodManagementPolicy, "must be 'OrderedReady' or 'Parallel'")
	}
	checkStatefulSetStrategy(l, specPath.Child("updateStrategy"), &s.UpdateStrategy)
	if p := s.PersistentVolumeClaimRetentionPolicy; p != nil {
		at := specPath.Child("persistentVolumeClaimRetentionPolicy")
		check.OneOf(l, at.Child("whenDeleted"), p.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)
		check.OneOf(l, at.Child("whenScaled"), p.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)
	} else {
		l.Required(specPath.Child("persistentVolumeClaimRetentionPolicy"), "")
	}
	for i := range s.VolumeClaimTemplates {
		if isNew {
			podspec.CheckClaimSpec(l, specPath.Child("volumeClaimTemplates").Index(i).Child("spec"), &s.VolumeClaimTemplates[i].Spec)
		}
	}
	l.Nonnegative(specPath.Child("replicas"), int64(core.Replicas(s.Replicas)))
	l.Nonnegative(specPath.Child("minReadySeconds"), int64(s.MinReadySeconds))
	if s.Ordinals != nil {
		l.Nonnegative(specPath.Child("ordinals.start"), int64(s.Ordinals.Start))
	}
	if isNew && s.ServiceName != "" {
		l.Label(specPath.Child("serviceName"), s.ServiceName)
	}
	checkSelector(l, s.Selector, &s.Template, "statefulset", "")
	podspec.CheckPodTemplate(l, template, withClaims(s))
	core.CheckRunsAlways(l, template, &s.Template, "activeDeadlineSeconds in StatefulSet is not Supported")
	return l.Errors
}

// withClaims is the template with the volumes its claim templates will add,
// and without the names its pods get anyway.
func withClaims(s *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	if s.Template.Spec.Subdomain == "" && s.Template.Spec.Hostname == "" && len(s.VolumeClaimTemplates) == 0 {
		return &s.Template
	}
	t := s.Template.DeepCopy()
	t.Spec.Subdomain, t.Spec.Hostname = "", ""
	claimed, volumes := map[string]bool{}, []corev1.Volume{}
	for _, c := range s.VolumeClaimTemplates {
		if claimed[c.Name] {
			continue
		}
		claimed[c.Name] = true
		volumes = append(volumes, corev1.Volume{Name: c.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name},
		}})
	}
	for _, v := range t.Spec.Volumes {
		if !claimed[v.Name] {
			volumes = append(volumes, v)
		}
	}
	t.Spec.Volumes = volumes
	return t
}

func checkStatefulSetStrategy(l *check.List, p *field.Path, s *appsv1.StatefulSetUpdateStrategy) {
	at := p.Child("rollingUpdate")
	switch {
	case s.Type == "":
		l.Required(p, "")
	case s.Type == appsv1.OnDeleteStatefulSetStrategyType:
		if s.RollingUpdate != nil {
			l.Invalid(at, s.RollingUpdate, "only allowed for updateStrategy 'RollingUpdate'")
		}
	case s.Type != appsv1.RollingUpdateStatefulSetStrategyType:
		l.Invalid(p, *s, "must be 'RollingUpdate' or 'OnDelete'")
	case s.RollingUpdate != nil:
		l.Nonnegative(at.Child("partition"), int64(core.Replicas(s.RollingUpdate.Partition)))
		if m := s.RollingUpdate.MaxUnavailable; m != nil {
			n := l.IntOrPercent(at.Child("maxUnavailable"), m, true)
			if n == 0 {
				l.Invalid(at.Child("maxUnavailable"), *m, "cannot be 0")
			}
		}
	}
}

func validateStatefulSetUpdate(set, old *appsv1.StatefulSet) field.ErrorList {
	l, now, was := &check.List{}, &set.Spec, &old.Spec
	l.Add(validateStatefulSet(set, false))
	l.Immutable(specPath.Child("selector"), now.Selector, was.Selector)
	l.Immutable(specPath.Child("volumeClaimTemplates"), now.VolumeClaimTemplates, was.VolumeClaimTemplates)
	l.Immutable(specPath.Child("serviceName"), now.ServiceName, was.ServiceName)
	l.Immutable(specPath.Child("podManagementPolicy"), now.PodManagementPolicy, was.PodManagementPolicy)
	return l.Errors
}

func validateStatefulSetStatus(set, old *appsv1.StatefulSet) field.ErrorList {
	l, s := &check.List{}, &set.Status
	l.Nonnegative(statusPath.Child("replicas"), int64(s.Replicas))
	l.Nonnegative(statusPath.Child("readyReplicas"), int64(s.ReadyReplicas))
	l.Nonnegative(statusPath.Child("currentReplicas"), int64(s.CurrentReplicas))
	l.Nonnegative(statusPath.Child("updatedReplicas"), int64(s.UpdatedReplicas))
	l.Nonnegative(statusPath.Child("availableReplicas"), int64(s.AvailableReplicas))
	l.Nonnegative(statusPath.Child("observedGeneration"), s.ObservedGeneration)
	checkCollisions(l, s.CollisionCount, old.Status.CollisionCount)
	notMore(l, "readyReplicas", s.ReadyReplicas, s.Replicas, "status.replicas")
	notMore(l, "currentReplicas", s.CurrentReplicas, s.Replicas, "status.replicas")
	notMore(l, "updatedReplicas", s.UpdatedReplicas, s.Replicas, "status.replicas")
	notMore(l, "availableReplicas", s.AvailableReplicas, s.Replicas, "status.replicas")
	notMore(l, "availableReplicas", s.AvailableReplicas, s.ReadyReplicas, "status.readyReplicas")
	return l.Errors
}

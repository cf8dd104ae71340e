package core

import (
	"strconv"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func replicationControllerResource() *api.Resource {
	return &api.Resource{
		Name: "replicationcontrollers", Singular: "replicationcontroller", Kind: "ReplicationController",
		ShortNames:    []string{"rc"},
		Categories:    []string{"all"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[corev1.ReplicationController, corev1.ReplicationControllerList]("v1", defaultReplicationController)},
		StoragePrefix: "controllers",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(rc *corev1.ReplicationController) {
				rc.Status, rc.Generation = corev1.ReplicationControllerStatus{}, 1
				if rc.Spec.Template != nil {
					DropTemplateFields(rc.Spec.Template, nil)
				}
			}),
			PrepareForUpdate: api.OnUpdate(func(rc, old *corev1.ReplicationController) {
				rc.Status = old.Status
				if rc.Spec.Template != nil {
					DropTemplateFields(rc.Spec.Template, old.Spec.Template)
				}
				api.BumpGeneration(rc, old, api.Changed(rc.Spec, old.Spec))
			}),
			Validate:       api.Check(validateReplicationController),
			ValidateUpdate: api.CheckUpdate(func(rc, _ *corev1.ReplicationController) field.ErrorList { return validateReplicationController(rc) }),
			Warnings: api.Warn(func(rc, old *corev1.ReplicationController) []string {
				if rc.Spec.Template == nil || old != nil && old.Generation == rc.Generation {
					return nil
				}
				return podspec.PodTemplateWarnings(&rc.Spec.Template.ObjectMeta, &rc.Spec.Template.Spec, specPath.Child("template"))
			}),
			Selectable: api.Select(func(rc *corev1.ReplicationController) fields.Set {
				return fields.Set{"status.replicas": strconv.Itoa(int(rc.Status.Replicas))}
			}),
			OrphanByDefault: true,
			NameValid:       check.DeclaredName,
		},
		Subresources: []api.Subresource{
			{Name: "scale", Kind: "Scale", Group: "autoscaling", Version: "v1", Scale: &api.Scale{
				Get: func(o api.Object) (autoscalingv1.ScaleSpec, autoscalingv1.ScaleStatus) {
					rc := o.(*corev1.ReplicationController)
					return autoscalingv1.ScaleSpec{Replicas: Replicas(rc.Spec.Replicas)},
						autoscalingv1.ScaleStatus{Replicas: rc.Status.Replicas, Selector: labels.SelectorFromSet(rc.Spec.Selector).String()}
				},
				Set: func(o api.Object, n int32) { o.(*corev1.ReplicationController).Spec.Replicas = &n },
			}},
			api.StatusView(func(rc, old *corev1.ReplicationController) { rc.Spec = old.Spec }, func(rc, _ *corev1.ReplicationController) field.ErrorList {
				s := &rc.Status
				l := &check.List{}
				CheckReplicaCounts(l, statusPath, ReplicaCounts{s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas, s.ObservedGeneration})
				return l.Errors
			}),
		},
		Columns: replicaColumns(corev1.ReplicationControllerSpec{}.SwaggerDoc(), corev1.ReplicationControllerStatus{}.SwaggerDoc()),
		Cells: api.Row(func(rc *corev1.ReplicationController, now metav1.Time) []any {
			var containers []corev1.Container
			if rc.Spec.Template != nil {
				containers = rc.Spec.Template.Spec.Containers
			}
			names, images := ContainerCells(containers)
			return []any{
				rc.Name, int64(Replicas(rc.Spec.Replicas)), int64(rc.Status.Replicas), int64(rc.Status.ReadyReplicas),
				api.Age(rc.CreationTimestamp, now), names, images, labels.FormatLabels(rc.Spec.Selector),
			}
		}),
	}
}

func replicaColumns(spec, status map[string]string) []metav1.TableColumnDefinition {
	return append([]metav1.TableColumnDefinition{
		api.Column("Desired", "integer", spec["replicas"]),
		api.Column("Current", "integer", status["replicas"]),
		api.Column("Ready", "integer", status["readyReplicas"]),
		api.AgeColumn(),
	}, ContainerColumns(spec["selector"])...)
}

// ContainerColumns are the wide columns of kinds with a pod template.
func ContainerColumns(selector string) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		api.Wide("Containers", "Names of each container in the template."),
		api.Wide("Images", "Images referenced by each container in the template."),
		api.Wide("Selector", selector),
	}
}

// ContainerCells lists the names and the images of containers.
func ContainerCells(containers []corev1.Container) (names, images string) {
	var n, i []string
	for _, c := range containers {
		n, i = append(n, c.Name), append(i, c.Image)
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}

// Replicas is the wanted number of replicas, 0 where unset.
func Replicas(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

// ReplicaCounts is the status of kinds that keep replicas.
type ReplicaCounts struct {
	All, FullyLabeled, Ready, Available int32
	ObservedGeneration                  int64
}

// CheckReplicaCounts checks that the counts of a status fit together.
func CheckReplicaCounts(l *check.List, p *field.Path, c ReplicaCounts) {
	l.Nonnegative(p.Child("replicas"), int64(c.All))
	l.Nonnegative(p.Child("fullyLabeledReplicas"), int64(c.FullyLabeled))
	l.Nonnegative(p.Child("readyReplicas"), int64(c.Ready))
	l.Nonnegative(p.Child("availableReplicas"), int64(c.Available))
	l.Nonnegative(p.Child("observedGeneration"), c.ObservedGeneration)
	const most = "cannot be greater than status.replicas"
	if c.FullyLabeled > c.All {
		l.Invalid(p.Child("fullyLabeledReplicas"), c.FullyLabeled, most)
	}
	if c.Ready > c.All {
		l.Invalid(p.Child("readyReplicas"), c.Ready, most)
	}
	if c.Available > c.All {
		l.Invalid(p.Child("availableReplicas"), c.Available, most)
	}
	if c.Available > c.Ready {
		l.Invalid(p.Child("availableReplicas"), c.Available, "cannot be greater than readyReplicas")
	}
}

func validateReplicationController(rc *corev1.ReplicationController) field.ErrorList {
	l, s := &check.List{}, &rc.Spec
	l.Nonnegative(specPath.Child("minReadySeconds"), int64(s.MinReadySeconds))
	if len(s.Selector) == 0 {
		l.Required(specPath.Child("selector"), "")
	}
	if s.Replicas == nil {
		l.Required(specPath.Child("replicas"), "")
	} else {
		l.Nonnegative(specPath.Child("replicas"), int64(*s.Replicas))
	}
	at := specPath.Child("template")
	if s.Template == nil {
		l.Required(at, "")
		return l.Errors
	}
	if !labels.SelectorFromSet(s.Selector).Matches(labels.Set(s.Template.Labels)) {
		l.Invalid(at.Child("metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`")
	}
	podspec.CheckPodTemplate(l, at, s.Template)
	CheckRunsAlways(l, at, s.Template, "activeDeadlineSeconds in ReplicationController is not Supported")
	return l.Errors
}

// CheckRunsAlways checks that the pods of a template run until they are deleted.
func CheckRunsAlways(l *check.List, p *field.Path, t *corev1.PodTemplateSpec, deadline string) {
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		l.Errors = append(l.Errors, field.NotSupported(p.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	l.ForbidIf(p.Child("spec", "activeDeadlineSeconds"), t.Spec.ActiveDeadlineSeconds != nil, deadline)
}

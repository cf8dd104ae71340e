package apps

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func daemonSetResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "daemonsets", Singular: "daemonset", Kind: "DaemonSet",
		ShortNames: []string{"ds"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[appsv1.DaemonSet, appsv1.DaemonSetList]("v1", defaultDaemonSet)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(d *appsv1.DaemonSet) {
				d.Status, d.Generation = appsv1.DaemonSetStatus{}, 1
				setTemplateGeneration(d, max(templateGeneration(d), 1))
				core.DropTemplateFields(&d.Spec.Template, nil)
			}),
			PrepareForUpdate: api.OnUpdate(prepareDaemonSetUpdate),
			Validate:         api.Check(validateDaemonSet),
			ValidateUpdate: api.CheckUpdate(func(d, old *appsv1.DaemonSet) field.ErrorList {
				l := &check.List{}
				l.Immutable(specPath.Child("selector"), d.Spec.Selector, old.Spec.Selector)
				l.Add(validateDaemonSet(d))
				return l.Errors
			}),
			Warnings: api.Warn(func(d, old *appsv1.DaemonSet) []string {
				if old != nil && templateGeneration(old) == templateGeneration(d) {
					return nil
				}
				return templateWarnings(&d.Spec.Template)
			}),
		},
		Subresources: []api.Subresource{
			api.StatusView(func(d, old *appsv1.DaemonSet) { d.Spec = old.Spec }, validateDaemonSetStatus),
		},
		Columns: daemonSetColumns(),
		Cells: api.Row(func(d *appsv1.DaemonSet, now metav1.Time) []any {
			s := &d.Status
			names, images := core.ContainerCells(d.Spec.Template.Spec.Containers)
			return []any{
				d.Name, int64(s.DesiredNumberScheduled), int64(s.CurrentNumberScheduled), int64(s.NumberReady), int64(s.UpdatedNumberScheduled),
				int64(s.NumberAvailable), labels.FormatLabels(d.Spec.Template.Spec.NodeSelector), api.Age(d.CreationTimestamp, now),
				names, images, metav1.FormatLabelSelector(d.Spec.Selector),
			}
		}),
	}
}

func daemonSetColumns() []metav1.TableColumnDefinition {
	doc := appsv1.DaemonSetStatus{}.SwaggerDoc()
	return append([]metav1.TableColumnDefinition{
		api.Column("Desired", "integer", doc["desiredNumberScheduled"]),
		api.Column("Current", "integer", doc["currentNumberScheduled"]),
		api.Column("Ready", "integer", doc["numberReady"]),
		api.Column("Up-to-date", "integer", doc["updatedNumberScheduled"]),
		api.Column("Available", "integer", doc["numberAvailable"]),
		api.Column("Node Selector", "string", corev1.PodSpec{}.SwaggerDoc()["nodeSelector"]),
		api.AgeColumn(),
	}, core.ContainerColumns(appsv1.DaemonSetSpec{}.SwaggerDoc()["selector"])...)
}

// templateGeneration reads the count of template changes, which lives in an
// annotation since v1.
func templateGeneration(d *appsv1.DaemonSet) int64 {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func setTemplateGeneration(d *appsv1.DaemonSet, n int64) {
	metav1.SetMetaDataAnnotation(&d.ObjectMeta, appsv1.DeprecatedTemplateGeneration, strconv.FormatInt(n, 10))
}

func prepareDaemonSetUpdate(d, old *appsv1.DaemonSet) {
	d.Status = old.Status
	core.DropTemplateFields(&d.Spec.Template, &old.Spec.Template)
	n := templateGeneration(old)
	if api.Changed(d.Spec.Template, old.Spec.Template) {
		n++
	}
	setTemplateGeneration(d, n)
	api.BumpGeneration(d, old, api.Changed(d.Spec, old.Spec))
}

func defaultDaemonSet(d *appsv1.DaemonSet) {
	if _, ok := d.Annotations[appsv1.DeprecatedTemplateGeneration]; !ok {
		setTemplateGeneration(d, 0) // as if it was given: who writes a DaemonSet manages the count
	}
	s := &d.Spec.UpdateStrategy
	if s.Type == "" {
		s.Type = appsv1.RollingUpdateDaemonSetStrategyType
	}
	if s.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		api.SetIfNil(&s.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		api.SetIfNil(&s.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		api.SetIfNil(&s.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	api.SetIfNil(&d.Spec.RevisionHistoryLimit, 10)
	podspec.DefaultPodTemplate(&d.Spec.Template)
}

func validateDaemonSet(d *appsv1.DaemonSet) field.ErrorList {
	l, s, template := &check.List{}, &d.Spec, specPath.Child("template")
	l.Selector(specPath.Child("selector"), s.Selector)
	if selector, err := metav1.LabelSelectorAsSelector(s.Selector); err == nil && !selector.Matches(labels.Set(s.Template.Labels)) {
		l.Invalid(template.Child("metadata", "labels"), s.Template.Labels, "`selector` does not match template `labels`")
	}
	if s.Selector != nil && len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
		l.Invalid(specPath.Child("selector"), s.Selector, "empty selector is invalid for daemonset")
	}
	podspec.CheckPodTemplate(l, template, &s.Template)
	core.CheckRunsAlways(l, template, &s.Template, "activeDeadlineSeconds in DaemonSet is not Supported")
	l.Nonnegative(specPath.Child("minReadySeconds"), int64(s.MinReadySeconds))
	checkDaemonSetStrategy(l, specPath.Child("updateStrategy"), &s.UpdateStrategy)
	checkOptional(l, specPath.Child("revisionHistoryLimit"), s.RevisionHistoryLimit)
	return l.Errors
}

func checkDaemonSetStrategy(l *check.List, p *field.Path, s *appsv1.DaemonSetUpdateStrategy) {
	at := p.Child("rollingUpdate")
	switch {
	case s.Type == appsv1.OnDeleteDaemonSetStrategyType:
	case s.Type != appsv1.RollingUpdateDaemonSetStrategyType:
		l.Errors = append(l.Errors, field.NotSupported(p, s, []string{"RollingUpdate", "OnDelete"}))
	case s.RollingUpdate == nil:
		l.Required(at, "")
	default:
		unavailable := l.IntOrPercent(at.Child("maxUnavailable"), s.RollingUpdate.MaxUnavailable, true)
		surge := l.IntOrPercent(at.Child("maxSurge"), s.RollingUpdate.MaxSurge, true)
		switch {
		case unavailable != 0 && surge != 0:
			l.Invalid(at.Child("maxSurge"), *s.RollingUpdate.MaxSurge, "may not be set when maxUnavailable is non-zero")
		case unavailable == 0 && surge == 0:
			l.Required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0")
		}
	}
}

func validateDaemonSetStatus(d, old *appsv1.DaemonSet) field.ErrorList {
	l, s := &check.List{}, &d.Status
	for name, n := range check.Sorted(map[string]int64{
		"currentNumberScheduled": int64(s.CurrentNumberScheduled), "numberMisscheduled": int64(s.NumberMisscheduled),
		"desiredNumberScheduled": int64(s.DesiredNumberScheduled), "numberReady": int64(s.NumberReady), "observedGeneration": s.ObservedGeneration,
		"updatedNumberScheduled": int64(s.UpdatedNumberScheduled), "numberAvailable": int64(s.NumberAvailable), "numberUnavailable": int64(s.NumberUnavailable),
	}) {
		l.Nonnegative(statusPath.Child(name), n)
	}
	checkCollisions(l, s.CollisionCount, old.Status.CollisionCount)
	return l.Errors
}

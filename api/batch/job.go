package batch

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

var specPath = field.NewPath("spec")

// jobVersion shows a Job without labels with its pods': upstream's server stores it without.
func jobVersion() api.Version {
	v := api.Versioned[batchv1.Job, batchv1.JobList]("v1", defaultJob)
	v.FromStorage = func(o api.Object) (api.Object, error) {
		if j := o.(*batchv1.Job); len(j.Labels) == 0 {
			j.Labels = j.Spec.Template.Labels
		}
		return o, nil
	}
	return v
}

func jobResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "jobs", Singular: "job", Kind: "Job",
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   []api.Version{jobVersion()},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(j *batchv1.Job) {
				j.Status, j.Generation = batchv1.JobStatus{}, 1
				if j.Spec.ManualSelector == nil || !*j.Spec.ManualSelector {
					generateSelector(j)
				}
				if len(j.Labels) == 0 { // defaulted once more, as upstream does with all it reads
					j.Labels = maps.Clone(j.Spec.Template.Labels)
				}
				dropJobFields(&j.Spec, nil)
			}),
			PrepareForUpdate: api.OnUpdate(func(j, old *batchv1.Job) {
				j.Status = old.Status
				dropJobFields(&j.Spec, &old.Spec)
				api.BumpGeneration(j, old, api.Changed(j.Spec, old.Spec))
			}),
			Validate:       api.Check(validateJob),
			ValidateUpdate: api.CheckUpdate(validateJobUpdate),
			Warnings: api.Warn(func(j, old *batchv1.Job) []string {
				var out []string
				if msgs := validation.IsDNS1123Label(j.Name); old == nil && len(msgs) != 0 && j.Name != "" {
					out = append(out, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs))
				}
				t := &j.Spec.Template
				return append(out, podspec.PodTemplateWarnings(&t.ObjectMeta, &t.Spec, specPath.Child("template"))...)
			}),
			Selectable: api.Select(func(j *batchv1.Job) fields.Set {
				return fields.Set{"status.successful": strconv.Itoa(int(j.Status.Succeeded))}
			}),
			NoField:         "field label %q not supported for Job",
			OrphanByDefault: true,
		},
		Subresources: []api.Subresource{api.StatusView(func(j, old *batchv1.Job) { j.Spec = old.Spec }, validateJobStatus)},
		Columns:      jobColumns(),
		Cells:        api.Row(jobCells),
	}
}

func defaultJob(j *batchv1.Job) {
	s := &j.Spec
	if s.Completions == nil && s.Parallelism == nil {
		api.SetIfNil(&s.Completions, 1)
	}
	api.SetIfNil(&s.Parallelism, 1)
	if s.BackoffLimitPerIndex != nil {
		api.SetIfNil(&s.BackoffLimit, math.MaxInt32)
	}
	api.SetIfNil(&s.BackoffLimit, 6)
	if labels := s.Template.Labels; labels != nil && len(j.Labels) == 0 {
		j.Labels = labels
	}
	api.SetIfNil(&s.CompletionMode, batchv1.NonIndexedCompletion)
	api.SetIfNil(&s.Suspend, false)
	if s.PodFailurePolicy != nil {
		api.SetIfNil(&s.PodReplacementPolicy, batchv1.Failed)
	}
	api.SetIfNil(&s.PodReplacementPolicy, batchv1.TerminatingOrFailed)
	api.SetIfNil(&s.ManualSelector, false)
	defaultJobTemplate(s)
}

// defaultJobTemplate fills what is defaulted in jobs and in templates of jobs.
func defaultJobTemplate(s *batchv1.JobSpec) {
	if s.PodFailurePolicy != nil {
		for i := range s.PodFailurePolicy.Rules {
			for j := range s.PodFailurePolicy.Rules[i].OnPodConditions {
				if c := &s.PodFailurePolicy.Rules[i].OnPodConditions[j]; c.Status == "" {
					c.Status = corev1.ConditionTrue
				}
			}
		}
	}
	podspec.DefaultPodTemplate(&s.Template)
}

// dropJobFields clears fields of features that are off by default.
func dropJobFields(s, old *batchv1.JobSpec) {
	if old == nil || old.Scheduling == nil {
		s.Scheduling = nil
	}
	if old == nil {
		core.DropTemplateFields(&s.Template, nil)
		return
	}
	core.DropTemplateFields(&s.Template, &old.Template)
}

// generateSelector labels the pods of a job with its uid and name, and selects
// them by the uid.
func generateSelector(j *batchv1.Job) {
	t := &j.Spec.Template
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	set := func(m map[string]string, key, value string) {
		if _, ok := m[key]; !ok {
			m[key] = value
		}
	}
	set(t.Labels, legacyJobName, j.Name)
	set(t.Labels, batchv1.JobNameLabel, j.Name)
	set(t.Labels, legacyControllerUID, string(j.UID))
	set(t.Labels, batchv1.ControllerUidLabel, string(j.UID))
	api.SetIfNil(&j.Spec.Selector, metav1.LabelSelector{})
	if j.Spec.Selector.MatchLabels == nil {
		j.Spec.Selector.MatchLabels = map[string]string{}
	}
	set(j.Spec.Selector.MatchLabels, batchv1.ControllerUidLabel, string(j.UID))
}

const (
	legacyJobName       = "job-name"
	legacyControllerUID = "controller-uid"
)

func jobColumns() []metav1.TableColumnDefinition {
	return append([]metav1.TableColumnDefinition{
		api.Column("Status", "string", "Status of the job."),
		api.Column("Completions", "string", batchv1.JobStatus{}.SwaggerDoc()["succeeded"]),
		api.Column("Duration", "string", "Time required to complete the job."),
		api.AgeColumn(),
	}, core.ContainerColumns(batchv1.JobSpec{}.SwaggerDoc()["selector"])...)
}

func jobCells(j *batchv1.Job, now metav1.Time) []any {
	completions := fmt.Sprintf("%d/1", j.Status.Succeeded)
	if n := j.Spec.Completions; n != nil {
		completions = fmt.Sprintf("%d/%d", j.Status.Succeeded, *n)
	} else if p := core.Replicas(j.Spec.Parallelism); p > 1 {
		completions = fmt.Sprintf("%d/1 of %d", j.Status.Succeeded, p)
	}
	took := ""
	if start, end := j.Status.StartTime, j.Status.CompletionTime; start != nil {
		if end == nil {
			end = &now
		}
		took = api.Elapsed(end.Sub(start.Time))
	}
	names, images := core.ContainerCells(j.Spec.Template.Spec.Containers)
	return []any{
		j.Name, jobStatus(j), completions, took, api.Age(j.CreationTimestamp, now),
		names, images, metav1.FormatLabelSelector(j.Spec.Selector),
	}
}

func jobStatus(j *batchv1.Job) string {
	switch {
	case jobCondition(j, batchv1.JobComplete):
		return "Complete"
	case jobCondition(j, batchv1.JobFailed):
		return "Failed"
	case j.DeletionTimestamp != nil:
		return "Terminating"
	case jobCondition(j, batchv1.JobSuspended):
		return "Suspended"
	case jobCondition(j, batchv1.JobFailureTarget):
		return "FailureTarget"
	case jobCondition(j, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	}
	return "Running"
}

func jobCondition(j *batchv1.Job, t batchv1.JobConditionType) bool {
	return conditionIs(j, t, corev1.ConditionTrue)
}

func conditionIs(j *batchv1.Job, t batchv1.JobConditionType, s corev1.ConditionStatus) bool {
	i := slices.IndexFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool { return c.Type == t })
	return i >= 0 && j.Status.Conditions[i].Status == s
}

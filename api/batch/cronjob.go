package batch

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func cronJobResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "cronjobs", Singular: "cronjob", Kind: "CronJob",
		ShortNames: []string{"cj"},
		Categories: []string{"all"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[batchv1.CronJob, batchv1.CronJobList]("v1", defaultCronJob)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *batchv1.CronJob) {
				c.Status, c.Generation = batchv1.CronJobStatus{}, 1
				dropJobFields(&c.Spec.JobTemplate.Spec, nil)
			}),
			PrepareForUpdate: api.OnUpdate(func(c, old *batchv1.CronJob) {
				c.Status = old.Status
				dropJobFields(&c.Spec.JobTemplate.Spec, &old.Spec.JobTemplate.Spec)
				api.BumpGeneration(c, old, api.Changed(c.Spec, old.Spec))
			}),
			Validate:       api.Check(func(c *batchv1.CronJob) field.ErrorList { return validateCronJob(c, nil) }),
			ValidateUpdate: api.CheckUpdate(validateCronJob),
			Warnings: api.Warn(func(c, old *batchv1.CronJob) []string {
				var out []string
				if msgs := validation.IsDNS1123Label(c.Name); old == nil && len(msgs) != 0 && c.Name != "" {
					out = append(out, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: %v", msgs))
				}
				t := &c.Spec.JobTemplate.Spec.Template
				out = append(out, podspec.PodTemplateWarnings(&t.ObjectMeta, &t.Spec, specPath.Child("jobTemplate", "spec", "template"))...)
				return out
			}),
		},
		Subresources: []api.Subresource{api.StatusView(func(c, old *batchv1.CronJob) { c.Spec = old.Spec }, nil)},
		Columns:      cronJobColumns(),
		Cells:        api.Row(cronJobCells),
	}
}

func defaultCronJob(c *batchv1.CronJob) {
	if c.Spec.ConcurrencyPolicy == "" {
		c.Spec.ConcurrencyPolicy = batchv1.AllowConcurrent
	}
	api.SetIfNil(&c.Spec.Suspend, false)
	api.SetIfNil(&c.Spec.SuccessfulJobsHistoryLimit, 3)
	api.SetIfNil(&c.Spec.FailedJobsHistoryLimit, 1)
	defaultJobTemplate(&c.Spec.JobTemplate.Spec)
}

var zonePart = regexp.MustCompile(`^[A-Za-z\.\-_0-9+]{1,}$`)

func validateCronJob(c, old *batchv1.CronJob) field.ErrorList {
	l, s := &check.List{}, &c.Spec
	checkSchedule(l, specPath.Child("schedule"), c, old)
	if s.StartingDeadlineSeconds != nil {
		l.Nonnegative(specPath.Child("startingDeadlineSeconds"), *s.StartingDeadlineSeconds)
	}
	if s.TimeZone != nil && (old == nil || api.Changed(old.Spec.TimeZone, s.TimeZone)) {
		checkZone(l, specPath.Child("timeZone"), s.TimeZone)
	}
	check.Choice(l, specPath.Child("concurrencyPolicy"), s.ConcurrencyPolicy, batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)
	at := specPath.Child("jobTemplate", "spec")
	checkJobSpec(l, at, &s.JobTemplate.Spec)
	if sel := s.JobTemplate.Spec.Selector; sel != nil {
		l.Invalid(at.Child("selector"), sel, "`selector` will be auto-generated")
	}
	if m := s.JobTemplate.Spec.ManualSelector; m != nil && *m {
		l.Errors = append(l.Errors, field.NotSupported(at.Child("manualSelector"), m, []string{"nil", "false"}))
	}
	optional(l, specPath.Child("successfulJobsHistoryLimit"), s.SuccessfulJobsHistoryLimit)
	optional(l, specPath.Child("failedJobsHistoryLimit"), s.FailedJobsHistoryLimit)
	if old == nil && len(c.Name) > 52 { // a job's name adds 11 characters
		l.Invalid(field.NewPath("metadata", "name"), c.Name, "must be no more than 52 characters")
	}
	return l.Errors
}

func checkSchedule(l *check.List, p *field.Path, c, old *batchv1.CronJob) {
	schedule := c.Spec.Schedule
	if schedule == "" {
		l.Required(p, "")
		return
	}
	if _, err := ParseSchedule(schedule); err != nil {
		l.Invalid(p, schedule, err.Error())
	}
	if !strings.Contains(schedule, "TZ") {
		return
	}
	if old == nil || !strings.Contains(old.Spec.Schedule, "TZ") {
		l.Invalid(p, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
	} else if c.Spec.TimeZone != nil {
		l.Invalid(p, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule")
	}
}

func checkZone(l *check.List, p *field.Path, zone *string) {
	if *zone == "" {
		l.Invalid(p, zone, "timeZone must be nil or non-empty string")
		return
	}
	for _, part := range strings.Split(*zone, "/") {
		if part == "." || part == ".." || strings.HasPrefix(part, "-") || !zonePart.MatchString(part) {
			l.Invalid(p, zone, "unknown time zone "+*zone)
			return
		}
	}
	if strings.EqualFold(*zone, "Local") {
		l.Invalid(p, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
	}
	if _, err := time.LoadLocation(*zone); err != nil {
		l.Invalid(p, zone, "unknown time zone "+*zone)
	}
}

func cronJobColumns() []metav1.TableColumnDefinition {
	spec, status := batchv1.CronJobSpec{}.SwaggerDoc(), batchv1.CronJobStatus{}.SwaggerDoc()
	return append([]metav1.TableColumnDefinition{
		api.Column("Schedule", "string", spec["schedule"]),
		api.Column("Timezone", "string", spec["timeZone"]),
		api.Column("Suspend", "boolean", spec["suspend"]),
		api.Column("Active", "integer", status["active"]),
		api.Column("Last Schedule", "string", status["lastScheduleTime"]),
		api.AgeColumn(),
	}, core.ContainerColumns(batchv1.JobSpec{}.SwaggerDoc()["selector"])...)
}

func cronJobCells(c *batchv1.CronJob, now metav1.Time) []any {
	last, zone, suspend := "<none>", "<none>", "<unset>"
	if t := c.Status.LastScheduleTime; t != nil {
		last = api.Age(*t, now)
	}
	if c.Spec.TimeZone != nil {
		zone = *c.Spec.TimeZone
	}
	if c.Spec.Suspend != nil {
		suspend = strconv.FormatBool(*c.Spec.Suspend)
		suspend = strings.ToUpper(suspend[:1]) + suspend[1:]
	}
	job := &c.Spec.JobTemplate.Spec
	names, images := core.ContainerCells(job.Template.Spec.Containers)
	return []any{
		c.Name, c.Spec.Schedule, zone, suspend, int64(len(c.Status.Active)), last,
		api.Age(c.CreationTimestamp, now), names, images, metav1.FormatLabelSelector(job.Selector),
	}
}

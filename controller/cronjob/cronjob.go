// Package cronjob starts Jobs on a schedule and keeps a limited history of them.
package cronjob

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	robfig "github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	listers "k8s.io/client-go/listers/batch/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-project/skiff/api/batch"
	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/workload"
)

var kind = batchv1.SchemeGroupVersion.WithKind("CronJob")

// slack is added to every wait, so that the clock has surely passed the scheduled second.
const slack = 100 * time.Millisecond

type controller struct {
	env   engine.Env
	crons listers.CronJobLister
	jobs  cache.SharedIndexInformer
}

// New returns the CronJob controller.
func New(env engine.Env) (*engine.Controller, error) {
	inf := env.Informers.Batch().V1()
	c := &controller{env: env, crons: inf.CronJobs().Lister(), jobs: inf.Jobs().Informer()}
	if err := workload.IndexByOwner(c.jobs); err != nil {
		return nil, fmt.Errorf("cronjob controller: index jobs: %w", err)
	}
	return &engine.Controller{
		Name:    "cronjob-controller",
		Outputs: []engine.Resource{"jobs.batch", "cronjobs.batch/status"},
		Sources: []engine.Source{
			{Resource: "cronjobs.batch", Informer: inf.CronJobs().Informer(), On: engine.Each},
			engine.On("jobs.batch", c.jobs, func(q engine.Queue, old, new *batchv1.Job) {
				workload.WakeOwners(q, kind.Kind, old, new, nil)
			}),
		},
		Reconcile: c.reconcile,
	}, nil
}

// plan is what one look leads to, in this order.
type plan struct {
	status batchv1.CronJobStatus
	remove []*batchv1.Job
	create *batchv1.Job // its start is noted in the status once it exists
	at     time.Time    // the scheduled time of create
	events []event
	again  time.Duration
}

type event struct{ kind, reason, message string }

func (p *plan) tell(kind, reason, format string, args ...any) {
	p.events = append(p.events, event{kind, reason, fmt.Sprintf(format, args...)})
}

func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	cj, err := c.crons.CronJobs(ns).Get(name)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	jobs, err := workload.Owned[batchv1.Job](c.jobs, cj, false)
	if err != nil {
		return err
	}
	if cj, jobs, err = c.freshen(ctx, cj, jobs); err != nil {
		return engine.IgnoreNotFound(err)
	}
	p := planCron(cj, jobs, c.env.Clock.Now())
	for _, e := range p.events {
		c.env.Events.Event(cj, e.kind, e.reason, e.message)
	}
	applyErr := c.apply(ctx, cj, &p)
	if !equality.Semantic.DeepEqual(cj.Status, p.status) {
		next := cj.DeepCopy()
		next.Status = p.status
		if _, err := c.env.Client.BatchV1().CronJobs(ns).UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("update status of cron job %s: %w", key, err)
		}
	}
	if applyErr != nil {
		return applyErr
	}
	if p.again > 0 {
		return engine.Later(p.again)
	}
	return nil
}

// freshen asks the API server where the caches disagree: one that lags behind our own writes would
// have a Job of ours taken for a stranger's, or a new one for lost.
func (c *controller) freshen(ctx context.Context, cj *batchv1.CronJob, jobs []*batchv1.Job) (*batchv1.CronJob, []*batchv1.Job, error) {
	api := c.env.Client.BatchV1()
	if slices.ContainsFunc(jobs, func(j *batchv1.Job) bool { return !listed(cj, j) && !finished(j, "") }) {
		live, err := api.CronJobs(cj.Namespace).Get(ctx, cj.Name, metav1.GetOptions{})
		if err != nil {
			return nil, nil, err
		}
		cj = live
	}
	for _, r := range cj.Status.Active {
		if slices.ContainsFunc(jobs, func(j *batchv1.Job) bool { return j.UID == r.UID }) {
			continue
		}
		j, err := api.Jobs(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
		switch {
		case err == nil && j.UID == r.UID:
			jobs = append(slices.Clip(jobs), j)
		case err != nil && !apierrors.IsNotFound(err):
			return nil, nil, err
		}
	}
	return cj, jobs, nil
}

// listed reports whether j is among the active Jobs of cj.
func listed(cj *batchv1.CronJob, j *batchv1.Job) bool {
	return slices.ContainsFunc(cj.Status.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID })
}

func (c *controller) apply(ctx context.Context, cj *batchv1.CronJob, p *plan) error {
	api := c.env.Client.BatchV1().Jobs(cj.Namespace)
	background := metav1.DeletePropagationBackground
	for _, j := range p.remove {
		err := api.Delete(ctx, j.Name, metav1.DeleteOptions{PropagationPolicy: &background,
			Preconditions: metav1.NewUIDPreconditions(string(j.UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			c.env.Events.Eventf(cj, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
			return err
		}
		c.env.Events.Eventf(cj, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", j.Name)
	}
	if p.create == nil {
		return nil
	}
	made, err := api.Create(ctx, p.create, metav1.CreateOptions{})
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsAlreadyExists(err):
		// made before, by ourselves if it is ours; the status must say so before the next look
		made, err = api.Get(ctx, p.create.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !metav1.IsControlledBy(made, cj) {
			return fmt.Errorf("job %s/%s exists and is not of cron job %s", made.Namespace, made.Name, cj.Name)
		}
	case err != nil:
		c.env.Events.Eventf(cj, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		return err
	default:
		c.env.Events.Eventf(cj, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", made.Name)
	}
	if !finished(made, "") {
		p.status.Active = append(p.status.Active, corev1.ObjectReference{Kind: "Job", APIVersion: "batch/v1",
			Namespace: made.Namespace, Name: made.Name, UID: made.UID, ResourceVersion: made.ResourceVersion})
	}
	p.status.LastScheduleTime = &metav1.Time{Time: p.at}
	return nil
}

// planCron decides what to do now with the Jobs of cj.
func planCron(cj *batchv1.CronJob, jobs []*batchv1.Job, now time.Time) plan {
	p := plan{status: *cj.Status.DeepCopy()}
	p.review(cj, jobs)
	p.remove = history(cj, jobs)
	if cj.DeletionTimestamp != nil || cj.Spec.Suspend != nil && *cj.Spec.Suspend {
		return p
	}
	if cj.Spec.TimeZone != nil {
		loc, err := time.LoadLocation(*cj.Spec.TimeZone)
		if err != nil {
			p.tell(corev1.EventTypeWarning, "UnknownTimeZone", "invalid timeZone: %q: %s", *cj.Spec.TimeZone, err)
			return p
		}
		now = now.In(loc)
	}
	s, err := batch.ParseSchedule(cj.Spec.Schedule)
	if err != nil {
		p.tell(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", cj.Spec.Schedule, err)
		return p
	}
	due, missed := lastDue(cj, s, now)
	next := s.Next(now)
	if _, every := s.(robfig.ConstantDelaySchedule); every && due.IsZero() {
		next = s.Next(origin(cj))
	}
	if !next.IsZero() {
		p.again = next.Sub(now) + slack
	}
	if missed > 100 {
		p.tell(corev1.EventTypeWarning, "TooManyMissedTimes",
			"too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if !due.IsZero() {
		p.start(cj, jobs, due, now)
	}
	return p
}

// origin is the time up to which every start is settled.
func origin(cj *batchv1.CronJob) time.Time {
	if cj.Status.LastScheduleTime != nil {
		return cj.Status.LastScheduleTime.Time
	}
	return cj.CreationTimestamp.Time
}

// lastDue returns the last scheduled time up to now that was not started, and about how many were
// missed; the count stops a little over 100.
func lastDue(cj *batchv1.CronJob, s robfig.Schedule, now time.Time) (due time.Time, missed int) {
	from := origin(cj).In(now.Location())
	if d := cj.Spec.StartingDeadlineSeconds; d != nil {
		if oldest := now.Add(-time.Duration(*d) * time.Second); oldest.After(from) {
			from = oldest
		}
	}
	for t := s.Next(from); !t.IsZero() && !t.After(now); t = s.Next(t) {
		due = t
		if missed++; missed > 100 {
			// far behind: jump near the end instead of walking through years
			for back := time.Minute; back < now.Sub(from); back *= 2 {
				if t := s.Next(now.Add(-back)); !t.IsZero() && !t.After(now) {
					for n := s.Next(t); !n.IsZero() && !n.After(now); n = s.Next(n) {
						t = n
					}
					return t, missed
				}
			}
		}
	}
	return due, missed
}

// review brings the list of active Jobs up to date.
func (p *plan) review(cj *batchv1.CronJob, jobs []*batchv1.Job) {
	there := map[string]*batchv1.Job{}
	for _, j := range jobs {
		there[string(j.UID)] = j
		known, done := listed(cj, j), finished(j, "")
		switch {
		case !known && !done:
			p.tell(corev1.EventTypeWarning, "UnexpectedJob", "Saw a job that the controller did not create or forgot: %s", j.Name)
		case known && done:
			how := batchv1.JobFailed
			if finished(j, batchv1.JobComplete) {
				how = batchv1.JobComplete
			}
			p.tell(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, how)
		}
		if finished(j, batchv1.JobComplete) && j.Status.CompletionTime != nil &&
			(p.status.LastSuccessfulTime == nil || p.status.LastSuccessfulTime.Before(j.Status.CompletionTime)) {
			p.status.LastSuccessfulTime = j.Status.CompletionTime.DeepCopy()
		}
	}
	p.status.Active = slices.DeleteFunc(p.status.Active, func(r corev1.ObjectReference) bool {
		j := there[string(r.UID)]
		if j == nil {
			p.tell(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", r.Name)
			return true
		}
		return finished(j, "")
	})
}

// finished reports whether j ended, in the given way if one is given.
func finished(j *batchv1.Job, how batchv1.JobConditionType) bool {
	return slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Status == corev1.ConditionTrue && (c.Type == how || how == "" && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed))
	})
}

// start plans the Job due at due, as the deadline and the concurrency policy allow.
func (p *plan) start(cj *batchv1.CronJob, jobs []*batchv1.Job, due, now time.Time) {
	if d := cj.Spec.StartingDeadlineSeconds; d != nil && due.Add(time.Duration(*d)*time.Second).Before(now) {
		p.tell(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", due.UTC().Format(time.RFC1123Z))
		return
	}
	j := newJob(cj, due)
	if slices.ContainsFunc(p.status.Active, func(r corev1.ObjectReference) bool { return r.Name == j.Name }) ||
		cj.Status.LastScheduleTime != nil && cj.Status.LastScheduleTime.Time.Equal(due) {
		return
	}
	if len(p.status.Active) > 0 {
		switch cj.Spec.ConcurrencyPolicy {
		case batchv1.ForbidConcurrent:
			p.tell(corev1.EventTypeNormal, "JobAlreadyActive",
				"Not starting job because prior execution is running and concurrency policy is Forbid")
			return
		case batchv1.ReplaceConcurrent:
			for _, old := range jobs {
				if !finished(old, "") {
					p.remove = append(p.remove, old)
				}
			}
			p.status.Active = nil
		}
	}
	p.create, p.at = j, due
}

// newJob makes the Job for one scheduled time; its name is the same whenever it is made.
func newJob(cj *batchv1.CronJob, at time.Time) *batchv1.Job {
	t := cj.Spec.JobTemplate.DeepCopy()
	notes := maps.Clone(t.Annotations)
	if notes == nil {
		notes = map[string]string{}
	}
	notes[batchv1.CronJobScheduledTimestampAnnotation] = at.Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", cj.Name, at.Unix()/60), Namespace: cj.Namespace,
			Labels: maps.Clone(t.Labels), Annotations: notes, CreationTimestamp: metav1.Time{Time: at},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, kind)}},
		Spec: t.Spec,
	}
}

// history returns the finished Jobs beyond the limits, oldest first.
func history(cj *batchv1.CronJob, jobs []*batchv1.Job) []*batchv1.Job {
	var out []*batchv1.Job
	for how, limit := range map[batchv1.JobConditionType]*int32{
		batchv1.JobComplete: cj.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: cj.Spec.FailedJobsHistoryLimit} {
		if limit == nil {
			continue
		}
		var done []*batchv1.Job
		for _, j := range jobs {
			if finished(j, how) && j.DeletionTimestamp == nil {
				done = append(done, j)
			}
		}
		slices.SortFunc(done, func(a, b *batchv1.Job) int {
			var x, y time.Time
			if a.Status.StartTime != nil {
				x = a.Status.StartTime.Time
			}
			if b.Status.StartTime != nil {
				y = b.Status.StartTime.Time
			}
			return cmp.Or(x.Compare(y), cmp.Compare(a.Name, b.Name))
		})
		out = append(out, done[:max(0, len(done)-int(*limit))]...)
	}
	return out
}

package cronjob

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api/batch"
	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/enginetest"
)

func TestSchedule(t *testing.T) {
	for _, c := range []struct{ expr, from, want string }{
		{"* * * * *", "2026-11-23T12:00:00Z", "2026-11-23T12:01:00Z"},
		{"*/15 * * * *", "2026-11-23T12:14:59Z", "2026-11-23T12:15:00Z"},
		{"5/20 * * * *", "2026-11-23T12:06:00Z", "2026-11-23T12:25:00Z"},
		{"0 0 * * *", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"},
		{"30 4 1,15 * 5", "2026-11-23T00:00:00Z", "2026-11-27T04:30:00Z"}, // 1st, 15th or a Friday
		{"0 12 * feb mon", "2026-11-23T00:00:00Z", "2027-02-01T12:00:00Z"},
		{"0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"0 0 31 2 *", "2026-03-01T00:00:00Z", "never"},
		{"@weekly", "2026-11-23T00:00:00Z", "2026-11-29T00:00:00Z"},
		{"@every 90m", "2026-11-23T00:00:00Z", "2026-11-23T01:30:00Z"},
		{"0 9-17/4 * * 1-5", "2026-11-20T18:00:00Z", "2026-11-23T09:00:00Z"},
	} {
		s, err := batch.ParseSchedule(c.expr)
		if err != nil {
			t.Errorf("%s: %v", c.expr, err)
			continue
		}
		from, _ := time.Parse(time.RFC3339, c.from)
		got := "never"
		if n := s.Next(from); !n.IsZero() {
			got = n.Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%s after %s: %s, want %s", c.expr, c.from, got, c.want)
		}
	}
	for _, bad := range []string{"", "* * * *", "60 * * * *", "* * 0 * *", "x * * * *", "*/0 * * * *", "5-1 * * * *", "* * * * 7", "@never", "@every x", "* * * * * *"} {
		if _, err := batch.ParseSchedule(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestScheduleAcrossClockChange(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone data on this machine: ", err)
	}
	s, _ := batch.ParseSchedule("30 2 * * *")
	at := time.Date(2026, 3, 28, 12, 0, 0, 0, berlin) // 02:30 does not exist on the 29th
	if got := s.Next(at).Format(time.RFC3339); got != "2026-03-30T02:30:00+02:00" {
		t.Errorf("skipped hour: %s", got)
	}
}

func cron(change ...func(*batchv1.CronJob)) *batchv1.CronJob {
	cj := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "c", CreationTimestamp: metav1.NewTime(enginetest.Epoch)},
		Spec: batchv1.CronJobSpec{Schedule: "*/5 * * * *", ConcurrencyPolicy: batchv1.AllowConcurrent,
			SuccessfulJobsHistoryLimit: new(int32(1)), FailedJobsHistoryLimit: new(int32(1))}}
	for _, f := range change {
		f(cj)
	}
	return cj
}

func policy(p batchv1.ConcurrencyPolicy) func(*batchv1.CronJob) {
	return func(cj *batchv1.CronJob) { cj.Spec.ConcurrencyPolicy = p }
}

func world(t *testing.T, cj *batchv1.CronJob) *enginetest.World {
	w := enginetest.New(t, cj)
	return w.Build(New(w.Env)).Settle()
}

func jobs(w *enginetest.World) []batchv1.Job {
	l, _ := w.Client.BatchV1().Jobs("ns").List(w.T.Context(), metav1.ListOptions{})
	slices.SortFunc(l.Items, func(a, b batchv1.Job) int { return strings.Compare(a.Name, b.Name) })
	return l.Items
}

// show lists the Jobs' minutes since the epoch of the World, ended ones in brackets.
func show(w *enginetest.World) string {
	var out []string
	for _, j := range jobs(w) {
		var n int64
		_, _ = fmt.Sscanf(j.Name, "c-%d", &n)
		s := fmt.Sprint(n - enginetest.Epoch.Unix()/60)
		if len(j.Status.Conditions) > 0 {
			s = "(" + s + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func end(w *enginetest.World, how batchv1.JobConditionType) {
	for _, j := range jobs(w) {
		if len(j.Status.Conditions) == 0 {
			j.Status.Conditions = []batchv1.JobCondition{{Type: how, Status: corev1.ConditionTrue}}
			j.Status.StartTime = &j.CreationTimestamp
			j.Status.CompletionTime = new(metav1.NewTime(w.Clock.Now()))
			w.Put(&j)
		}
	}
	w.Settle()
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestStartsOnTimeAndKeepsHistory(t *testing.T) {
	w := world(t, cron())
	w.Step(4 * time.Minute).Settle()
	expect(t, "at 4", show(w), "")
	w.Step(time.Minute + time.Second).Settle()
	expect(t, "at 5", show(w), "5")
	cj, _ := w.Client.BatchV1().CronJobs("ns").Get(t.Context(), "c", metav1.GetOptions{})
	if len(cj.Status.Active) != 1 || !cj.Status.LastScheduleTime.Equal(new(metav1.NewTime(enginetest.Epoch.Add(5*time.Minute)))) {
		t.Errorf("status %+v", cj.Status)
	}
	end(w, batchv1.JobComplete)
	w.Step(5 * time.Minute).Settle()
	end(w, batchv1.JobComplete)
	w.Step(5 * time.Minute).Settle()
	expect(t, "at 15", show(w), "(10) 15")
	end(w, batchv1.JobFailed)
	expect(t, "failed kept beside", show(w), "(10) (15)")
	cj, _ = w.Client.BatchV1().CronJobs("ns").Get(t.Context(), "c", metav1.GetOptions{})
	if len(cj.Status.Active) != 0 || cj.Status.LastSuccessfulTime == nil {
		t.Errorf("status %+v", cj.Status)
	}
}

func TestConcurrency(t *testing.T) {
	for p, want := range map[batchv1.ConcurrencyPolicy]string{batchv1.AllowConcurrent: "5 10", batchv1.ForbidConcurrent: "5", batchv1.ReplaceConcurrent: "10"} {
		w := world(t, cron(policy(p)))
		w.Step(5*time.Minute + time.Second).Settle()
		w.Step(5 * time.Minute).Settle()
		expect(t, string(p), show(w), want)
	}
}

func TestSuspended(t *testing.T) {
	w := world(t, cron(func(cj *batchv1.CronJob) { cj.Spec.Suspend = new(true) }))
	w.Step(time.Hour).Settle()
	expect(t, "jobs", show(w), "")
}

// The controller was down: only the last missed start is made up for, and none after the deadline.
func TestMissedStarts(t *testing.T) {
	late := func(cj *batchv1.CronJob) {
		cj.CreationTimestamp = metav1.NewTime(enginetest.Epoch.Add(-62 * time.Minute))
	}
	expect(t, "last only", show(world(t, cron(late))), "0")
	w := world(t, cron(late, func(cj *batchv1.CronJob) {
		cj.Spec.Schedule, cj.Spec.StartingDeadlineSeconds = "30 * * * *", new(int64(60))
	}))
	expect(t, "deadline", show(w), "")
	w = world(t, cron(func(cj *batchv1.CronJob) {
		cj.CreationTimestamp = metav1.NewTime(enginetest.Epoch.Add(-20000 * time.Hour))
	}))
	expect(t, "years", show(w), "0")
	if ev := strings.Join(w.Events(), "|"); !strings.Contains(ev, "Warning TooManyMissedTimes") {
		t.Errorf("events %s", ev)
	}
}

func TestStaleCacheStartsOneJob(t *testing.T) {
	w := world(t, cron())
	w.Clock.Step(5*time.Minute + time.Second)
	for range 3 {
		_ = w.Reconcile("ns/c")
	}
	expect(t, "jobs", show(w), "5")
}

// What the controller itself wrote a moment ago is no news to it, whichever cache lags.
func TestLaggingCachesMakeNoWarnings(t *testing.T) {
	for _, fresh := range []engine.Resource{"jobs.batch", "cronjobs.batch"} {
		w := world(t, cron())
		w.Clock.Step(5*time.Minute + time.Second)
		for range 2 {
			if err := w.Reconcile("ns/c"); err != nil {
				t.Fatal(err)
			}
			w.Observe(fresh)
		}
		for _, e := range w.Events() {
			if strings.Contains(e, "UnexpectedJob") || strings.Contains(e, "MissingJob") {
				t.Errorf("with %s fresh: %s", fresh, e)
			}
		}
		expect(t, "jobs", show(w), "5")
	}
}

func TestBadSchedule(t *testing.T) {
	w := world(t, cron(func(cj *batchv1.CronJob) { cj.Spec.Schedule = "soon" }))
	if ev := strings.Join(w.Events(), "|"); !strings.HasPrefix(ev, `Warning UnparseableSchedule unparseable schedule: "soon"`) {
		t.Errorf("events %s", ev)
	}
}

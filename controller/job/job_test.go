package job

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/controller/enginetest"
)

func pi(completions *int32, parallelism int32, change ...func(*batchv1.Job)) *batchv1.Job {
	l := map[string]string{"job-name": "pi"}
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pi", UID: "pi"},
		Spec: batchv1.JobSpec{Completions: completions, Parallelism: &parallelism, BackoffLimit: new(int32(6)),
			Selector: &metav1.LabelSelector{MatchLabels: l},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: l},
				Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}}}}}
	for _, f := range change {
		f(j)
	}
	return j
}

func asIndexed(j *batchv1.Job) { j.Spec.CompletionMode = new(batchv1.IndexedCompletion) }

func world(t *testing.T, objs ...runtime.Object) *enginetest.World {
	w := enginetest.New(t, objs...)
	return w.Build(New(w.Env))
}

func get(w *enginetest.World) *batchv1.Job {
	j, err := w.Client.BatchV1().Jobs("ns").Get(context.Background(), "pi", metav1.GetOptions{})
	if err != nil {
		w.T.Fatal(err)
	}
	return j.DeepCopy()
}

// unfinished lists the Pods that neither succeeded nor failed.
func unfinished(w *enginetest.World) []corev1.Pod {
	l, _ := w.Client.CoreV1().Pods("ns").List(context.Background(), metav1.ListOptions{})
	out := slices.DeleteFunc(l.Items, func(p corev1.Pod) bool { return p.Status.Phase != "" })
	slices.SortFunc(out, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// end finishes n Pods in the phase.
func end(w *enginetest.World, n int, phase corev1.PodPhase) *enginetest.World {
	for i, p := range unfinished(w) {
		if i == n {
			break
		}
		p.Status.Phase = phase
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 3, FinishedAt: metav1.NewTime(w.Clock.Now())}}}}
		w.Put(&p)
	}
	return w.Settle()
}

// show prints counters and conditions.
func show(w *enginetest.World) string {
	s := get(w).Status
	out := fmt.Sprintf("active %d succeeded %d failed %d", s.Active, s.Succeeded, s.Failed)
	for _, c := range s.Conditions {
		if c.Status == corev1.ConditionTrue {
			out += fmt.Sprintf(", %s %s", c.Type, c.Reason)
		}
	}
	return out
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func noFinalizers(t *testing.T, w *enginetest.World) {
	t.Helper()
	l, _ := w.Client.CoreV1().Pods("ns").List(t.Context(), metav1.ListOptions{})
	for _, p := range l.Items {
		if len(p.Finalizers) > 0 {
			t.Errorf("pod %s keeps finalizers %v", p.Name, p.Finalizers)
		}
	}
}

func TestRunsToCompletion(t *testing.T) {
	w := world(t, pi(new(int32(3)), 2)).Settle()
	expect(t, "start", show(w), "active 2 succeeded 0 failed 0")
	end(w, 1, corev1.PodSucceeded)
	expect(t, "one done", show(w), "active 2 succeeded 1 failed 0")
	end(w, 2, corev1.PodSucceeded)
	expect(t, "all done", show(w), "active 0 succeeded 3 failed 0, SuccessCriteriaMet CompletionsReached, Complete CompletionsReached")
	if s := get(w).Status; s.CompletionTime == nil || s.StartTime == nil || len(s.UncountedTerminatedPods.Succeeded) != 0 {
		t.Errorf("status %+v", s)
	}
	noFinalizers(t, w)
	if ev := strings.Join(w.Events(), "|"); !strings.HasSuffix(ev, "Normal Completed Job completed") {
		t.Errorf("events %s", ev)
	}
}

func TestWorkQueue(t *testing.T) {
	w := world(t, pi(nil, 2)).Settle()
	end(w, 1, corev1.PodSucceeded)
	expect(t, "no new worker", show(w), "active 1 succeeded 1 failed 0")
	end(w, 1, corev1.PodSucceeded)
	expect(t, "end", show(w), "active 0 succeeded 2 failed 0, SuccessCriteriaMet CompletionsReached, Complete CompletionsReached")
}

func TestBackoffAndLimit(t *testing.T) {
	w := world(t, pi(new(int32(1)), 1, func(j *batchv1.Job) { j.Spec.BackoffLimit = new(int32(1)) })).Settle()
	end(w, 1, corev1.PodFailed)
	expect(t, "waits", show(w), "active 0 succeeded 0 failed 1")
	w.Step(9 * time.Second).Settle()
	expect(t, "at 9 s", show(w), "active 0 succeeded 0 failed 1")
	w.Step(time.Second).Settle()
	expect(t, "at 10 s", show(w), "active 1 succeeded 0 failed 1")
	end(w, 1, corev1.PodFailed)
	expect(t, "limit", show(w), "active 0 succeeded 0 failed 2, FailureTarget BackoffLimitExceeded, Failed BackoffLimitExceeded")
	if ev := strings.Join(w.Events(), "|"); !strings.HasSuffix(ev, "Warning BackoffLimitExceeded Job has reached the specified backoff limit") {
		t.Errorf("events %s", ev)
	}
}

func TestDeadlineDeletesPods(t *testing.T) {
	w := world(t, pi(new(int32(1)), 1, func(j *batchv1.Job) { j.Spec.ActiveDeadlineSeconds = new(int64(60)) })).Settle()
	w.Step(time.Minute).Settle()
	expect(t, "end", show(w), "active 0 succeeded 0 failed 0, FailureTarget DeadlineExceeded, Failed DeadlineExceeded")
	if n := len(unfinished(w)); n != 0 {
		t.Errorf("%d pods left", n)
	}
}

func TestSuspendAndResume(t *testing.T) {
	w := world(t, pi(new(int32(1)), 1, func(j *batchv1.Job) { j.Spec.Suspend = new(true) })).Settle()
	expect(t, "suspended", show(w), "active 0 succeeded 0 failed 0, Suspended JobSuspended")
	if get(w).Status.StartTime != nil {
		t.Error("has a start time")
	}
	j := get(w)
	j.Spec.Suspend = new(false)
	w.Put(j)
	w.Settle()
	expect(t, "resumed", show(w), "active 1 succeeded 0 failed 0")
	expect(t, "events", strings.Join(w.Events()[:2], "|"), "Normal Suspended Job suspended|Normal Resumed Job resumed")
}

func TestIndexed(t *testing.T) {
	w := world(t, pi(new(int32(4)), 2, asIndexed)).Settle()
	p := unfinished(w)[0]
	expect(t, "pod", fmt.Sprintln(p.Annotations[batchv1.JobCompletionIndexAnnotation], p.Labels[batchv1.JobCompletionIndexAnnotation],
		p.Spec.Hostname, p.Spec.Containers[0].Env[0].Name, strings.HasPrefix(p.Name, "pi-0-")), "0 0 pi-0 JOB_COMPLETION_INDEX true\n")
	end(w, 1, corev1.PodSucceeded)
	expect(t, "indexes", get(w).Status.CompletedIndexes, "0")
	end(w, 3, corev1.PodSucceeded)
	end(w, 3, corev1.PodSucceeded)
	expect(t, "indexes", get(w).Status.CompletedIndexes, "0-3")
	expect(t, "end", show(w), "active 0 succeeded 4 failed 0, SuccessCriteriaMet CompletionsReached, Complete CompletionsReached")
	noFinalizers(t, w)
}

func TestFailurePolicy(t *testing.T) {
	rule := func(a batchv1.PodFailurePolicyAction) func(*batchv1.Job) {
		return func(j *batchv1.Job) {
			j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: a,
				OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{3}}}}}
		}
	}
	w := world(t, pi(new(int32(1)), 1, rule(batchv1.PodFailurePolicyActionFailJob))).Settle()
	end(w, 1, corev1.PodFailed)
	expect(t, "FailJob", show(w), "active 0 succeeded 0 failed 1, FailureTarget PodFailurePolicy, Failed PodFailurePolicy")
	w = world(t, pi(new(int32(1)), 1, rule(batchv1.PodFailurePolicyActionIgnore), func(j *batchv1.Job) { j.Spec.BackoffLimit = new(int32(0)) })).Settle()
	end(w, 1, corev1.PodFailed)
	expect(t, "Ignore", show(w), "active 1 succeeded 0 failed 0")
}

// asPerIndex gives each of the Job's indexes one more try.
func asPerIndex(j *batchv1.Job) {
	asIndexed(j)
	j.Spec.BackoffLimit, j.Spec.BackoffLimitPerIndex = new(int32(math.MaxInt32)), new(int32(1))
}

// endIndex finishes the Pod of an index, and returns the mark it carried.
func endIndex(w *enginetest.World, index string, phase corev1.PodPhase, code int32) string {
	for _, p := range unfinished(w) {
		if p.Annotations[batchv1.JobCompletionIndexAnnotation] != index {
			continue
		}
		p.Status.Phase = phase
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, FinishedAt: metav1.NewTime(w.Clock.Now())}}}}
		w.Put(&p)
		w.Settle()
		return p.Annotations[batchv1.JobIndexFailureCountAnnotation]
	}
	w.T.Fatalf("index %s has no pod", index)
	return ""
}

func TestLimitPerIndex(t *testing.T) {
	w := world(t, pi(new(int32(2)), 2, asPerIndex)).Settle()
	expect(t, "mark of the first", endIndex(w, "0", corev1.PodFailed, 3), "0")
	expect(t, "one failed, held until it is replaced", show(w), "active 1 succeeded 0 failed 0")
	w.Step(10 * time.Second).Settle()
	expect(t, "replaced", show(w), "active 2 succeeded 0 failed 1")
	expect(t, "mark of the second", endIndex(w, "0", corev1.PodFailed, 3), "1")
	expect(t, "given up", show(w), "active 1 succeeded 0 failed 2")
	expect(t, "failed indexes", *get(w).Status.FailedIndexes, "0")
	w.Step(time.Hour).Settle()
	expect(t, "not tried again", show(w), "active 1 succeeded 0 failed 2")
	endIndex(w, "1", corev1.PodSucceeded, 0)
	expect(t, "end", show(w), "active 0 succeeded 1 failed 2, FailureTarget FailedIndexes, Failed FailedIndexes")
	noFinalizers(t, w)
}

func TestMaxFailedIndexes(t *testing.T) {
	w := world(t, pi(new(int32(4)), 4, asPerIndex, func(j *batchv1.Job) {
		j.Spec.BackoffLimitPerIndex, j.Spec.MaxFailedIndexes = new(int32(0)), new(int32(1))
	})).Settle()
	endIndex(w, "0", corev1.PodFailed, 3)
	expect(t, "one may fail", show(w), "active 3 succeeded 0 failed 1")
	endIndex(w, "2", corev1.PodFailed, 3)
	expect(t, "two may not", show(w), "active 0 succeeded 0 failed 2, FailureTarget MaxFailedIndexesExceeded, Failed MaxFailedIndexesExceeded")
	expect(t, "failed indexes", *get(w).Status.FailedIndexes, "0,2")
}

func TestFailIndexPolicy(t *testing.T) {
	w := world(t, pi(new(int32(2)), 2, asPerIndex, func(j *batchv1.Job) {
		rule := func(a batchv1.PodFailurePolicyAction, code int32) batchv1.PodFailurePolicyRule {
			return batchv1.PodFailurePolicyRule{Action: a, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
				Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{code}}}
		}
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
			rule(batchv1.PodFailurePolicyActionFailIndex, 3), rule(batchv1.PodFailurePolicyActionIgnore, 4)}}
	})).Settle()
	endIndex(w, "0", corev1.PodFailed, 3)
	expect(t, "FailIndex gives up at once", *get(w).Status.FailedIndexes, "0")
	endIndex(w, "1", corev1.PodFailed, 4)
	w.Step(10 * time.Second).Settle()
	expect(t, "Ignore does not count", endIndex(w, "1", corev1.PodSucceeded, 0), "0")
	expect(t, "end", show(w), "active 0 succeeded 1 failed 1, FailureTarget FailedIndexes, Failed FailedIndexes")
}

// The controller dies between writing the status and taking the finalizer off, at any step: each
// Pod is counted once.
func TestCrashCountsEachPodOnce(t *testing.T) {
	w := world(t, pi(new(int32(2)), 2)).Settle()
	for _, p := range unfinished(w) {
		p.Status.Phase = corev1.PodSucceeded
		w.Put(&p)
	}
	w.Observe()
	c := &controller{env: w.Env}
	j := get(w)
	o := observed{job: j, settled: true, now: w.Clock.Now()}
	l, _ := w.Client.CoreV1().Pods("ns").List(t.Context(), metav1.ListOptions{})
	for i := range l.Items {
		o.pods = append(o.pods, &l.Items[i])
	}
	p := planJob(o)
	j.Status = p.status // written …
	w.Put(j)
	if len(p.strip) != 2 || len(p.status.UncountedTerminatedPods.Succeeded) != 2 || p.status.Succeeded != 0 {
		t.Fatalf("plan %+v", p)
	}
	_ = c // … and then the crash: nothing is stripped
	w.Build(New(w.Env)).Settle()
	expect(t, "after the restart", show(w), "active 0 succeeded 2 failed 0, SuccessCriteriaMet CompletionsReached, Complete CompletionsReached")
}

func TestPodDeletedByUserCountsAsFailed(t *testing.T) {
	w := world(t, pi(new(int32(1)), 1)).Settle()
	p := unfinished(w)[0]
	p.DeletionTimestamp = new(metav1.NewTime(w.Clock.Now()))
	w.Put(&p)
	w.Settle()
	w.Step(10 * time.Second).Settle()
	expect(t, "replaced", show(w), "active 1 succeeded 0 failed 1")
}

// A Pod counted as failed because it was being deleted, which then succeeds after all, is listed once.
func TestLateSuccessIsNotListedTwice(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "p", Finalizers: []string{batchv1.JobTrackingFinalizer},
		DeletionTimestamp: new(metav1.NewTime(enginetest.Epoch))}}
	j := pi(new(int32(1)), 1)
	j.Status = planJob(observed{job: j, pods: []*corev1.Pod{p}, settled: true, now: enginetest.Epoch}).status
	p.Status.Phase = corev1.PodSucceeded
	s := planJob(observed{job: j, pods: []*corev1.Pod{p}, settled: true, now: enginetest.Epoch}).status
	if u := s.UncountedTerminatedPods; len(u.Failed) != 1 || len(u.Succeeded) != 0 {
		t.Errorf("uncounted %+v", u)
	}
}

func TestJobGoneFreesItsPods(t *testing.T) {
	w := world(t, pi(new(int32(1)), 1)).Settle()
	w.Remove(get(w))
	w.Settle()
	noFinalizers(t, w)
}

func TestStaleCache(t *testing.T) {
	w := world(t, pi(new(int32(3)), 3)).Observe()
	for range 3 {
		_ = w.Reconcile("ns/pi")
		w.Observe("jobs.batch")
	}
	if n := len(unfinished(w)); n != 3 {
		t.Errorf("%d pods, want 3", n)
	}
}

func TestIndexText(t *testing.T) {
	for _, s := range []string{"", "0", "0,1", "0-2", "1,3-5,7,8"} {
		if got := formatIndexes(parseIndexes(s, 100)); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	if got := formatIndexes(parseIndexes("0-1000000000,x,2-", 3)); got != "0-2" {
		t.Errorf("limit: %q", got)
	}
}

func TestStreak(t *testing.T) {
	at := enginetest.Epoch
	for n, want := range map[int]time.Duration{0: 0, 1: 10 * time.Second, 2: 20 * time.Second, 6: 320 * time.Second, 7: 10 * time.Minute, 99: 10 * time.Minute} {
		if got := (streak{n, at}).wait(at); got != want {
			t.Errorf("%d failures: %v, want %v", n, got, want)
		}
	}
}

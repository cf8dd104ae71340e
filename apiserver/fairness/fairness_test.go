package fairness

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/apiserver/initial"
	"github.com/skiff-project/skiff/auth"
)

func newLimiter(total int) (*Limiter, *clocktesting.FakeClock) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	l := New(total, c)
	l.Configure(initial.PriorityLevels(), initial.FlowSchemas())
	return l, c
}

func as(user string, groups ...string) *auth.Attributes {
	return &auth.Attributes{User: auth.User{Name: user, Groups: append(groups, auth.GroupAuthenticated)}, Verb: "get", Resource: "pods", Namespace: "a", ResourceRequest: true}
}

func one(int) Work { return Work{Seats: 1} }

func TestWhereTheStandardSchemasPutRequests(t *testing.T) {
	l, _ := newLimiter(600)
	lease := as("system:kube-scheduler")
	lease.APIGroup, lease.Resource, lease.Verb, lease.Namespace = "coordination.k8s.io", "leases", "update", "kube-system"
	nodeStatus := as("system:node:n", auth.GroupNodes)
	nodeStatus.Resource, nodeStatus.Subresource, nodeStatus.Verb, nodeStatus.Namespace = "nodes", "status", "patch", ""
	probe := &auth.Attributes{User: auth.User{Name: auth.UserAnonymous, Groups: []string{auth.GroupUnauthenticated}}, Verb: "get", Path: "/readyz/etcd"}
	for _, c := range []struct {
		what, schema, level string
		a                   *auth.Attributes
	}{
		{"an administrator", "exempt", "exempt", as("admin", auth.GroupMasters)},
		{"a probe", "probes", "exempt", probe},
		{"a leader's lease", "system-leader-election", "leader-election", lease},
		{"a node's status", "system-node-high", "node-high", nodeStatus},
		{"what else a node wants", "system-nodes", "system", as("system:node:n", auth.GroupNodes)},
		{"the controllers", "kube-controller-manager", "workload-high", as("system:kube-controller-manager")},
		{"a service account of kube-system", "kube-system-service-accounts", "workload-high", as("system:serviceaccount:kube-system:x", auth.GroupServiceAccounts)},
		{"another service account", "service-accounts", "workload-low", as("system:serviceaccount:a:x", auth.GroupServiceAccounts)},
		{"a user", "global-default", "global-default", as("u")},
		{"who is in no group", "catch-all", "catch-all", &auth.Attributes{User: auth.User{Name: "x"}, Verb: "get", Path: "/"}},
	} {
		if s := l.classify(c.a); s.name != c.schema || s.level.name != c.level {
			t.Errorf("%s: %s of %s, want %s of %s", c.what, s.name, s.level.name, c.schema, c.level)
		}
	}
}

func TestLimitsAreUpstreams(t *testing.T) {
	l, _ := newLimiter(600)
	for _, lv := range l.levels { // of kube-apiserver v1.37 with its default flags
		want := map[string][2]int{"exempt": {0, 0}, "catch-all": {13, 13}, "system": {74, 50}, "node-high": {98, 73}, "leader-election": {25, 25},
			"workload-high": {98, 49}, "workload-low": {245, 24}, "global-default": {49, 24}}[lv.name]
		if lv.nominal != want[0] || lv.lowest != want[1] {
			t.Errorf("%s: nominal %d, lowest %d, want %v", lv.name, lv.nominal, lv.lowest, want)
		}
	}
}

func enter(t *testing.T, l *Limiter, a *auth.Attributes, w Work) *Pass {
	t.Helper()
	p, err := l.Enter(t.Context(), a, time.Hour, func(int) Work { return w })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// queued begins a request that has to wait, and returns where its outcome comes.
func queued(t *testing.T, l *Limiter, a *auth.Attributes, ctx context.Context, wait time.Duration) chan error {
	t.Helper()
	out := make(chan error, 1)
	before := waitingIn(l)
	go func() { _, err := l.Enter(ctx, a, wait, one); out <- err }()
	for range 2000 {
		if waitingIn(l) > before || len(out) > 0 {
			return out
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the request neither waits nor ends")
	return nil
}

func waitingIn(l *Limiter) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lv := range l.levels {
		n += lv.waiting
	}
	return n
}

func level2(name string, shares, queues, hand, longest int32) *flowcontrolv1.PriorityLevelConfiguration {
	zero := int32(0)
	spec := flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: &shares, BorrowingLimitPercent: &zero}
	spec.LimitResponse.Type = flowcontrolv1.LimitResponseTypeReject
	if queues > 0 {
		spec.LimitResponse = flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeQueue,
			Queuing: &flowcontrolv1.QueuingConfiguration{Queues: queues, HandSize: hand, QueueLengthLimit: longest}}
	}
	return &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: &spec}}
}

// oneLevel is a limiter whose requests all go to one level, by user.
func oneLevel(total int, queues, hand, longest int32) (*Limiter, *clocktesting.FakeClock) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	l := New(total, c)
	everybody := []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: "*"}}}
	all := []string{"*"}
	l.Configure([]*flowcontrolv1.PriorityLevelConfiguration{level2("l", 10, queues, hand, longest)}, []*flowcontrolv1.FlowSchema{{
		ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: flowcontrolv1.FlowSchemaSpec{
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: "l"},
			DistinguisherMethod:        &flowcontrolv1.FlowDistinguisherMethod{Type: flowcontrolv1.FlowDistinguisherMethodByUserType},
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{{Subjects: everybody, ResourceRules: []flowcontrolv1.ResourcePolicyRule{
				{Verbs: all, APIGroups: all, Resources: all, Namespaces: all, ClusterScope: true}}}},
		}}})
	return l, c
}

func TestARequestWaitsForSeats(t *testing.T) {
	l, _ := oneLevel(2, 4, 2, 10)
	a, b := enter(t, l, as("u"), Work{Seats: 1}), enter(t, l, as("u"), Work{Seats: 1})
	third := queued(t, l, as("v"), t.Context(), time.Hour)
	a.Leave()
	a.Leave() // a second time changes nothing
	if err := <-third; err != nil {
		t.Fatal(err)
	}
	if lv := l.levels[0]; lv.seats != 2 || lv.waiting != 0 {
		t.Errorf("%d seats, %d waiting", lv.seats, lv.waiting)
	}
	b.Leave()
}

func TestARequestIsRefused(t *testing.T) {
	t.Run("where there are no queues", func(t *testing.T) {
		l, _ := oneLevel(1, 0, 0, 0)
		enter(t, l, as("u"), Work{Seats: 1})
		if _, err := l.Enter(t.Context(), as("v"), time.Hour, one); !errors.Is(err, ErrLimit) {
			t.Error(err)
		}
	})
	t.Run("when its queue is full", func(t *testing.T) {
		l, _ := oneLevel(1, 1, 1, 1)
		enter(t, l, as("u"), Work{Seats: 1})
		queued(t, l, as("u"), t.Context(), time.Hour)
		if _, err := l.Enter(t.Context(), as("u"), time.Hour, one); !errors.Is(err, ErrQueueFull) {
			t.Error(err)
		}
	})
	t.Run("when it waited too long", func(t *testing.T) {
		l, c := oneLevel(1, 1, 1, 9)
		enter(t, l, as("u"), Work{Seats: 1})
		out := queued(t, l, as("u"), t.Context(), 15*time.Second)
		for !c.HasWaiters() {
			time.Sleep(time.Millisecond)
		}
		c.Step(15 * time.Second)
		if err := <-out; !errors.Is(err, ErrTimeOut) {
			t.Error(err)
		}
	})
	t.Run("when its client left", func(t *testing.T) {
		l, _ := oneLevel(1, 1, 1, 9)
		p := enter(t, l, as("u"), Work{Seats: 1})
		ctx, cancel := context.WithCancel(t.Context())
		out := queued(t, l, as("u"), ctx, time.Hour)
		cancel()
		if err := <-out; !errors.Is(err, ErrCancelled) || waitingIn(l) != 0 {
			t.Error(err, waitingIn(l))
		}
		p.Leave()
		if lv := l.levels[0]; lv.seats != 0 || lv.active != 0 {
			t.Errorf("%d seats, %d queues active", lv.seats, lv.active)
		}
	})
}

// A client with hundreds of requests leaves another its turn: each of its
// requests waits for one of the crowd's at most, not for all of them.
func TestACrowdDoesNotStarveOthers(t *testing.T) {
	l, c := oneLevel(1, 64, 6, 100)
	running := enter(t, l, as("crowd"), Work{Seats: 1})
	type done struct {
		who  string
		pass *Pass
	}
	turns := make(chan done, 400)
	begin := func(who string) {
		before := waitingIn(l)
		go func() {
			p, err := l.Enter(t.Context(), as(who), time.Hour, one)
			if err == nil { // else the test is over
				turns <- done{who, p}
			}
		}()
		for waitingIn(l) == before {
			time.Sleep(100 * time.Microsecond)
		}
	}
	for range 200 {
		begin("crowd")
	}
	for range 5 {
		begin("quiet")
	}
	order := ""
	for range 24 {
		c.Step(10 * time.Millisecond)
		running.Leave()
		d := <-turns
		running = d.pass
		order += d.who[:1]
	}
	quiet := 0
	for i, who := range order {
		if who == 'q' {
			if quiet++; quiet == 5 && i > 18 {
				t.Errorf("the quiet client's last request was number %d: %s", i, order)
			}
		}
	}
	if quiet != 5 {
		t.Errorf("the quiet client had %d turns of the first 24: %s", quiet, order)
	}
}

func TestAWideRequestTakesItsSeats(t *testing.T) {
	l, c := oneLevel(10, 4, 2, 10)
	p := enter(t, l, as("u"), Work{Seats: 4, After: 5 * time.Millisecond})
	if lv := l.levels[0]; lv.seats != 4 {
		t.Fatalf("%d seats", lv.seats)
	}
	p.Leave()
	if lv := l.levels[0]; lv.seats != 4 {
		t.Error("the watchers are not told yet, and the seats are free")
	}
	c.Step(5 * time.Millisecond)
	for range 1000 {
		l.mu.Lock()
		seats := l.levels[0].seats
		l.mu.Unlock()
		if seats == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if lv := l.levels[0]; lv.seats != 0 {
		t.Errorf("%d seats", lv.seats)
	}
	enter(t, l, as("u"), Work{Seats: 99}).Leave() // wider than all: alone
}

func TestUnusedSeatsAreLent(t *testing.T) {
	l, c := newLimiter(600)
	passes := make(chan *Pass, 300)
	arrive := func(n int) { // of as many users
		for i := range n {
			go func() {
				if p, err := l.Enter(t.Context(), as(fmt.Sprint("u", i)), time.Hour, one); err == nil {
					passes <- p
				}
			}()
		}
	}
	state := func() (running, waiting int, seats map[string]int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		seats = map[string]int{}
		for _, lv := range l.levels {
			running, waiting, seats[lv.name] = running+lv.running, waiting+lv.waiting, lv.current
			if lv.current < lv.lowest {
				t.Errorf("%s has %d seats, less than it must keep: %d", lv.name, lv.current, lv.lowest)
			}
		}
		return running, waiting, seats
	}
	reach := func(running, waiting int) {
		t.Helper()
		for range 3000 {
			if r, w, _ := state(); r == running && w == waiting {
				return
			}
			time.Sleep(time.Millisecond)
		}
		r, w, seats := state()
		t.Fatalf("%d run and %d wait, want %d and %d: %v", r, w, running, waiting, seats)
	}
	arrive(200) // four times what global-default has of its own
	reach(49, 151)
	c.Step(adjustEvery)
	arrive(1)
	reach(201, 0)
	if _, _, seats := state(); seats["workload-low"] < 24 || seats["system"] < 50 {
		t.Errorf("%v", seats)
	}
	for range 201 {
		(<-passes).Leave()
	}
	reach(0, 0)
}

func TestDivideKeepsBoundsAndSum(t *testing.T) {
	shares := []share{{10, 100, 80}, {0, 20, 40}, {5, 100, 20}}
	got := divide(100, shares)
	sum := 0.0
	for i, v := range got {
		sum += v
		if v < shares[i].low-1e-6 || v > shares[i].high+1e-6 {
			t.Errorf("%d: %v is outside of %v", i, v, shares[i])
		}
	}
	if math.Abs(sum-100) > 1e-6 || math.Abs(got[0]/got[2]-4) > 1e-6 {
		t.Errorf("%v", got)
	}
}

func TestWorkIsEstimatedAsUpstream(t *testing.T) {
	for _, c := range []struct {
		n    int
		each int64
		most int
		want int
	}{{0, 0, 10, 1}, {10, 1000, 10, 1}, {300, 1000, 10, 3}, {1_000_000, 1000, 0, 10}, {1_000_000, 1000, 4, 4}} {
		if got := List(c.n, c.each, c.most).Seats; got != c.want {
			t.Errorf("a list of %d: %d seats, want %d", c.n, got, c.want)
		}
	}
	l, _ := newLimiter(600)
	var ends []func()
	watch := as("w")
	watch.Verb, watch.Namespace = "watch", ""
	for range 25 {
		ends = append(ends, l.Watching(watch))
	}
	create := as("u")
	create.Verb = "create"
	if w := l.Write(create, 8); w.Seats != 3 || w.After != 5*time.Millisecond {
		t.Errorf("a write that 25 watch: %+v", w)
	}
	for range 475 {
		ends = append(ends, l.Watching(watch))
	}
	if w := l.Write(create, 8); w.Seats != 8 || w.After != 50*5*time.Millisecond/8 {
		t.Errorf("a write that 500 watch: %+v", w)
	}
	for _, end := range ends {
		end()
	}
	if w := l.Write(create, 8); w.Seats != 1 || len(l.watches) != 0 {
		t.Errorf("a write nobody watches: %+v, %d keys kept", w, len(l.watches))
	}
}

// A hand has no card twice, and every card is dealt.
func TestAHandIsDealt(t *testing.T) {
	lv := &level{queues: make([]queue, 8), hand: 3}
	dealt := map[*queue]int{}
	for i := range 4000 {
		s := &schema{spec: &flowcontrolv1.FlowSchemaSpec{DistinguisherMethod: &flowcontrolv1.FlowDistinguisherMethod{Type: flowcontrolv1.FlowDistinguisherMethodByUserType}}}
		q := lv.deal(flow(s, as(fmt.Sprint(i))))
		dealt[q]++
		q.seats++ // the next of them goes elsewhere
	}
	for i := range lv.queues {
		if n := dealt[&lv.queues[i]]; n < 450 || n > 550 {
			t.Errorf("queue %d was dealt %d times of 4000", i, n)
		}
	}
}

func BenchmarkEnter(b *testing.B) {
	l := New(600, clock.RealClock{})
	l.Configure(initial.PriorityLevels(), initial.FlowSchemas())
	for name, a := range map[string]*auth.Attributes{"exempt": as("admin", auth.GroupMasters), "user": as("u")} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := l.Enter(b.Context(), a, time.Second, one)
				if err != nil {
					b.Fatal(err)
				}
				p.Leave()
			}
		})
	}
}

// The three tables read as upstream's, character for character.
func TestDump(t *testing.T) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	g := NewGate(Limits{ReadOnly: 1, Mutating: 1}, 100, c)
	level := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "narrow"}}
	level.Spec.Type = flowcontrolv1.PriorityLevelEnablementLimited
	level.Spec.Limited = &flowcontrolv1.LimitedPriorityLevelConfiguration{LimitResponse: flowcontrolv1.LimitResponse{
		Type: flowcontrolv1.LimitResponseTypeQueue, Queuing: &flowcontrolv1.QueuingConfiguration{Queues: 2, HandSize: 1, QueueLengthLimit: 10}}}
	everybody := initial.FlowSchemas()[0].DeepCopy()
	for _, fs := range initial.FlowSchemas() {
		if fs.Name == flowcontrolv1.FlowSchemaNameCatchAll {
			everybody = fs.DeepCopy()
		}
	}
	everybody.Spec.PriorityLevelConfiguration.Name = "narrow"
	g.Limiter.Configure([]*flowcontrolv1.PriorityLevelConfiguration{level}, []*flowcontrolv1.FlowSchema{everybody})
	table := func(name, query string) string {
		w := httptest.NewRecorder()
		q, _ := url.ParseQuery(query)
		if !g.Dump(w, "/debug/api_priority_and_fairness/dump_"+name, q) {
			t.Fatal(name, "is not there")
		}
		return w.Body.String()
	}
	var passes []*Pass
	for i := range 2 { // as many as run
		p, err := g.Limiter.Enter(t.Context(), as("u"), time.Hour, func(int) Work { return Work{Seats: 1, After: time.Duration(i) * time.Second} })
		if err != nil {
			t.Fatal(err)
		}
		passes = append(passes, p)
		c.Step(time.Second)
	}
	waits := make(chan *Pass, 1)
	go func() {
		p, err := g.Limiter.Enter(t.Context(), as("u"), time.Hour, one)
		if err != nil {
			t.Error(err)
		}
		waits <- p
	}()
	for !strings.Contains(table("priority_levels", ""), "narrow,            1,") {
		runtime.Gosched()
	}
	queue := strings.Contains(table("queues", ""), "narrow,            1,      1,")
	at := map[bool]int{false: 0, true: 1}[queue]
	for _, want := range []struct{ name, query, text string }{
		{"priority_levels", "", `PriorityLevelName, ActiveQueues, IsIdle, IsQuiescing, WaitingRequests, ExecutingRequests, DispatchedRequests, RejectedRequests, TimedoutRequests, CancelledRequests
narrow,            1,            false,  false,       1,               2,                 2,                  0,                0,                0
`},
		{"requests", "", fmt.Sprintf(`PriorityLevelName, FlowSchemaName, QueueIndex, RequestIndexInQueue, FlowDistingsher, ArriveTime,           InitialSeats, FinalSeats, AdditionalLatency, StartTime
narrow,            catch-all,      %[1]d,          0,                   u,               1970-01-01T00:16:42Z, 1,            0,          0s,                0001-01-01T00:00:00Z
narrow,            catch-all,      %[1]d,          -1,                  u,               1970-01-01T00:16:41Z, 1,            1,          1s,                1970-01-01T00:16:41Z
narrow,            catch-all,      %[1]d,          -1,                  u,               1970-01-01T00:16:40Z, 1,            0,          0s,                1970-01-01T00:16:40Z
`, at)},
	} {
		if got := table(want.name, want.query); got != want.text {
			t.Errorf("%s:\n%s\nwant\n%s", want.name, got, want.text)
		}
	}
	if got, want := table("queues", ""), fmt.Sprintf("narrow,            %d,      1,               2,                 2,          0.00600000ss,  1,               1,           0.00300000ss\n", at); !strings.Contains(got, want) {
		t.Errorf("queues:\n%s\nwant a row\n%s", got, want)
	}
	if got, want := table("requests", "includeRequestDetails=1"), "UserName, Verb,   APIPath, Namespace, Name,   APIVersion, Resource, SubResource\n"; !strings.Contains(got, want) || strings.Count(got, "u,        get,    ") != 3 {
		t.Errorf("details:\n%s\nwant\n%s", got, want)
	}
	for _, p := range passes {
		p.Leave()
	}
	(<-waits).Leave()
	c.Step(time.Second)
	for strings.Count(table("requests", ""), "\n") > 1 { // what follows a request is over
		runtime.Gosched()
	}
	if got := table("priority_levels", ""); !strings.Contains(got, "narrow,            0,            true,   false,       0,               0,                 3,") {
		t.Errorf("at rest:\n%s", got)
	}
	if g.Dump(httptest.NewRecorder(), "/debug/api_priority_and_fairness/dump_all", nil) || NewGate(Limits{NoFairness: true}, 1, c).Dump(httptest.NewRecorder(), "/debug/api_priority_and_fairness/dump_queues", nil) {
		t.Error("more is answered than there is")
	}
}

// Who waits is counted, with its seats, as long as it does; its level tried to find it seats in vain.
func TestWhoWaitsIsCounted(t *testing.T) {
	l, _ := newLimiter(1)
	first, err := l.Enter(t.Context(), as("u"), time.Minute, one)
	if err != nil {
		t.Fatal(err)
	}
	seated := make(chan *Pass)
	go func() {
		p, err := l.Enter(t.Context(), as("u"), time.Minute, one)
		if err != nil {
			t.Error(err)
		}
		seated <- p
	}()
	counted := func() (queued, seats, unseated int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		c := l.counts[countKey{"global-default", "global-default"}]
		return c.queued, c.queuedSeats, c.unseated
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		queued, seats, unseated := counted()
		if queued == 1 && seats == 1 && unseated > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d wait for %d seats, %d attempts in vain", queued, seats, unseated)
		}
	}
	first.Leave()
	(<-seated).Leave()
	if queued, seats, _ := counted(); queued != 0 || seats != 0 {
		t.Errorf("%d still wait for %d seats", queued, seats)
	}
	registry, rec := prometheus.NewRegistry(), httptest.NewRecorder()
	registry.MustRegister(l)
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`request_queue_length_after_enqueue_bucket{flow_schema="global-default",priority_level="global-default",le="10"} 1`,
		`request_execution_seconds_count{flow_schema="global-default",priority_level="global-default",type="regular"} 2`,
		`request_execution_seconds_count{flow_schema="global-default",priority_level="global-default",type="watch"} 0`,
		`current_inqueue_seats{flow_schema="global-default",priority_level="global-default"} 0`,
		`request_dispatch_no_accommodation_total{flow_schema="global-default",priority_level="global-default"}`,
	} {
		if !strings.Contains(rec.Body.String(), "apiserver_flowcontrol_"+want) {
			t.Errorf("no %s", want)
		}
	}
}

// Package scheduler is kube-scheduler: it watches pods that wait for a node,
// asks scheduler/core where each should go, and binds it there.
//
// One goroutine decides. It holds the lock while it does, so an event of the
// API is either in the decision's view of the cluster or comes after it. What
// it has decided is assumed at once; the API calls that make it true (binding,
// status, events, preemption) are made by a bounded number of workers. When a
// binding fails the assumption is taken back and the pod tries again.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/scheduler/core"
)

// Config configures a Scheduler.
type Config struct {
	Client    kubernetes.Interface            // required
	Informers informers.SharedInformerFactory // required; Run starts it
	// Profiles are the schedulers that this one is. Default one profile with
	// the default name.
	Profiles []Profile
	// Parallelism bounds the API calls under way. Default 16.
	Parallelism int
	// Recorder gets the events. Default one that writes them to the API.
	Recorder events.EventRecorder
	// Rand breaks ties between equal nodes: a number in [0, n). Default random.
	Rand func(n int) int
	// Clock times back-offs. Default the real clock.
	Clock clock.WithTicker
	// Log gets what an operator must know. Default discards.
	Log *slog.Logger
}

// Profile is one scheduler that pods can ask for.
type Profile struct {
	// SchedulerName is what pods name in spec.schedulerName. Default
	// "default-scheduler".
	SchedulerName string
}

func (c *Config) setDefaults() error {
	if c.Client == nil || c.Informers == nil {
		return errors.New("scheduler: Client and Informers must be set")
	}
	if len(c.Profiles) == 0 {
		c.Profiles = []Profile{{}}
	}
	seen := map[string]bool{}
	for i := range c.Profiles {
		if c.Profiles[i].SchedulerName == "" {
			c.Profiles[i].SchedulerName = v1.DefaultSchedulerName
		}
		name := c.Profiles[i].SchedulerName
		if seen[name] {
			return fmt.Errorf("scheduler: two profiles are named %q; give each its own schedulerName", name)
		}
		seen[name] = true
	}
	if c.Parallelism <= 0 {
		c.Parallelism = 16
	}
	if c.Rand == nil {
		c.Rand = rand.IntN
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Scheduler places pods on nodes.
type Scheduler struct {
	cfg    Config
	names  map[string]bool
	facts  facts
	synced []cache.InformerSynced
	wake   chan struct{} // capacity 1: the queue may have something
	jobs   chan job

	mu        sync.Mutex // guards the rest
	cluster   *core.Cluster
	queue     *queue
	assumed   map[types.UID]bool
	nominated map[types.UID]nomination
}

// nomination is a node that is being cleared for a pod.
type nomination struct {
	pod  *core.Pod
	node string
}

// New returns a scheduler that Run starts.
func New(cfg Config) (*Scheduler, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	s := &Scheduler{
		cfg: cfg, names: map[string]bool{}, facts: newFacts(cfg.Informers),
		wake: make(chan struct{}, 1), jobs: make(chan job, cfg.Parallelism),
		cluster: core.NewCluster(), queue: newQueue(),
		assumed: map[types.UID]bool{}, nominated: map[types.UID]nomination{},
	}
	for _, p := range cfg.Profiles {
		s.names[p.SchedulerName] = true
	}
	return s, s.register()
}

// Run schedules until ctx ends.
func (s *Scheduler) Run(ctx context.Context) error {
	if s.cfg.Recorder == nil {
		broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: s.cfg.Client.EventsV1()})
		if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
			return fmt.Errorf("scheduler: record events: %w", err)
		}
		defer broadcaster.Shutdown()
		s.cfg.Recorder = broadcaster.NewRecorder(scheme.Scheme, s.cfg.Profiles[0].SchedulerName)
	}
	s.cfg.Informers.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), s.synced...) {
		return nil
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for range s.cfg.Parallelism {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case j := <-s.jobs:
					j(ctx)
				}
			}
		})
	}
	for ctx.Err() == nil {
		j, wait := s.step()
		if j != nil {
			select {
			case s.jobs <- j:
			case <-ctx.Done():
			}
			continue
		}
		s.sleep(ctx, wait)
	}
	return nil
}

// job is work for the API that a decision leads to.
type job func(ctx context.Context)

// sleep waits for the queue to have something, at most for d.
func (s *Scheduler) sleep(ctx context.Context, d time.Duration) {
	timer := s.cfg.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-s.wake:
	case <-timer.C():
	}
}

func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// step decides about the next pod and returns what is to be done about it. If
// no pod is ready it returns nil and how long that lasts at most.
func (s *Scheduler) step() (job, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Clock.Now()
	e := s.queue.pop(now)
	if e == nil {
		return nil, s.queue.wait(now)
	}
	req := s.request(e.pod)
	req.Preemption = true
	d := s.decide(req)
	if d.Node != "" {
		return s.place(e, d.Node), 0
	}
	return s.reject(e, d), 0
}

// request collects what a decision about a pod needs.
func (s *Scheduler) request(p *core.Pod) *core.Request {
	return &core.Request{
		Pod: p, Rand: s.cfg.Rand, Spread: s.facts.selector(p.Pod), Volumes: s.facts.volumes(p.Pod),
		Disruptions: s.facts.budgets,
	}
}

// decide asks the core, with the pods that have been promised a node, and are
// not less important, counted as being there.
func (s *Scheduler) decide(req *core.Request) core.Decision {
	var guests []*core.Pod
	for uid, n := range s.nominated {
		if uid != req.Pod.UID && n.pod.Priority >= req.Pod.Priority && s.cluster.Node(n.node) != nil && s.cluster.Pod(uid) == nil {
			s.cluster.AddPod(n.pod, n.node)
			guests = append(guests, n.pod)
		}
	}
	d := s.cluster.Decide(req)
	for _, p := range guests {
		s.cluster.RemovePod(p)
		p.Node = ""
	}
	return d
}

// place assumes a pod on its node and returns the job that binds it.
func (s *Scheduler) place(e *entry, node string) job {
	s.cluster.AddPod(e.pod, node)
	s.assumed[e.pod.UID] = true
	delete(s.nominated, e.pod.UID)
	s.queue.remove(e.pod.UID)
	s.requeue(change{placed: true})
	return func(ctx context.Context) { s.bind(ctx, e, node) }
}

// unplace takes an assumption back; the pod tries again after its back-off.
func (s *Scheduler) unplace(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.assumed[e.pod.UID] {
		return // deleted or confirmed meanwhile
	}
	delete(s.assumed, e.pod.UID)
	node := e.pod.Node
	s.cluster.RemovePod(e.pod)
	e.pod.Node = ""
	s.queue.retry(e, s.cfg.Clock.Now())
	s.requeue(change{node: node})
	s.signal()
}

// reject parks a pod that fits nowhere and returns the job that says so, and
// makes room for it if that is possible.
func (s *Scheduler) reject(e *entry, d core.Decision) job {
	s.queue.park(e, d.Rejected, s.cfg.Clock.Now())
	nominated := ""
	if d.Nominated != "" {
		nominated = d.Nominated
		s.nominated[e.pod.UID] = nomination{e.pod, nominated}
	}
	pod, victims := e.pod.Pod, d.Victims
	return func(ctx context.Context) {
		s.preempt(ctx, pod, victims, nominated)
		s.reportFailure(ctx, pod, v1.PodReasonUnschedulable, d.Message, nominated)
	}
}

package probe

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/kubelet/status"
)

// Kind is a kind of probe, named as in events.
type Kind string

// The kinds.
const (
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
	Startup   Kind = "Startup"
)

// Running is a container whose probes are due.
type Running struct {
	Container *v1.Container
	ID        string
	StartedAt time.Time
	Started   bool // its startup probe (if any) has succeeded
}

// Config of a Pod's prober.
type Config struct {
	Runner *Runner
	Clock  clock.Clock
	// Event records an Unhealthy or ProbeWarning event (Warning type) about a container.
	Event func(container, reason, message string)
	// Changed is called when a verdict changed.
	Changed func()
}

// Pod probes the containers of one pod: one goroutine per probe of a running container, none
// otherwise. It is safe for concurrent use.
type Pod struct {
	cfg Config

	mu      sync.Mutex
	results map[string]status.Probes // by container id
	workers map[key]context.CancelFunc
	done    map[key]bool // reached its verdict; not started again for this container
	wg      sync.WaitGroup
}

type key struct {
	id   string
	kind Kind
}

// NewPod makes the prober of a pod.
func NewPod(cfg Config) *Pod {
	return &Pod{cfg: cfg, results: map[string]status.Probes{}, workers: map[key]context.CancelFunc{}, done: map[key]bool{}}
}

// Results returns the verdicts so far.
func (p *Pod) Results() map[string]status.Probes {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]status.Probes, len(p.results))
	for k, v := range p.results {
		out[k] = v
	}
	return out
}

// Sync makes the set of running probes fit the running containers. When the pod is being deleted
// only readiness goes on being probed.
func (p *Pod) Sync(ctx context.Context, pod *v1.Pod, podIP string, running []Running, deleting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := map[key]bool{}
	alive := map[string]bool{}
	for i := range running {
		r := &running[i]
		alive[r.ID] = true
		t := Target{Pod: pod, Container: r.Container, ContainerID: r.ID, PodIP: podIP}
		if r.Container.StartupProbe != nil && !r.Started {
			if !deleting {
				p.ensure(ctx, want, Startup, r.Container.StartupProbe, t, r.StartedAt)
			}
			continue
		}
		if r.Container.LivenessProbe != nil && !deleting {
			p.ensure(ctx, want, Liveness, r.Container.LivenessProbe, t, r.StartedAt)
		}
		switch {
		case r.Container.ReadinessProbe != nil:
			p.ensure(ctx, want, Readiness, r.Container.ReadinessProbe, t, r.StartedAt)
		case p.cfg.Runner.PID != nil && status.Settles(r.Container) && p.results[r.ID].Readiness == nil:
			p.settle(ctx, want, t, r.StartedAt)
		}
	}
	for k, cancel := range p.workers {
		if !want[k] {
			cancel()
			delete(p.workers, k)
		}
	}
	for id := range p.results {
		if !alive[id] {
			delete(p.results, id)
		}
	}
	for k := range p.done {
		if !alive[k.id] {
			delete(p.done, k)
		}
	}
}

// Stop ends all probing and waits for it.
func (p *Pod) Stop() {
	p.mu.Lock()
	for k, cancel := range p.workers {
		cancel()
		delete(p.workers, k)
	}
	p.mu.Unlock()
	p.wg.Wait()
}

func (p *Pod) ensure(ctx context.Context, want map[key]bool, kind Kind, spec *v1.Probe, t Target, started time.Time) {
	k := key{t.ContainerID, kind}
	want[k] = true
	if _, on := p.workers[k]; on || p.done[k] {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	p.workers[k] = cancel
	w := &worker{pod: p, kind: kind, spec: spec, target: t, started: started}
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		defer cancel()
		w.run(ctx)
	}()
}

// settle waits until the container listens, and then calls it ready.
func (p *Pod) settle(ctx context.Context, want map[key]bool, t Target, started time.Time) {
	k := key{t.ContainerID, Readiness}
	want[k] = true
	if _, on := p.workers[k]; on || p.done[k] {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	p.workers[k] = cancel
	p.wg.Go(func() {
		defer cancel()
		if p.cfg.Runner.waitListening(ctx, p.cfg.Clock, t, started.Add(status.SettleTime)) {
			p.set(k, true)
		}
	})
}

type worker struct {
	pod     *Pod
	kind    Kind
	spec    *v1.Probe
	target  Target
	started time.Time

	last   Outcome
	streak int // how often in a row
}

func (w *worker) run(ctx context.Context) {
	clk := w.pod.cfg.Clock
	period := time.Duration(max(w.spec.PeriodSeconds, 1)) * time.Second
	first := w.started.Add(time.Duration(w.spec.InitialDelaySeconds) * time.Second).Sub(clk.Now())
	if first < -period {
		// Long due: the kubelet was restarted. Spread the probes over a period.
		first = rand.N(period) // jitter
	}
	if !sleep(ctx, clk, first) {
		return
	}
	for {
		begin := clk.Now()
		if w.once(ctx) {
			return
		}
		if !sleep(ctx, clk, period-clk.Since(begin)) {
			return
		}
	}
}

func sleep(ctx context.Context, clk clock.Clock, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := clk.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C():
		return ctx.Err() == nil
	}
}

// retries of a probe that could not be carried out.
const retries = 3

// once probes and judges; true means this worker's work is done.
func (w *worker) once(ctx context.Context) bool {
	var out Outcome
	var text string
	var err error
	for range retries {
		if out, text, err = w.pod.cfg.Runner.Probe(ctx, w.spec, w.target); err == nil {
			break
		}
	}
	if ctx.Err() != nil {
		return true
	}
	name := w.target.Container.Name
	switch {
	case err != nil:
		w.pod.cfg.Event(name, "Unhealthy", string(w.kind)+" probe errored and resulted in unknown state: "+err.Error())
		return false
	case out == Warning:
		w.pod.cfg.Event(name, "ProbeWarning", string(w.kind)+" probe warning: "+text)
		out = Success
	case out == Failure:
		w.pod.cfg.Event(name, "Unhealthy", string(w.kind)+" probe failed: "+text)
	case out == Unknown:
		out = Failure
	}
	if w.streak > 0 && w.last == out {
		w.streak++
	} else {
		w.last, w.streak = out, 1
	}
	if out == Failure && w.streak < int(w.spec.FailureThreshold) || out == Success && w.streak < int(w.spec.SuccessThreshold) {
		return false
	}
	w.pod.set(key{w.target.ContainerID, w.kind}, out == Success)
	// A verdict that leads to a restart, and any of a startup probe, is the last for this container.
	return w.kind == Startup || w.kind == Liveness && out == Failure
}

func (p *Pod) set(k key, ok bool) {
	p.mu.Lock()
	if _, on := p.workers[k]; !on {
		p.mu.Unlock()
		return
	}
	r := p.results[k.id]
	field := map[Kind]**bool{Liveness: &r.Liveness, Readiness: &r.Readiness, Startup: &r.Startup}[k.kind]
	changed := *field == nil || **field != ok
	*field = &ok
	p.results[k.id] = r
	if k.kind == Startup || k.kind == Liveness && !ok {
		p.done[k] = true
	}
	p.mu.Unlock()
	if changed && p.cfg.Changed != nil {
		p.cfg.Changed()
	}
}

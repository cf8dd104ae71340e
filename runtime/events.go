package runtime

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventQueue bounds the events waiting for one listener. A listener further behind is
// cut off with an error, which makes it list again: losing an event silently would
// leave a dead container shown as running.
const eventQueue = 8192

type listener struct {
	ch   chan *runtimeapi.ContainerEventResponse
	lost chan struct{}
}

// broadcaster hands each event to every listener without ever blocking its sender.
type broadcaster struct {
	mu     sync.Mutex
	subs   map[*listener]bool
	closed bool
}

func newBroadcaster() *broadcaster { return &broadcaster{subs: map[*listener]bool{}} }

func (b *broadcaster) add() *listener {
	l := &listener{ch: make(chan *runtimeapi.ContainerEventResponse, eventQueue), lost: make(chan struct{})}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		close(l.lost)
		return l
	}
	b.subs[l] = true
	return l
}

func (b *broadcaster) remove(l *listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.subs, l)
}

func (b *broadcaster) send(e *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for l := range b.subs {
		select {
		case l.ch <- e:
		default:
			delete(b.subs, l)
			close(l.lost)
		}
	}
}

func (b *broadcaster) listening() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs) > 0
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for l := range b.subs {
		delete(b.subs, l)
		close(l.lost)
	}
}

// GetContainerEvents implements CRI: it sends events into ch until ctx ends. An error
// means that events may be missing and the caller must list. connected, if not nil, is
// called with nil once no event can be missed any more.
func (r *Runtime) GetContainerEvents(ctx context.Context, ch chan *runtimeapi.ContainerEventResponse, connected func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	l := r.events.add()
	defer r.events.remove(l)
	if connected != nil {
		connected(nil)
	}
	for {
		select {
		case e := <-l.ch:
			select {
			case ch <- e:
			case <-ctx.Done():
				return ctx.Err()
			}
		case <-l.lost:
			return status.Error(codes.Unavailable, "container event stream ended: list and listen again")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// emit tells the listeners about a container or sandbox (id), with the whole pod's
// status, which saves the kubelet from asking.
func (r *Runtime) emit(kind runtimeapi.ContainerEventType, id, sandboxID string) {
	if !r.events.listening() {
		return
	}
	e := &runtimeapi.ContainerEventResponse{ContainerId: id, ContainerEventType: kind, CreatedAt: r.now()}
	r.mu.RLock()
	if s := r.sandboxes[sandboxID]; s != nil {
		e.PodSandboxStatus = s.status()
		e.ContainersStatuses = r.statusesOf(sandboxID)
	}
	r.mu.RUnlock()
	r.events.send(e)
}

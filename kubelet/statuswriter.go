package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/skiff-project/skiff/kubelet/status"
)

// statusWriter brings pod statuses to the API: per pod only the newest one counts, one write is in
// flight, and only what differs from the API's object is sent.
type statusWriter struct {
	k    *Kubelet
	mu   sync.Mutex
	pods map[types.UID]*pending
	sem  chan struct{} // bounds writes in flight over all pods
}

type pending struct {
	want    v1.PodStatus
	base    *v1.Pod // the newest API object known
	dirty   bool
	writing bool
	gone    bool
	waiters []chan struct{} // closed when nothing is left to write
}

const writers = 16

func newStatusWriter(k *Kubelet) *statusWriter {
	return &statusWriter{k: k, pods: map[types.UID]*pending{}, sem: make(chan struct{}, writers)}
}

// set says what the status of an API pod shall be.
func (s *statusWriter) set(pod *v1.Pod, want v1.PodStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pods[pod.UID]
	if p == nil {
		p = &pending{base: pod}
		s.pods[pod.UID] = p
	}
	if newer(pod, p.base) {
		p.base = pod
	}
	p.want = want
	s.startLocked(pod.UID, p)
}

// newer compares resource versions; those of one object only grow.
func newer(a, b *v1.Pod) bool {
	x, err1 := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, err2 := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return err1 != nil || err2 != nil || x >= y
}

// kick compares again, after the API's object changed.
func (s *statusWriter) kick(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pods[uid]
	if p == nil {
		return
	}
	if o := s.k.apiByUID(uid, p.base); o != nil && newer(o, p.base) {
		p.base = o
	}
	s.startLocked(uid, p)
}

// apiByUID finds the informer's copy of a pod.
func (k *Kubelet) apiByUID(uid types.UID, like *v1.Pod) *v1.Pod {
	if o := k.mirror(like.Namespace, like.Name); o != nil && o.UID == uid {
		return o
	}
	return nil
}

func (s *statusWriter) forget(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.pods[uid]; p != nil {
		p.gone = true
		p.releaseLocked()
		delete(s.pods, uid)
	}
}

func (p *pending) releaseLocked() {
	for _, w := range p.waiters {
		close(w)
	}
	p.waiters = nil
}

// flush waits until the pod's status is written.
func (s *statusWriter) flush(ctx context.Context, uid types.UID) error {
	s.mu.Lock()
	p := s.pods[uid]
	if p == nil || !p.dirty && !p.writing {
		s.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	p.waiters = append(p.waiters, done)
	s.mu.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *statusWriter) startLocked(uid types.UID, p *pending) {
	p.dirty = true
	if p.writing {
		return
	}
	p.writing = true
	s.k.spawn(func() { s.write(s.k.ctx, uid, p) })
}

// write sends until the API has what is wanted.
func (s *statusWriter) write(ctx context.Context, uid types.UID, p *pending) {
	wait := 100 * time.Millisecond
	for {
		s.mu.Lock()
		if !p.dirty || p.gone || ctx.Err() != nil {
			p.writing = false
			p.releaseLocked()
			s.mu.Unlock()
			return
		}
		p.dirty = false
		base, want := p.base, p.want
		s.mu.Unlock()
		s.sem <- struct{}{}
		got, err := s.patch(ctx, base, want)
		<-s.sem
		s.mu.Lock()
		if got != nil && newer(got, p.base) {
			p.base = got
		}
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			p.gone = true // deleted, or its name is another pod's by now
		} else if err != nil {
			p.dirty = true
		}
		s.mu.Unlock()
		if err != nil && !p.gone && ctx.Err() == nil {
			s.k.cfg.Log.Warn("cannot write a pod's status; it is tried again", "pod", base.Namespace+"/"+base.Name, "err", err)
			s.k.sleep(ctx, wait)
			wait = min(wait*2, 10*time.Second)
		}
	}
}

// patch sends the difference between the API's status and ours; nil, nil when there is none.
func (s *statusWriter) patch(ctx context.Context, base *v1.Pod, want v1.PodStatus) (*v1.Pod, error) {
	merged := merge(base.Status, want)
	if equality.Semantic.DeepEqual(base.Status, merged) {
		return nil, nil // most steps change nothing: the patch would be computed for nothing
	}
	from, err := json.Marshal(v1.Pod{Status: base.Status})
	if err != nil {
		return nil, err
	}
	to, err := json.Marshal(v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: base.UID}, Status: merged})
	if err != nil {
		return nil, err
	}
	data, err := strategicpatch.CreateTwoWayMergePatch(from, to, v1.Pod{})
	if err != nil {
		return nil, fmt.Errorf("compute status patch: %w", err)
	}
	if string(data) == fmt.Sprintf(`{"metadata":{"uid":%q}}`, base.UID) {
		return nil, nil
	}
	return s.k.cfg.Client.CoreV1().Pods(base.Namespace).Patch(ctx, base.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
}

// merge keeps of the API's status what is not the kubelet's: conditions of others and the claims.
func merge(api, want v1.PodStatus) v1.PodStatus {
	out := *want.DeepCopy()
	out.Conditions = nil
	for _, c := range api.Conditions {
		if !status.Owned(c.Type) {
			out.Conditions = append(out.Conditions, c)
		}
	}
	for _, c := range want.Conditions {
		if status.Owned(c.Type) {
			out.Conditions = append(out.Conditions, c)
		}
	}
	out.ResourceClaimStatuses = api.ResourceClaimStatuses
	out.ExtendedResourceClaimStatus = api.ExtendedResourceClaimStatus
	out.NominatedNodeName = api.NominatedNodeName
	out.NodeAllocatableResourceClaimStatuses = api.NodeAllocatableResourceClaimStatuses
	return out
}

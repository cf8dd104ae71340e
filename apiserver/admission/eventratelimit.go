package admission

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/clock"
	"k8s.io/utils/lru"

	"github.com/skiff-project/skiff/apiserver/admission/config"
)

// eventRateLimit bounds how fast events are written, by as many limits as it
// is told; each is charged, whatever the others say. As upstream it knows
// events of the core group only: those of events.k8s.io pass.
type eventRateLimit struct {
	noAdmit
	limits []*eventLimit
}

// eventLimit has a bucket of tokens for each key, in the memory of the last used ones.
type eventLimit struct {
	config.EventLimit
	clock clock.PassiveClock

	mu      sync.Mutex // between looking for a bucket and making it
	buckets *lru.Cache
}

func newEventRateLimit(limits []config.EventLimit, c clock.PassiveClock) *eventRateLimit {
	p := &eventRateLimit{}
	for _, l := range limits {
		p.limits = append(p.limits, &eventLimit{EventLimit: l, clock: c, buckets: lru.New(cmp.Or(int(l.CacheSize), 4096))})
	}
	return p
}

func (*eventRateLimit) Name() string { return "EventRateLimit" }

func (p *eventRateLimit) Validate(_ context.Context, r *Request) error {
	if op := r.Operation(); !r.is("", "events") || op != Create && op != Update || r.DryRun {
		return nil
	}
	var errs []error
	for _, l := range p.limits {
		if key := eventKey(l.Type, r); !l.bucket(key).TryAccept() {
			errs = append(errs, fmt.Errorf("limit reached on type %v for key %v", l.Type, key))
		}
	}
	if len(errs) > 0 {
		return apierrors.NewTooManyRequestsError(utilerrors.NewAggregate(errs).Error())
	}
	return nil
}

func (l *eventLimit) bucket(key string) flowcontrol.PassiveRateLimiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.buckets.Get(key); ok {
		return b.(flowcontrol.PassiveRateLimiter)
	}
	b := flowcontrol.NewTokenBucketPassiveRateLimiterWithClock(float32(l.QPS), int(l.Burst), l.clock)
	l.buckets.Add(key, b)
	return b
}

func eventKey(t config.LimitType, r *Request) string {
	switch t {
	case config.Namespace:
		return r.Namespace
	case config.User:
		return r.User.Name
	case config.SourceAndObject:
		if e, ok := r.Object.(*corev1.Event); ok {
			o := e.InvolvedObject
			return e.Source.Component + e.Source.Host + o.Kind + o.Namespace + o.Name + string(o.UID) + o.APIVersion
		}
	}
	return ""
}

package workload

import (
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// Backoff paces repeated attempts per key: the first is free, then the wait doubles from first to
// longest. A key unused for twice the longest wait is forgotten, which bounds the memory.
type Backoff struct {
	first, longest time.Duration
	clock          clock.PassiveClock
	mu             sync.Mutex
	keys           map[string]attempt
}

type attempt struct {
	at   time.Time
	wait time.Duration
}

// NewBackoff returns an empty Backoff.
func NewBackoff(first, longest time.Duration, c clock.PassiveClock) *Backoff {
	return &Backoff{first: first, longest: longest, clock: c, keys: map[string]attempt{}}
}

// Try takes an attempt for key, or returns how long to wait for the next.
func (b *Backoff) Try(key string) (wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.clock.Now()
	a, ok := b.keys[key]
	if ok && now.Sub(a.at) < a.wait {
		return a.wait - now.Sub(a.at)
	}
	next := b.first
	if ok && now.Sub(a.at) < 2*b.longest {
		next = min(2*a.wait, b.longest)
	}
	b.keys[key] = attempt{at: now, wait: next}
	for k, a := range b.keys {
		if now.Sub(a.at) > 2*b.longest {
			delete(b.keys, k)
		}
	}
	return 0
}

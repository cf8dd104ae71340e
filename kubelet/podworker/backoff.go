package podworker

import (
	"time"
)

// backoff doubles from an initial to a maximal wait and starts afresh when the thing behaved for
// twice the maximum.
type backoff struct {
	wait    time.Duration
	updated time.Time
	message string // the failure that caused it (images)
}

// since says whether a failure at t is still being backed off from, and until when.
func (b *backoff) since(t, now time.Time, max time.Duration) (bool, time.Time) {
	if b == nil || t.Sub(b.updated) > 2*max {
		return false, time.Time{}
	}
	end := t.Add(b.wait)
	return now.Before(end), end
}

func next(b *backoff, t, now time.Time, initial, max time.Duration) *backoff {
	if b == nil || t.Sub(b.updated) > 2*max {
		return &backoff{wait: initial, updated: now}
	}
	b.wait, b.updated = min(b.wait*2, max), now
	return b
}

// retry paces an action that failed.
type retry struct {
	at    time.Time
	fails int
}

const (
	retryFirst = 500 * time.Millisecond
	retryMax   = 10 * time.Second
)

func (m *Machine) noteRetry(key string, ok bool, now time.Time) {
	if ok {
		delete(m.retry, key)
		return
	}
	r := m.retry[key]
	d := min(retryFirst<<min(r.fails, 10), retryMax)
	m.retry[key] = retry{at: now.Add(d), fails: r.fails + 1}
}

// may says whether an action may run now; if not, it asks to be woken when it may.
func (m *Machine) may(key string, now time.Time, o *Output) bool {
	r, ok := m.retry[key]
	if ok && now.Before(r.at) {
		o.wake(r.at)
		return false
	}
	return true
}

package fairness

import (
	"time"

	"github.com/skiff-project/skiff/auth"
)

// Upstream's bounds of what one request costs.
const (
	mostListSeats  = 10
	mostWriteSeats = 10
	bytesPerSeat   = 100_000
	mostListBytes  = 1_000_000 // a list is not held in memory more than that at once
	watchesPerSeat = 10
	eventCost      = 5 * time.Millisecond // of one seat, for as many watchers
)

// watchKey names what a watch follows: everything of a resource, of a
// namespace of it, or one object.
type watchKey struct{ group, resource, namespace, name string }

func keyOf(a *auth.Attributes) watchKey { return watchKey{a.APIGroup, a.Resource, a.Namespace, a.Name} }

// Watching counts a watch until the function it returns is called.
func (l *Limiter) Watching(a *auth.Attributes) (ended func()) {
	k := keyOf(a)
	for _, f := range a.FieldSelector {
		if f.Field == "spec.nodeName" {
			return func() {} // it sees few of the changes
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watches[k]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.watches[k]--; l.watches[k] == 0 {
			delete(l.watches, k)
		}
	}
}

// Write is the cost of a change: who watches it has to be told.
func (l *Limiter) Write(a *auth.Attributes, most int) Work {
	if a.Resource == "serviceaccounts" && a.Subresource == "token" {
		return Work{Seats: 1}
	}
	k := keyOf(a)
	l.mu.Lock()
	n := l.watches[watchKey{k.group, k.resource, "", ""}]
	if k.namespace != "" {
		n += l.watches[watchKey{k.group, k.resource, k.namespace, ""}]
	}
	if k.name != "" {
		n += l.watches[k]
	}
	l.mu.Unlock()
	if n < watchesPerSeat {
		return Work{Seats: 1}
	}
	seats := (n + watchesPerSeat - 1) / watchesPerSeat
	work := time.Duration(seats) * eventCost
	seats = bound(seats, most, mostWriteSeats)
	return Work{Seats: seats, After: work / time.Duration(seats)}
}

// List is the cost of reading n objects of so many bytes each.
func List(n int, each int64, most int) Work {
	bytes := min(int64(n)*each, mostListBytes)
	return Work{Seats: bound(int((bytes+bytesPerSeat-1)/bytesPerSeat), most, mostListSeats)}
}

func bound(seats, most, ever int) int {
	if most == 0 || most > ever {
		most = ever
	}
	return max(1, min(seats, most))
}

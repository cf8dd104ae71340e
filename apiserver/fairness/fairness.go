// Package fairness is API priority and fairness: it divides the requests a
// server works on at once among priority levels, and within a level among
// flows, so that one busy client slows down itself and nobody else. Which
// request belongs where is said by FlowSchemas and PriorityLevelConfigurations.
//
// A request takes seats of its level while it runs; a costly one takes more.
// When there are none it waits in one of the level's queues, which are served
// fairly, or is refused. A level lends seats it does not use to others. All of
// it is values and a clock; requests and objects are brought by others.
package fairness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
)

// Limiter is safe for concurrent use.
type Limiter struct {
	clock clock.WithTickerAndDelayedExecution
	total int // seats of the server

	mu       sync.Mutex
	levels   []*level
	schemas  []*schema // by precedence
	adjusted time.Time
	watches  map[watchKey]int
	counts   map[countKey]*counts // by level and schema, for the metrics; bounded by the objects there were
}

// schema is one FlowSchema whose level exists.
type schema struct {
	name, uid string
	spec      *flowcontrolv1.FlowSchemaSpec
	level     *level
	hash      uint64
	counts    *counts
}

// New returns a limiter of total seats, with the given objects to begin with
// (the built-in ones, until those that are stored are read).
func New(total int, c clock.WithTickerAndDelayedExecution) *Limiter {
	return &Limiter{total: total, clock: c, adjusted: c.Now(), watches: map[watchKey]int{}, counts: map[countKey]*counts{}}
}

// Configure takes over levels and schemas. Requests that run or wait stay
// where they are. Schemas of levels that do not exist are left out.
func (l *Limiter) Configure(levels []*flowcontrolv1.PriorityLevelConfiguration, schemas []*flowcontrolv1.FlowSchema) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Now()
	byName := map[string]*level{}
	for _, have := range l.levels {
		byName[have.name] = have
	}
	l.levels = nil
	for _, pl := range levels {
		lv := byName[pl.Name]
		if lv == nil {
			lv = &level{name: pl.Name, at: now, demand: demand{at: now, begin: now}}
		}
		lv.configure(pl)
		l.levels = append(l.levels, lv)
	}
	l.limits()
	clear(byName)
	for _, lv := range l.levels {
		byName[lv.name] = lv
	}
	l.schemas = nil
	for _, fs := range schemas {
		lv := byName[fs.Spec.PriorityLevelConfiguration.Name]
		if lv == nil {
			continue
		}
		l.schemas = append(l.schemas, &schema{name: fs.Name, uid: string(fs.UID), spec: &fs.Spec, level: lv,
			hash: hash(offset, fs.Name), counts: l.counted(lv.name, fs.Name)})
	}
	slices.SortFunc(l.schemas, func(a, b *schema) int {
		return cmp.Or(cmp.Compare(a.spec.MatchingPrecedence, b.spec.MatchingPrecedence), cmp.Compare(a.name, b.name))
	})
	for _, lv := range l.levels {
		lv.dispatch()
	}
}

// configure takes over a level's object. Queues that are too many go when
// nobody is in any, else at the next change.
func (l *level) configure(pl *flowcontrolv1.PriorityLevelConfiguration) {
	l.uid, l.exempt = string(pl.UID), pl.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt
	l.shares, l.lendable, l.borrowing = 0, 0, nil
	if e := pl.Spec.Exempt; l.exempt && e != nil {
		l.shares, l.lendable = value(e.NominalConcurrencyShares, 0), value(e.LendablePercent, 0)
	}
	n := 0
	if s := pl.Spec.Limited; !l.exempt && s != nil {
		l.shares, l.lendable, l.borrowing = value(s.NominalConcurrencyShares, 30), value(s.LendablePercent, 0), s.BorrowingLimitPercent
		if q := s.LimitResponse.Queuing; q != nil && s.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue {
			n, l.hand, l.longest = int(q.Queues), int(q.HandSize), int(q.QueueLengthLimit)
		}
	}
	if n != len(l.queues) && l.waiting == 0 && l.running == 0 {
		l.queues, l.active, l.next = make([]queue, n), 0, 0
	}
}

func value(p *int32, unset int32) int32 {
	if p == nil {
		return unset
	}
	return *p
}

// limits divides the server's seats by shares.
func (l *Limiter) limits() {
	sum := 0.0
	for _, lv := range l.levels {
		sum += float64(lv.shares)
	}
	for _, lv := range l.levels {
		lv.nominal = 0
		if sum > 0 {
			lv.nominal = int(math.Ceil(float64(l.total) * float64(lv.shares) / sum))
		}
		lent := int(math.Round(float64(lv.nominal) * float64(lv.lendable) / 100))
		lv.lowest, lv.highest = lv.nominal-lent, lv.nominal+l.total
		if lv.borrowing != nil {
			lv.highest = lv.nominal + int(math.Round(float64(lv.nominal)*float64(*lv.borrowing)/100))
		}
		lv.current = min(max(lv.current, lv.lowest), lv.highest)
		if lv.current < lv.nominal && lv.waiting == 0 {
			lv.current = lv.nominal
		}
	}
}

// adjustEvery is upstream's period of borrowing.
const adjustEvery = 10 * time.Second

// adjust lends the seats that levels do not use to those that want more. It
// is done when a request finds no seat and the last time is long enough ago,
// so that an idle server does nothing.
func (l *Limiter) adjust(now time.Time) {
	if now.Sub(l.adjusted) < adjustEvery {
		return
	}
	l.adjusted = now
	var shares []share
	var limited []*level
	rest, sumNominal, low, wanted := 0, 0, 0, 0
	for _, lv := range l.levels {
		lv.demand.period(now)
		sumNominal += lv.nominal
		if lv.exempt {
			lv.current = max(lv.lowest, int(lv.demand.peak))
			rest -= lv.current
			continue
		}
		floor := max(lv.lowest, min(lv.nominal, int(lv.demand.peak)))
		shares = append(shares, share{float64(floor), float64(lv.highest), max(float64(floor), lv.demand.smoothed)})
		limited = append(limited, lv)
		low += lv.lowest
		wanted += floor
	}
	rest += sumNominal
	given := []float64(nil)
	if rest > wanted {
		given = divide(float64(rest), shares)
	}
	for i, lv := range limited {
		switch {
		case given != nil:
			lv.current = int(math.Round(given[i]))
		case rest > low:
			lv.current = lv.lowest + int(math.Round((shares[i].low-float64(lv.lowest))*float64(rest-low)/float64(wanted-low)))
		default:
			lv.current = lv.lowest
		}
	}
	for _, lv := range l.levels {
		lv.advance(now)
		lv.dispatch()
	}
}

// Work is what a request costs.
type Work struct {
	Seats int
	// After is how long the seats stay taken when the request has ended: its
	// watchers are being told.
	After time.Duration
}

// Pass is a request's place. Exactly one of Leave's calls counts.
type Pass struct {
	l        *Limiter
	schema   *schema
	levelUID string // as it was: configurations change
	queue    *queue
	width    int
	after    time.Duration
	arrived  time.Time
	began    time.Time
	released bool

	asks       *auth.Attributes // who for what
	prev, next *Pass            // in level.passes
}

// Schema and Level are the UIDs of what the request was matched with.
func (p *Pass) Schema() string { return p.schema.uid }

// Level is the UID of its priority level.
func (p *Pass) Level() string { return p.levelUID }

// Reasons why a request is refused; they are the metrics' label.
var (
	ErrQueueFull = errors.New("queue-full")
	ErrTimeOut   = errors.New("time-out")
	ErrCancelled = errors.New("cancelled")
	ErrLimit     = errors.New("concurrency-limit")
)

// Enter waits for a request's seats, at most wait long. The Pass is valid on
// an error too, to name what refused it; nil: there is no configuration.
// work is told the most seats one request of the level may take.
func (l *Limiter) Enter(ctx context.Context, a *auth.Attributes, wait time.Duration, work func(most int) Work) (*Pass, error) {
	now := l.clock.Now()
	l.mu.Lock()
	s := l.classify(a)
	if s == nil {
		l.mu.Unlock()
		return nil, fmt.Errorf("no flow schema is there for user %q", a.User.Name)
	}
	lv := s.level
	most, uid := lv.mostSeats(), lv.uid
	l.mu.Unlock() // the estimate may read the store
	w := work(most)
	p := &Pass{l: l, schema: s, levelUID: uid, width: max(1, w.Seats), after: w.After, arrived: now, began: now, asks: a}
	l.mu.Lock()
	lv.demand.set(float64(lv.seats+lv.waitingSeats+p.width), now)
	if lv.exempt {
		l.begin(p, nil)
		l.mu.Unlock()
		return p, nil
	}
	lv.advance(now)
	if len(lv.queues) > 0 {
		p.queue = lv.deal(flow(s, a))
	}
	if lv.waiting == 0 && lv.fits(p.width) {
		l.begin(p, p.queue)
		l.mu.Unlock()
		s.counts.waited(true, 0)
		return p, nil
	}
	l.adjust(now)
	switch {
	case lv.waiting == 0 && lv.fits(p.width): // seats were borrowed
		l.begin(p, p.queue)
		l.mu.Unlock()
		s.counts.waited(true, 0)
		return p, nil
	case p.queue == nil:
		return p, l.refuse(p, ErrLimit)
	case len(p.queue.waiting) >= lv.longest:
		return p, l.refuse(p, ErrQueueFull)
	}
	waiting := &waiter{width: p.width, since: now, grant: make(chan struct{}), level: lv, queue: p.queue, pass: p}
	lv.wake(p.queue)
	p.queue.waiting = append(p.queue.waiting, waiting)
	lv.waiting++
	lv.waitingSeats += p.width
	s.counts.queued++
	s.counts.queuedSeats += p.width
	s.counts.lengths.Observe(float64(len(p.queue.waiting)))
	lv.dispatch()
	l.mu.Unlock()
	return p, l.await(ctx, p, waiting, wait)
}

// begin gives a request its seats. The lock is held.
func (l *Limiter) begin(p *Pass, q *queue) {
	lv := p.schema.level
	if q != nil {
		lv.wake(q)
	}
	lv.run(q, p)
	p.schema.counts.dispatched++
	p.schema.counts.running++
	p.schema.counts.seats += p.width
}

// refuse gives the lock back.
func (l *Limiter) refuse(p *Pass, why error) error {
	lv := p.schema.level
	lv.demand.set(float64(lv.seats+lv.waitingSeats), l.clock.Now())
	p.schema.counts.reject(why)
	p.released = true
	l.mu.Unlock()
	p.schema.counts.waited(false, l.clock.Since(p.began))
	return why
}

func (l *Limiter) await(ctx context.Context, p *Pass, w *waiter, wait time.Duration) error {
	timer := l.clock.NewTimer(wait)
	defer timer.Stop()
	why := ErrTimeOut
	select {
	case <-w.grant:
	case <-timer.C():
	case <-ctx.Done():
		why = ErrCancelled
	}
	l.mu.Lock()
	p.schema.counts.queued--
	p.schema.counts.queuedSeats -= p.width
	if q := w.queue; q != nil { // it still waits
		w.level.advance(l.clock.Now())
		w.level.drop(w)
		w.level.sleep(q)
		w.level.dispatch() // a narrower one behind it may fit
		return l.refuse(p, why)
	}
	c := p.schema.counts
	c.dispatched++
	c.running++
	c.seats += p.width
	p.began = l.clock.Now()
	l.mu.Unlock()
	c.waited(true, p.began.Sub(p.arrived))
	return nil
}

// Leave gives the seats back. It may be called more than once.
func (p *Pass) Leave() {
	l := p.l
	l.mu.Lock()
	if p.released {
		l.mu.Unlock()
		return
	}
	p.released = true
	ended := l.clock.Now()
	c := p.schema.counts
	c.running--
	c.seats -= p.width
	if p.after > 0 && !p.schema.level.exempt {
		l.clock.AfterFunc(p.after, func() { // a test's clock cannot be asked in here
			l.mu.Lock()
			defer l.mu.Unlock()
			p.release(ended.Add(p.after))
		})
	} else {
		p.release(ended)
	}
	l.mu.Unlock()
	c.executed(p.asks.Verb, ended.Sub(p.began))
}

// release takes the seats back and lets those who wait have them. The lock is held.
func (p *Pass) release(now time.Time) {
	lv := p.schema.level
	lv.advance(now)
	lv.done(p, now.Sub(p.began))
	lv.demand.set(float64(lv.seats+lv.waitingSeats), now)
	if lv.waiting > 0 {
		p.l.adjust(now)
		lv.dispatch()
	}
}

func (l *Limiter) classify(a *auth.Attributes) *schema {
	for _, s := range l.schemas {
		if matches(s.spec, a) {
			return s
		}
	}
	for _, s := range l.schemas { // as upstream: who is in no group that one names
		if s.name == flowcontrolv1.FlowSchemaNameCatchAll {
			return s
		}
	}
	return nil
}

// mostSeats one request may take: 15 % of the level's, and not more than lets
// every queue of a hand have one running. 0: no bound.
func (l *level) mostSeats() int {
	if len(l.queues) == 0 || l.hand == 0 {
		return 0
	}
	return max(1, min(int(math.Ceil(float64(l.nominal)*0.15)), l.nominal/l.hand))
}

// flow hashes what requests of one flow have in common.
func flow(s *schema, a *auth.Attributes) uint64 {
	h := hash(s.hash, distinguisher(s, a))
	h ^= h >> 32 // FNV's high bits, which deal the first cards, are its worst
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

const offset = 14695981039346656037

// hash is FNV-1a.
func hash(h uint64, s string) uint64 {
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return (h ^ 0xff) * 1099511628211
}

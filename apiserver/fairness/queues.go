package fairness

import (
	"math"
	"math/bits"
	"time"
)

// level is what requests of one priority share: seats, and queues for those
// that find none. All of it is guarded by Limiter.mu.
type level struct {
	name, uid string
	exempt    bool
	queues    []queue // none: what finds no seat is rejected
	hand      int     // queues a flow is dealt
	longest   int     // of a queue
	shares    int32
	lendable  int32
	borrowing *int32 // per cent; nil: everything

	nominal, lowest, highest, current int   // limits, in seats
	seats, running                    int   // in use
	passes                            *Pass // that run
	waitingSeats, waiting             int
	next                              int // where the search for a queue begins, so that equals take turns
	demand                            demand

	// Virtual time: how much service each active queue would have had, were
	// all served at once, in seats times seconds.
	virtual float64
	at      time.Time // of virtual
	active  int       // queues with requests, waiting or running
}

// queue is one of a level's.
type queue struct {
	waiting []*waiter // in order of arrival
	running int
	seats   int     // in use
	next    float64 // virtual time at which its next request begins
}

// waiter is a request in a queue.
type waiter struct {
	width int
	since time.Time
	grant chan struct{} // closed when it may run
	level *level
	queue *queue // nil: it may run
	pass  *Pass
}

// service is what a request is taken to last until it has ended, in seconds.
const service = 0.003

func (l *level) advance(now time.Time) {
	if dt := now.Sub(l.at).Seconds(); dt > 0 && l.active > 0 {
		l.virtual += dt * float64(min(l.seats+l.waitingSeats, l.current)) / float64(l.active)
	}
	l.at = now
}

// fits tells whether a request may run. One that is wider than all seats runs alone.
func (l *level) fits(width int) bool { return l.seats == 0 || l.seats+width <= l.current }

// deal picks the queue of a flow: of the hand that its hash deals it, the
// one with the least to do. Two flows seldom have the same hand, so that one
// with many requests leaves most others a queue of their own.
func (l *level) deal(hash uint64) *queue {
	var hand [maxHand]int
	best, least := -1, math.MaxFloat64
	n := min(l.hand, len(l.queues), maxHand)
	for i := range n {
		hi, lo := bits.Mul64(hash, uint64(len(l.queues)-i))
		hash = lo
		card := int(hi)
		at := 0
		for ; at < i && hand[at] <= card; at++ { // the cards before it are gone
			card++
		}
		copy(hand[at+1:i+1], hand[at:i])
		hand[at] = card
		q := &l.queues[card]
		load := float64(q.seats)
		for _, w := range q.waiting {
			load += float64(w.width)
		}
		if load < least {
			best, least = card, load
		}
	}
	return &l.queues[best]
}

// maxHand bounds the hand: 64 bits deal no more (validation sees to it).
const maxHand = 10

func (l *level) wake(q *queue) {
	if q.running == 0 && len(q.waiting) == 0 {
		l.active++
		q.next = l.virtual // it has no claim from the time it asked for nothing
	}
}

func (l *level) sleep(q *queue) {
	if q.running == 0 && len(q.waiting) == 0 {
		l.active--
	}
}

func (l *level) run(q *queue, p *Pass) {
	if p.next = l.passes; p.next != nil {
		p.next.prev = p
	}
	l.passes = p
	width := p.width
	l.seats += width
	l.running++
	if q != nil {
		q.running++
		q.seats += width
		q.next += service * float64(width)
	}
}

// done takes a request's seats back; lasted is how long it had them.
func (l *level) done(p *Pass, lasted time.Duration) {
	if p.next != nil {
		p.next.prev = p.prev
	}
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		l.passes = p.next
	}
	q, width := p.queue, p.width
	l.seats -= width
	l.running--
	if q != nil {
		q.running--
		q.seats -= width
		q.next += (lasted.Seconds() - service) * float64(width)
		l.sleep(q)
	}
}

// dispatch lets requests run as long as there are seats: each time that which
// would end first if every queue were served at once.
func (l *level) dispatch() (dispatched []*waiter) {
	for l.waiting > 0 {
		var best *queue
		least := math.MaxFloat64
		first := l.next
		for i := range l.queues {
			at := (first + i) % len(l.queues)
			q := &l.queues[at]
			if len(q.waiting) == 0 {
				continue
			}
			if end := q.next + service*float64(q.waiting[0].width); end < least {
				best, least, l.next = q, end, at+1
			}
		}
		w := best.waiting[0]
		if !l.fits(w.width) {
			w.pass.schema.counts.unseated++
			return dispatched
		}
		l.drop(w)
		l.run(best, w.pass)
		dispatched = append(dispatched, w)
		close(w.grant)
	}
	return dispatched
}

// drop takes a request out of its queue.
func (l *level) drop(w *waiter) {
	q := w.queue
	for i := range q.waiting {
		if q.waiting[i] == w {
			q.waiting = append(q.waiting[:i], q.waiting[i+1:]...)
			break
		}
	}
	w.queue = nil
	l.waiting--
	l.waitingSeats -= w.width
}

// demand is how many seats a level's requests wanted since the limits were
// last adjusted.
type demand struct {
	now                    float64
	at                     time.Time
	begin                  time.Time
	sum, squares           float64 // integrals over time
	high                   float64
	smoothed, average, dev float64
	peak                   float64 // of the last period
}

func (d *demand) set(value float64, now time.Time) {
	if dt := now.Sub(d.at).Seconds(); dt > 0 {
		d.sum += d.now * dt
		d.squares += d.now * d.now * dt
	}
	d.at, d.now, d.high = now, value, max(d.high, value)
}

// smoothing is how much of a peak is left after ten seconds, upstream's.
const smoothing = 0.977

// period ends a period.
func (d *demand) period(now time.Time) {
	d.set(d.now, now)
	d.average, d.dev = d.now, 0
	if t := now.Sub(d.begin).Seconds(); t > 0 {
		d.average = d.sum / t
		d.dev = math.Sqrt(max(0, d.squares/t-d.average*d.average))
	}
	envelope := d.average + d.dev
	d.smoothed = max(envelope, smoothing*d.smoothed+(1-smoothing)*envelope)
	d.peak = d.high
	d.begin, d.sum, d.squares, d.high = now, 0, 0, d.now
}

// share is what one level may have when seats are divided.
type share struct{ low, high, target float64 }

// divide gives out total seats in proportion to the targets within the bounds:
// the proportion is the one at which all are given out. Bounds that leave no
// such proportion win.
func divide(total float64, shares []share) []float64 {
	at := func(p float64) (sum float64) {
		for _, s := range shares {
			sum += s.at(p)
		}
		return sum
	}
	low, high := 0.0, 1.0
	for i := 0; at(high) < total && i < 64; i++ {
		high *= 2
	}
	for range 64 { // the sum grows with the proportion
		if mid := (low + high) / 2; at(mid) < total {
			low = mid
		} else {
			high = mid
		}
	}
	out := make([]float64, len(shares))
	for i, s := range shares {
		out[i] = s.at(high)
	}
	return out
}

func (s share) at(p float64) float64 {
	return max(s.low, min(s.high, p*max(s.target, 0.001)))
}

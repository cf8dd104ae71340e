package podcert

import (
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
)

const (
	// abandon is when a request we made but do not see counts as deleted.
	abandon = 10 * time.Minute
	// overdue is how long after the time to refresh its lack is worth an event.
	overdue = 10 * time.Minute
)

// machine is one podCertificate source of a pod: a certificate, once there is one, and the request
// for the first or the next, while there is one. A denial or failure is the end of it.
type machine struct {
	key, chain               []byte // PEM; nil before the first certificate and after the end
	refreshAt, notAfter      time.Time
	toldOverdue, toldExpired bool

	pending *pending
	end     error
}

type pending struct {
	name      string // of the PodCertificateRequest
	key       []byte
	abandonAt time.Time
}

type event struct{ reason, message string }

// output is what a step asks of the shell.
type output struct {
	ask     bool // make a request, then tell asked
	changed bool // bundle answers something else now
	events  []event
	wake    time.Time // step again then; zero: when something changes
}

// bundle is what the containers get to see.
func (m *machine) bundle() (key, chain []byte, err error) {
	if m.end != nil || m.chain == nil {
		if err = m.end; err == nil {
			err = errors.New("credential bundle is not issued yet")
		}
		return nil, nil, err
	}
	return m.key, m.chain, nil
}

// state names the machine's state as upstream's metric does.
func (m *machine) state(now time.Time) string {
	var end *endError
	switch {
	case errors.As(m.end, &end):
		return end.state
	case m.chain == nil:
		return "not_yet_issued"
	case now.After(m.notAfter):
		return "expired"
	case now.After(m.refreshAt.Add(overdue)):
		return "overdue_for_refresh"
	}
	return "fresh"
}

// asked says that the request the last step wanted was made at now.
func (m *machine) asked(name string, key []byte, now time.Time, jitter time.Duration) {
	m.pending = &pending{name, key, now.Add(abandon + jitter)}
}

// step looks at the clock and at the pending request: find returns it, or nil when it is not (or no
// longer) known. jitter keeps the pods of one deployment from asking all at once.
func (m *machine) step(now time.Time, find func(name string) *certificatesv1.PodCertificateRequest, jitter time.Duration) (o output) {
	if m.end != nil {
		return o
	}
	if p := m.pending; p != nil {
		r := find(p.name)
		if r == nil && !now.After(p.abandonAt) {
			o.wake = p.abandonAt.Add(1) // a cache that lags, or a deletion: only time tells
			return o
		}
		if r == nil {
			m.pending = nil
		} else {
			m.judge(now, r, jitter, &o)
			return o
		}
	}
	if m.chain != nil && now.Before(m.refreshAt) {
		o.wake = m.refreshAt
		return o
	}
	m.late(now, &o)
	o.ask = true
	return o
}

// judge takes in the verdict on the pending request, if there is one.
func (m *machine) judge(now time.Time, r *certificatesv1.PodCertificateRequest, jitter time.Duration, o *output) {
	name := r.Namespace + "/" + r.Name
	for _, c := range r.Status.Conditions {
		said := fmt.Sprintf("reason=%q, message=%q", c.Reason, c.Message)
		switch c.Type {
		case certificatesv1.PodCertificateRequestConditionTypeDenied:
			m.finish(o, "denied", c.Reason, c.Message)
			o.events = append(o.events, event{c.Type, "PodCertificateRequest " + name + " was denied, " + said})
			return
		case certificatesv1.PodCertificateRequestConditionTypeFailed:
			m.finish(o, "failed", c.Reason, c.Message)
			o.events = append(o.events, event{c.Type, "PodCertificateRequest " + name + " failed, " + said})
			return
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			s := &r.Status
			if s.BeginRefreshAt == nil || s.NotAfter == nil {
				continue // no API server lets this through
			}
			*m = machine{key: m.pending.key, chain: clean(s.CertificateChain), refreshAt: s.BeginRefreshAt.Add(jitter), notAfter: s.NotAfter.Time}
			o.changed, o.wake = true, m.refreshAt
			return
		}
	}
	m.late(now, o)
}

// endError is a verdict that no further request follows.
type endError struct{ state, reason, message string }

func (e *endError) Error() string {
	return fmt.Sprintf("PodCertificateRequest was permanently %s: reason=%q message=%q", e.state, e.reason, e.message)
}

func (m *machine) finish(o *output, state, reason, message string) {
	*m = machine{end: &endError{state, reason, message}}
	o.changed = true
}

// late tells once of a certificate that should have been replaced, and once of one that has expired.
func (m *machine) late(now time.Time, o *output) {
	if m.chain == nil {
		return
	}
	for _, l := range []struct {
		told *bool
		at   time.Time
		event
	}{
		{&m.toldOverdue, m.refreshAt.Add(overdue), event{"CertificateOverdueForRefresh", "PodCertificate refresh overdue"}},
		{&m.toldExpired, m.notAfter, event{"CertificateExpired", "PodCertificate expired"}},
	} {
		switch {
		case *l.told:
		case now.After(l.at):
			*l.told = true
			o.events = append(o.events, l.event)
		case o.wake.IsZero() || l.at.Before(o.wake):
			o.wake = l.at.Add(1)
		}
	}
}

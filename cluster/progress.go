package cluster

import (
	"context"
	"time"
)

// State of a step of a cluster's start or stop.
type State string

// States. A step that takes long reports what it Waits for.
const (
	Begun   State = "begun"
	Waits   State = "waits"
	Done    State = "done"
	Failed  State = "failed"
	Ready   State = "ready" // the whole cluster
	Stopped State = "stopped"
)

// Event is one line of progress, for a person or, as JSON, for the process
// that started this one.
type Event struct {
	Step   string        `json:"step"`
	State  State         `json:"state"`
	Detail string        `json:"detail,omitempty"`
	Took   time.Duration `json:"took,omitempty"`
}

// Progress receives events in order; it must not block for long. Nil is allowed.
type Progress func(Event)

func (p Progress) emit(e Event) {
	if p != nil {
		p(e)
	}
}

// step runs one stage and reports its beginning, its end and how long it took.
func (p Progress) step(name string, run func() (detail string, err error)) error {
	begin := time.Now()
	p.emit(Event{Step: name, State: Begun})
	detail, err := run()
	e := Event{Step: name, State: Done, Detail: detail, Took: time.Since(begin)}
	if err != nil {
		e.State, e.Detail = Failed, err.Error()
	}
	p.emit(e)
	return err
}

// steps runs the stages of a start in turn, up to the first that fails.
func (p Progress) steps(ctx context.Context, list []step) error {
	for _, s := range list {
		if err := p.step(s.name, func() (string, error) { return s.run(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

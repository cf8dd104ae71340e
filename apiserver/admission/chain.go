package admission

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/managedfields"
)

// Chain runs plugins, and tells upstream's metrics of how long each takes. It
// is a prometheus.Collector.
type Chain struct {
	admits, validates phase
	took, all         *prometheus.HistogramVec
	conditions        conditions
}

// phase is one half of admission.
type phase struct {
	kind  string // as metrics say
	steps []*step
	all   series
}

type step struct {
	plugin Plugin
	series series
}

// series are the durations by operation and outcome, made when there is one.
type series [len(operations)][2]atomic.Pointer[prometheus.Observer]

var operations = [...]Operation{Create, Update, Delete, Connect}

// NewChain returns a chain of plugins in order. Of those that have only one
// half, the other is left out.
func NewChain(plugins []Plugin) *Chain {
	vec := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiserver_admission_" + name + "_admission_duration_seconds", Help: help,
			Buckets: []float64{0.005, 0.025, 0.1, 0.5, 1, 2.5}}, append(labels, "type", "operation", "rejected"))
	}
	c := &Chain{
		admits: phase{kind: "admit"}, validates: phase{kind: "validate"}, conditions: newConditions(),
		took: vec("controller", "Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).", "name"),
		all:  vec("step", "Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit)."),
	}
	for _, p := range plugins {
		if _, half := p.(interface{ onlyValidates() }); !half {
			c.admits.steps = append(c.admits.steps, &step{plugin: p})
		}
		if _, half := p.(interface{ onlyAdmits() }); !half {
			c.validates.steps = append(c.validates.steps, &step{plugin: p})
		}
	}
	return c
}

// Admit runs every plugin's Admit in order and stops at the first error. What
// is no API status error becomes one: 403 naming the object. If a plugin asks
// for it, all run once more.
func (c *Chain) Admit(ctx context.Context, r *Request) error {
	var before []metav1.ManagedFieldsEntry
	if r.Object != nil {
		before = r.Object.GetManagedFields()
	}
	err := c.run(&c.admits, r, func(p Plugin) error { return p.Admit(ctx, r) })
	if err == nil && r.round.wanted {
		r.round.again = true
		err = c.run(&c.admits, r, func(p Plugin) error { return p.Admit(ctx, r) })
	}
	if err == nil && r.round.replaced {
		if bad := managedfields.ValidateManagedFields(r.Object.GetManagedFields()); bad != nil {
			r.Object.SetManagedFields(before)
			Warn(ctx, fmt.Sprintf(".metadata.managedFields was in an invalid state after admission; this could be caused by an "+
				"outdated mutating admission controller; please fix your requests: %v", bad))
		}
	}
	return err
}

// Validate runs every plugin's Validate in order, as Admit does.
func (c *Chain) Validate(ctx context.Context, r *Request) error {
	return c.run(&c.validates, r, func(p Plugin) error { return p.Validate(ctx, r) })
}

// run asks the steps of a phase one after the other; one's end is the next one's begin.
func (c *Chain) run(ph *phase, r *Request, ask func(Plugin) error) (err error) {
	if len(ph.steps) == 0 {
		return nil
	}
	op := slices.Index(operations[:], r.Operation())
	r.chain = c
	begin := time.Now()
	at := begin
	for _, s := range ph.steps {
		err = ask(s.plugin)
		now := time.Now()
		s.series.observe(op, err, now.Sub(at), c.took, s.plugin.Name(), ph.kind)
		at = now
		if err != nil {
			err = asStatus(r, err)
			break
		}
	}
	ph.all.observe(op, err, at.Sub(begin), c.all, ph.kind)
	return err
}

func (s *series) observe(op int, err error, took time.Duration, vec *prometheus.HistogramVec, labels ...string) {
	rejected := 0
	if err != nil {
		rejected = 1
	}
	slot := &s[op][rejected]
	o := slot.Load()
	if o == nil {
		made := vec.WithLabelValues(append(labels, string(operations[op]), strconv.FormatBool(err != nil))...)
		o = &made
		slot.Store(o)
	}
	(*o).Observe(took.Seconds())
}

func (c *Chain) vectors() []prometheus.Collector {
	return []prometheus.Collector{c.took, c.all, c.conditions.took, c.conditions.errors, c.conditions.excluded}
}

// Describe implements prometheus.Collector.
func (c *Chain) Describe(out chan<- *prometheus.Desc) {
	for _, v := range c.vectors() {
		v.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (c *Chain) Collect(out chan<- prometheus.Metric) {
	for _, v := range c.vectors() {
		v.Collect(out)
	}
}

package admission

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

type judge struct {
	noAdmit
	err error
}

func (judge) Name() string                               { return "Judge" }
func (j judge) Validate(context.Context, *Request) error { return j.err }

type changer struct{ noValidate }

func (changer) Name() string                          { return "Changer" }
func (changer) Admit(context.Context, *Request) error { return nil }

// Each half of a plugin that there is counts, as upstream counts it, up to the first that rejects.
func TestChainCounts(t *testing.T) {
	r := create("pods", pod())
	good, bad := NewChain([]Plugin{changer{}, judge{}}), NewChain([]Plugin{judge{err: errors.New("no")}, judge{}})
	if good.Admit(t.Context(), r) != nil || good.Validate(t.Context(), r) != nil || bad.Admit(t.Context(), r) != nil || bad.Validate(t.Context(), r) == nil {
		t.Fatal("the wrong one rejects")
	}
	for what, c := range map[string]struct {
		chain *Chain
		want  map[string]uint64
	}{
		"good": {good, map[string]uint64{"Changer CREATE false admit": 1, "Judge CREATE false validate": 1, "CREATE false admit": 1, "CREATE false validate": 1}},
		"bad":  {bad, map[string]uint64{"Judge CREATE true validate": 1, "CREATE true validate": 1}},
	} {
		registry := prometheus.NewRegistry()
		registry.MustRegister(c.chain)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]uint64{}
		for _, f := range families {
			for _, m := range f.Metric {
				key := ""
				for _, l := range m.Label { // by name: name, operation, rejected, type
					key += " " + l.GetValue()
				}
				got[key[1:]] = m.Histogram.GetSampleCount()
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: %v", what, got)
		}
		for k, n := range c.want {
			if got[k] != n {
				t.Errorf("%s: %s is %d, want %d, of %v", what, k, got[k], n, got)
			}
		}
	}
}

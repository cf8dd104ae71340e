package fairness

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/flowcontrol"
	"github.com/skiff-project/skiff/apiserver/initial"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/store/embedded"
)

// A server that starts makes its levels and schemas one by one. Until all are
// there the built-in ones hold: nobody is refused because a part is missing.
func TestNoPartIsFollowed(t *testing.T) {
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	o := Objects{Log: slog.New(slog.DiscardHandler), Dangling: func(context.Context, string, bool) error { return nil }}
	for _, r := range flowcontrol.Resources() {
		reg, err := registry.New(registry.Config{Resource: r, Store: st, Clock: clock.RealClock{}})
		if err != nil {
			t.Fatal(err)
		}
		if r.Name == "flowschemas" {
			o.Schemas = reg
		} else {
			o.Levels = reg
		}
	}
	create := func(r *registry.Registry, obj api.Object) {
		if _, err := r.Create(t.Context(), registry.Write{Name: obj.GetName()}, obj); err != nil {
			t.Error(err)
		}
	}
	levels := initial.PriorityLevels()
	create(o.Levels, levels[0])
	called, goOn := make(chan bool, 1), make(chan bool)
	first := true
	o.Maintain = func(ctx context.Context) error {
		if !first {
			return nil
		}
		first = false
		called <- true
		<-goOn
		for _, pl := range levels[1:] {
			create(o.Levels, pl)
		}
		for _, fs := range initial.FlowSchemas() {
			create(o.Schemas, fs)
		}
		return nil
	}
	l := New(600, clock.RealClock{})
	l.Configure(initial.PriorityLevels(), initial.FlowSchemas())
	done := make(chan bool)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { l.Follow(ctx, o); close(done) }()
	defer func() { cancel(); <-done }()

	select {
	case <-called:
	case <-time.After(10 * time.Second):
		t.Fatal("a part was taken over before the rest was made")
	}
	if p := enter(t, l, as("admin", auth.GroupMasters), Work{Seats: 1}); p.Schema() != "" {
		t.Error("the built-in schemas have no UID, this one has", p.Schema())
	}
	close(goOn)
	for range 500 {
		if enter(t, l, as("admin", auth.GroupMasters), Work{Seats: 1}).Schema() != "" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("what is stored is not followed")
}

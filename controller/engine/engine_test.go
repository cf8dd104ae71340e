package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/controller/engine"
)

// run runs a controller over config maps until enough reports true.
func run(t *testing.T, reconcile func(key string, n int) error, enough func(calls map[string]int) bool) map[string]int {
	t.Helper()
	client := fake.NewSimpleClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"}})
	f := informers.NewSharedInformerFactory(client, 0)
	env := engine.Env{Client: client, Informers: f, Clock: clock.RealClock{}, Log: slog.New(slog.DiscardHandler)}
	var mu sync.Mutex
	calls := map[string]int{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c := &engine.Controller{Name: "test",
		Sources: []engine.Source{{Resource: "configmaps", Informer: f.Core().V1().ConfigMaps().Informer(), On: engine.Each}},
		Reconcile: func(_ context.Context, key string) error {
			mu.Lock()
			calls[key]++
			n := calls[key]
			if enough(calls) {
				cancel()
			}
			mu.Unlock()
			return reconcile(key, n)
		}}
	if err := c.Run(ctx, env, func() { f.Start(ctx.Done()) }); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Fatalf("timed out with calls %v", calls)
	}
	f.Shutdown()
	return calls
}

func TestErrorsComeBack(t *testing.T) {
	run(t, func(string, int) error { return errors.New("no") }, func(c map[string]int) bool { return c["ns/a"] == 4 })
}

func TestPanicsAreContained(t *testing.T) {
	run(t, func(_ string, n int) error {
		if n == 1 {
			panic("boom")
		}
		return nil
	}, func(c map[string]int) bool { return c["ns/a"] == 2 })
}

func TestLaterComesBackOnTime(t *testing.T) {
	begin := time.Now()
	run(t, func(string, int) error { return engine.Later(50 * time.Millisecond) }, func(c map[string]int) bool { return c["ns/a"] == 3 })
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("came back after %v", took)
	}
}

func TestLaterSurvivesWrapping(t *testing.T) {
	if d, ok := engine.LaterThan(fmt.Errorf("x: %w", engine.Later(time.Second))); !ok || d != time.Second {
		t.Errorf("%v %v", d, ok)
	}
	if _, ok := engine.LaterThan(errors.New("x")); ok {
		t.Error("any error is Later")
	}
}

func TestValidate(t *testing.T) {
	ok := func(context.Context, string) error { return nil }
	for name, c := range map[string]engine.Controller{"no name": {Reconcile: ok}, "no reconcile": {Name: "x"}} {
		if c.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestWrites(t *testing.T) {
	c := engine.Controller{Outputs: []engine.Resource{"pods", "deployments.apps/status", "*"}}
	for r, want := range map[engine.Resource]bool{"pods": true, "secrets": true, "deployments.apps/status": true, "pods/status": false} {
		if got := c.Writes(r); got != want {
			t.Errorf("%s: %v", r, got)
		}
	}
}

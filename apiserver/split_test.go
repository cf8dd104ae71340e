package apiserver_test

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
)

// splitStores opens a store, and one for each set of servers that the overrides name.
func splitStores(t *testing.T, overrides ...string) (store.Store, []store.Store) {
	t.Helper()
	var stores []store.Store
	open := func([]string) (store.Store, error) {
		st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate, Index: registry.Index(all.Resources())})
		if err == nil {
			stores = append(stores, st)
		}
		return st, err
	}
	first, err := open(nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := registry.ParseOverrides(overrides)
	if err != nil {
		t.Fatal(err)
	}
	st, err := registry.Split(first, list, all.Resources(), open, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st, stores
}

// keys counts those that begin with prefix.
func keys(t *testing.T, st store.Store, prefix string) int {
	t.Helper()
	snap, err := st.Snapshot(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return snap.Count(prefix, prefix+"\xff")
}

// Objects are where the overrides say, and everything about them goes by the revisions of that store.
func TestOverridesOfResources(t *testing.T) {
	st, stores := splitStores(t, "apps/*#b;c", "/events#a", "apps/deployments#a", "apps/statefulsets#c;b", "apiextensions.k8s.io/*#a", "/nothing#a")
	s := newServer(t, func(c *apiserver.Config) { c.Store = st })
	if len(stores) != 3 {
		t.Fatalf("%d stores are opened for three sets of servers", len(stores))
	}
	clients := typed(t, s)
	events := clients.CoreV1().Events("default")
	event := func(name string) *corev1.Event {
		e, err := events.Create(t.Context(), &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: name},
			InvolvedObject: corev1.ObjectReference{Namespace: "default"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for i := range 3 { // so that revisions differ
		if _, err := clients.CoreV1().ConfigMaps("default").Create(t.Context(), configMap(string(rune('a'+i)), nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	one := event("one")
	l, err := events.List(t.Context(), metav1.ListOptions{ResourceVersion: one.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
	if err != nil || len(l.Items) != 1 || l.ResourceVersion != one.ResourceVersion {
		t.Fatalf("%+v, %v", l, err)
	}
	initial := false
	for i, o := range []metav1.ListOptions{
		{ResourceVersion: l.ResourceVersion},
		{SendInitialEvents: &initial, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true},
	} {
		w, err := events.Watch(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		made := event(fmt.Sprint("watched-", i))
		if ev := next(t, w); ev.Object.(*corev1.Event).Name != made.Name {
			t.Errorf("watch %d: %v", i, ev)
		}
		w.Stop()
		if err := events.Delete(t.Context(), made.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := clients.EventsV1().Events("default").Get(t.Context(), "one", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	raw := newRaw(s)
	for _, kind := range []string{"Deployment", "StatefulSet"} {
		body := `{"metadata":{"name":"x"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`
		path := "/apis/apps/v1/namespaces/default/" + strings.ToLower(kind) + "s"
		if code, text := raw.do(t, "POST", path, "application/json", []byte(body)); code != 201 {
			t.Fatal(code, text)
		}
	}
	for prefix, want := range map[string][3]int{"/registry/configmaps/default/": {3, 0, 0}, "/registry/events/": {0, 0, 1},
		"/registry/deployments/": {0, 0, 1}, "/registry/statefulsets/": {0, 1, 0}, "/registry/namespaces/default": {1, 0, 0}} {
		for i, n := range want {
			if got := keys(t, stores[i], prefix); got != n {
				t.Errorf("store %d has %d keys %s, want %d", i, got, prefix, n)
			}
		}
	}
	if leases, err := stores[2].Leases().List(t.Context()); err != nil || len(leases) == 0 {
		t.Errorf("the event does not end: %v, %v", leases, err)
	}
	if _, text := raw.do(t, "GET", "/metrics", "", nil); !strings.Contains(text, `apiserver_storage_size_bytes{storage_cluster_id="etcd-2"}`) {
		t.Error("no size of the last store")
	}
	stores[2].Close()
	code, text := raw.do(t, "GET", "/readyz?verbose", "", nil)
	for _, want := range []string{"[+]etcd ok", "[+]etcd-override-0 ok", "[-]etcd-override-1 failed", "[+]etcd-override-readiness-0 ok", "[-]etcd-override-readiness-1 failed"} {
		if !strings.Contains(text, want) {
			t.Errorf("readyz says %d without %q: %s", code, want, text)
		}
	}
}

// Each store's history is forgotten.
func TestEveryStoreIsCompacted(t *testing.T) {
	st, stores := splitStores(t, "/configmaps#a")
	s := newServer(t, func(c *apiserver.Config) { c.Store, c.CompactionInterval = st, 20*time.Millisecond })
	maps := typed(t, s).CoreV1().ConfigMaps("default")
	for began := time.Now(); stores[1].Status().CompactRevision == 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("it is not compacted")
		}
		if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "a"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// A set of servers that cannot be reached is an error that says whose, and leaves nothing open.
func TestAnOverrideThatCannotBeOpened(t *testing.T) {
	list, err := registry.ParseOverrides([]string{"/pods#a", "/events#b"})
	if err != nil {
		t.Fatal(err)
	}
	var opened []store.Store
	_, err = registry.Split(nil, list, all.Resources(), func(servers []string) (store.Store, error) {
		if servers[0] == "b" {
			return nil, errors.New("nobody answers")
		}
		st, err := embedded.Open(embedded.Options{})
		opened = append(opened, st)
		return st, err
	}, slog.New(slog.DiscardHandler))
	if err == nil || err.Error() != "--etcd-servers-overrides of events: nobody answers" {
		t.Error(err)
	}
	if _, err := opened[0].Snapshot(t.Context(), 0); !errors.Is(err, store.ErrClosed) {
		t.Errorf("the other is open: %v", err)
	}
}

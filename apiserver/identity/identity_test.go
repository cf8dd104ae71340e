package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/identity"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/serviceaccount"
	"github.com/skiff-project/skiff/store/embedded"
)

type allowAll struct{}

func (allowAll) Authorize(context.Context, auth.Attributes) (auth.Decision, string, error) {
	return auth.Allow, "", nil
}

var admin = auth.User{Name: "admin", Groups: []string{auth.GroupMasters, auth.GroupAuthenticated}}

// start runs an API server over a store in memory until stop is called.
func start(t *testing.T, edit func(*apiserver.Config)) (s *apiserver.Server, c *kubernetes.Clientset, stop func()) {
	t.Helper()
	st, err := embedded.Open(embedded.Options{Decorate: registry.Decorate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	cfg := apiserver.Config{Store: st, Resources: all.Resources(), Authorizer: allowAll{}, Log: slog.New(slog.DiscardHandler)}
	if edit != nil {
		edit(&cfg)
	}
	if s, err = apiserver.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return s, kubernetes.NewForConfigOrDie(s.InProcess(admin)), stop
}

// until waits for what is written in the background.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", what)
		}
	}
}

func lease(t *testing.T, c *kubernetes.Clientset, name string) *coordinationv1.Lease {
	t.Helper()
	l, err := c.CoordinationV1().Leases("kube-system").Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

const tracking = "kube-apiserver-legacy-service-account-token-tracking"

// A server has its Lease and the ConfigMap soon after its start, and takes the Lease away at its end.
func TestAServersLease(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	s, c, stop := start(t, nil)
	until(t, "the Lease", func() bool { return lease(t, c, identity.Name(host)) != nil })
	l := lease(t, c, identity.Name(host))
	if l.Labels["apiserver.kubernetes.io/identity"] != "kube-apiserver" || l.Labels["kubernetes.io/hostname"] != host ||
		!strings.HasPrefix(*l.Spec.HolderIdentity, l.Name+"_") || *l.Spec.LeaseDurationSeconds != 3600 || l.ManagedFields[0].Manager != "kube-apiserver" {
		t.Errorf("%+v", l)
	}
	until(t, "the ConfigMap", func() bool {
		cm, err := c.CoreV1().ConfigMaps("kube-system").Get(t.Context(), tracking, metav1.GetOptions{})
		return err == nil && cm.Data["since"] != ""
	})
	reader := s.Reader()
	stop()
	if _, err := reader.Get("coordination.k8s.io", "leases", "kube-system", l.Name); !apierrors.IsNotFound(err) {
		t.Errorf("after the end: %v", err)
	}
}

// Upstream's name of the host "master".
func TestName(t *testing.T) {
	if got := identity.Name("master"); got != "apiserver-oodnacusc5bcuykzhczyk7a7zq" {
		t.Error(got)
	}
}

// What happens to the Lease of one more server, by a clock of its own.
func TestRenewals(t *testing.T) {
	s, c, _ := start(t, nil)
	until(t, "the ConfigMap", func() bool {
		_, err := c.CoreV1().ConfigMaps("kube-system").Get(t.Context(), tracking, metav1.GetOptions{})
		return err == nil
	})
	leases := c.CoordinationV1().Leases("kube-system")
	labels := map[string]string{"apiserver.kubernetes.io/identity": "kube-apiserver"}
	now, length, holder := metav1.NewMicroTime(time.Now()), int32(3600), "x"
	old := metav1.NewMicroTime(time.Now().Add(-2 * time.Hour))
	for name, l := range map[string]*coordinationv1.Lease{
		"expired":  {Spec: coordinationv1.LeaseSpec{RenewTime: &old, LeaseDurationSeconds: &length}, ObjectMeta: metav1.ObjectMeta{Labels: labels}},
		"timeless": {Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}, ObjectMeta: metav1.ObjectMeta{Labels: labels}},
		"live":     {Spec: coordinationv1.LeaseSpec{RenewTime: &now, LeaseDurationSeconds: &length}, ObjectMeta: metav1.ObjectMeta{Labels: labels}},
		"other":    {Spec: coordinationv1.LeaseSpec{RenewTime: &old, LeaseDurationSeconds: &length}},
	} {
		l.Name = name
		if _, err := leases.Create(t.Context(), l, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	clock := clocktesting.NewFakeClock(time.Now())
	run := func(shared bool) (stop func()) {
		i, err := identity.New(identity.Config{Client: s.InProcess(admin), Hostname: "h2", Peers: "192.0.2.2:6443", Shared: shared, Clock: clock, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); i.Run(ctx) }()
		return func() { cancel(); <-done }
	}
	name := identity.Name("h2")
	waits := func() { t.Helper(); until(t, "the next wait", clock.HasWaiters) }
	renewed := func() time.Time { return lease(t, c, name).Spec.RenewTime.Time }

	stop := run(true)
	waits()
	if l := lease(t, c, name); l == nil || l.Annotations["kubernetes.io/peer-advertise-address"] != "192.0.2.2:6443" {
		t.Errorf("%+v", l)
	}
	for name, want := range map[string]bool{"expired": false, "timeless": false, "live": true, "other": true} {
		if got := lease(t, c, name) != nil; got != want {
			t.Errorf("%s is there: %v", name, got)
		}
	}
	first := lease(t, c, name)
	clock.Step(11 * time.Second)
	waits()
	if l := lease(t, c, name); !l.Spec.RenewTime.After(first.Spec.RenewTime.Time) || l.UID != first.UID {
		t.Errorf("after 11 s: %v", l)
	}
	// Somebody else writes it, and then deletes it: both are found out by the next renewal.
	if _, err := leases.Patch(t.Context(), name, "application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	clock.Step(11 * time.Second)
	waits()
	if l := lease(t, c, name); l.Labels["a"] != "b" || !l.Spec.RenewTime.Time.Equal(clock.Now().Truncate(time.Microsecond)) {
		t.Errorf("after another's write: %+v", l)
	}
	if err := leases.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	clock.Step(11 * time.Second)
	waits()
	if l := lease(t, c, name); l == nil || l.UID == first.UID {
		t.Errorf("after another's deletion: %+v", l)
	}
	if _, err := c.CoreV1().ConfigMaps("kube-system").Patch(t.Context(), tracking, "application/merge-patch+json", []byte(`{"data":{"since":"ever"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	clock.Step(31 * time.Minute)
	waits()
	cm, err := c.CoreV1().ConfigMaps("kube-system").Get(t.Context(), tracking, metav1.GetOptions{})
	if err != nil || cm.Data["since"] != clock.Now().UTC().Format(time.DateOnly) {
		t.Errorf("%v %v", cm, err)
	}
	stop()
	if lease(t, c, name) != nil {
		t.Error("the Lease is left")
	}

	clock = clocktesting.NewFakeClock(time.Now())
	stop = run(false)
	waits()
	was := renewed()
	clock.Step(9 * time.Minute) // no other server is there to be told
	if !clock.HasWaiters() || !renewed().Equal(was) {
		t.Errorf("renewed after 9 minutes: %v", renewed())
	}
	clock.Step(2 * time.Minute)
	waits()
	if !renewed().After(was) {
		t.Error("not renewed after 11 minutes")
	}
	stop()
}

// A token in a Secret is good, and the day of its use is noted on the Secret.
func TestUseOfALegacyToken(t *testing.T) {
	var tokens *serviceaccount.Tokens
	_, c, _ := start(t, func(cfg *apiserver.Config) {
		reader, err := apiserver.NewReader(cfg.Store, cfg.Resources, nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if tokens, err = serviceaccount.New(serviceaccount.Config{SigningKey: key, Getter: getter{reader}}); err != nil {
			t.Fatal(err)
		}
		cfg.ServiceAccounts = tokens
	})
	sa, err := c.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := tokens.Legacy(sa, "s")
	if err != nil {
		t.Fatal(err)
	}
	secrets := c.CoreV1().Secrets("default")
	if _, err := secrets.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "s", Annotations: map[string]string{"kubernetes.io/service-account.name": "a"}},
		Type:       corev1.SecretTypeServiceAccountToken, Data: map[string][]byte{"token": []byte(token)},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	before := time.Now().UTC().Format(time.DateOnly)
	if _, ok, err := tokens.AuthenticateToken(t.Context(), token, nil); !ok {
		t.Fatal(err)
	}
	s, err := secrets.Get(t.Context(), "s", metav1.GetOptions{})
	if day := s.Labels["kubernetes.io/legacy-token-last-used"]; err != nil || day < before {
		t.Errorf("%v %v", s, err)
	}
}

type getter struct{ *apiserver.Reader }

func (g getter) ServiceAccount(_ context.Context, ns, n string) (*corev1.ServiceAccount, error) {
	return as[*corev1.ServiceAccount](g.Get("", "serviceaccounts", ns, n))
}
func (g getter) Secret(_ context.Context, ns, n string) (*corev1.Secret, error) {
	return as[*corev1.Secret](g.Get("", "secrets", ns, n))
}
func (g getter) Pod(context.Context, string, string) (*corev1.Pod, error) { panic("not asked") }
func (g getter) Node(context.Context, string) (*corev1.Node, error)       { panic("not asked") }

func as[T any](o any, err error) (T, error) {
	if err != nil {
		var none T
		return none, err
	}
	return o.(T), nil
}

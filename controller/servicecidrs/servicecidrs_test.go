package servicecidrs_test

import (
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/servicecidrs"
)

func cidr(name string, ranges ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: ranges}}
}

func address(name string) *networkingv1.IPAddress {
	return &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}}}
}

// status is "True", "False <reason>", or "gone" when nothing keeps the range any more.
func status(t *testing.T, w *enginetest.World, name string) string {
	t.Helper()
	c, err := w.Client.NetworkingV1().ServiceCIDRs().Get(t.Context(), name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if err != nil || c.DeletionTimestamp != nil && len(c.Finalizers) == 0 {
		return "gone"
	}
	if len(c.Finalizers) != 1 || len(c.Status.Conditions) != 1 {
		t.Fatalf("%+v", c)
	}
	return string(c.Status.Conditions[0].Status) + " " + c.Status.Conditions[0].Reason
}

func TestRangesComeAndGo(t *testing.T) {
	for _, tt := range []struct {
		name     string
		other    string // range that stays
		address  string
		now, end string // right after the deletion, and a while after the addresses are gone
	}{
		{"unused", "10.1.0.0/16", "10.1.0.5", "True ", "gone"},
		{"used", "10.1.0.0/16", "10.2.0.5", "False Terminating", "gone"},
		{"used, within another", "10.0.0.0/8", "10.2.0.5", "True ", "gone"},
		{"used, the address in another", "10.2.0.0/28", "10.2.0.5", "True ", "gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := enginetest.New(t, cidr("stays", tt.other), cidr("goes", "10.2.0.0/16"), address(tt.address))
			w.Build(servicecidrs.New(w.Env)).Settle()
			if got := status(t, w, "goes"); got != "True " {
				t.Fatalf("made: %s", got)
			}
			c, err := w.Client.NetworkingV1().ServiceCIDRs().Get(t.Context(), "goes", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			c.DeletionTimestamp = new(metav1.NewTime(w.Clock.Now()))
			w.Put(c)
			w.Settle()
			if got := status(t, w, "goes"); got != tt.now {
				t.Errorf("deleted: %s, want %s", got, tt.now)
			}
			w.Remove(address(tt.address))
			w.Step(11 * time.Second).Settle()
			if got := status(t, w, "goes"); got != tt.end {
				t.Errorf("in the end: %s, want %s", got, tt.end)
			}
		})
	}
}

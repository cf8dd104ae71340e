package serviceaccount_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/serviceaccount"
)

func TestDefaultAccount(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	going := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}
	w := enginetest.New(t, ns, going)
	w.Build(serviceaccount.New(w.Env)).Settle()
	if got := strings.Join(w.Writes(), ", "); got != "create serviceaccounts default" {
		t.Errorf("writes %s", got)
	}
	sa, err := w.Client.CoreV1().ServiceAccounts("a").Get(t.Context(), "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Remove(sa)
	w.Settle()
	if got := strings.Join(w.Writes(), ", "); got != "create serviceaccounts default" {
		t.Errorf("writes after deletion %s", got)
	}
}

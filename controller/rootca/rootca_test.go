package rootca_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/rootca"
)

func TestPublishesAndRepairs(t *testing.T) {
	w := enginetest.New(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	w.Build(rootca.New(w.Env, []byte("PEM"))).Settle()
	get := func() *corev1.ConfigMap {
		cm, err := w.Client.CoreV1().ConfigMaps("a").Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return cm.DeepCopy()
	}
	cm := get()
	if cm.Data["ca.crt"] != "PEM" || cm.Annotations["kubernetes.io/description"] == "" {
		t.Errorf("config map %+v", cm)
	}
	cm.Data = map[string]string{"ca.crt": "forged", "more": "x"}
	w.Put(cm)
	w.Settle()
	if got := get().Data; len(got) != 1 || got["ca.crt"] != "PEM" {
		t.Errorf("not repaired: %v", got)
	}
	w.Remove(get())
	w.Settle()
	get()
	w.Writes()
	w.Settle()
	if again := w.Writes(); len(again) > 0 {
		t.Errorf("writes without need: %v", again)
	}
}

func TestNeedsCA(t *testing.T) {
	if _, err := rootca.New(enginetest.New(t).Env, nil); err == nil {
		t.Error("no error")
	}
}

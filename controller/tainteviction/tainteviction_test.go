package tainteviction_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/tainteviction"
)

func node(taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "n"}, Spec: corev1.NodeSpec{Taints: taints}}
}

func pod(tolerations ...corev1.Toleration) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "p"},
		Spec: corev1.PodSpec{NodeName: "n", Tolerations: tolerations}}
}

var unreachable = corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}

func tolerate(seconds *int64) corev1.Toleration {
	return corev1.Toleration{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists,
		Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}
}

func TestEviction(t *testing.T) {
	five := int64(300)
	for name, c := range map[string]struct {
		taints      []corev1.Taint
		tolerations []corev1.Toleration
		after       time.Duration // -1: never
	}{
		"no taint":            {nil, nil, -1},
		"NoSchedule only":     {[]corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}, nil, -1},
		"not tolerated":       {[]corev1.Taint{unreachable}, nil, 0},
		"tolerated":           {[]corev1.Taint{unreachable}, []corev1.Toleration{tolerate(nil)}, -1},
		"tolerated 5 minutes": {[]corev1.Taint{unreachable}, []corev1.Toleration{tolerate(&five)}, 5 * time.Minute},
		"negative":            {[]corev1.Taint{unreachable}, []corev1.Toleration{tolerate(new(int64(-1)))}, 0},
		"everything":          {[]corev1.Taint{unreachable}, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, -1},
		"other value":         {[]corev1.Taint{{Key: "k", Value: "a", Effect: "NoExecute"}}, []corev1.Toleration{{Key: "k", Value: "b"}}, 0},
		"shortest counts": {[]corev1.Taint{unreachable, {Key: "k", Effect: "NoExecute"}},
			[]corev1.Toleration{tolerate(&five), {Key: "k", Operator: "Exists", TolerationSeconds: new(int64(10))}}, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := enginetest.New(t, node(c.taints...), pod(c.tolerations...))
			w.Build(tainteviction.New(w.Env)).Settle()
			gone := func() bool {
				_, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), "p", metav1.GetOptions{})
				return err != nil
			}
			if c.after > 0 {
				w.Step(c.after - time.Second).Settle()
				if gone() {
					t.Fatal("evicted too early")
				}
				w.Step(time.Second).Settle()
			} else if c.after < 0 {
				w.Step(time.Hour).Settle()
			}
			if gone() != (c.after >= 0) {
				t.Fatalf("gone: %v", gone())
			}
			if writes := strings.Join(w.Writes(), "\n"); gone() && !strings.Contains(writes, `"reason":"DeletionByTaintManager"`) {
				t.Errorf("no disruption condition in %s", writes)
			}
		})
	}
}

func TestRecoveryCancels(t *testing.T) {
	w := enginetest.New(t, node(unreachable), pod(tolerate(new(int64(300)))))
	w.Build(tainteviction.New(w.Env)).Settle()
	w.Step(4 * time.Minute)
	w.Put(node())
	w.Settle()
	w.Step(time.Hour).Settle()
	if _, err := w.Client.CoreV1().Pods("ns").Get(t.Context(), "p", metav1.GetOptions{}); err != nil {
		t.Fatal("evicted after recovery")
	}
	if ev := w.Events(); len(ev) != 1 || ev[0] != "Normal TaintManagerEviction Cancelling deletion of Pod ns/p" {
		t.Errorf("events %q", ev)
	}
}

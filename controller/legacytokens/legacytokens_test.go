package legacytokens_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/legacytokens"
)

const (
	lastUsed = "kubernetes.io/legacy-token-last-used"
	invalid  = "kubernetes.io/legacy-token-invalid-since"
	day      = 24 * time.Hour
	period   = 10 * day
)

// ago is a day before the World's begin.
func ago(days int) string {
	return enginetest.Epoch.AddDate(0, 0, -days).Format(time.DateOnly)
}

// token is one made for account a 30 days ago.
func token(name string, labels map[string]string, change ...func(*corev1.Secret)) *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), ResourceVersion: "1", Labels: labels,
			CreationTimestamp: metav1.NewTime(enginetest.Epoch.Add(-30 * day)), Annotations: map[string]string{corev1.ServiceAccountNameKey: "a"}},
		Type: corev1.SecretTypeServiceAccountToken,
	}
	for _, f := range change {
		f(s)
	}
	return s
}

func since(day string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "kube-apiserver-legacy-service-account-token-tracking"},
		Data: map[string]string{"since": day}}
}

// look has the controller look once; it returns what was written and when it wants to look again.
func look(t *testing.T, w *enginetest.World) (string, time.Duration) {
	t.Helper()
	w.Build(legacytokens.New(w.Env, w.Client, period))
	w.Observe()
	after, ok := engine.LaterThan(w.C.Reconcile(t.Context(), "all"))
	if !ok {
		t.Error("it does not ask to look again")
	}
	return strings.Join(w.Writes(), "\n"), after
}

func TestUnusedTokens(t *testing.T) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", UID: "a"}}
	for _, name := range strings.Fields("never used marked old env volume young badly other going") {
		account.Secrets = append(account.Secrets, corev1.ObjectReference{Name: name})
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "env"}}}}}},
		Volumes:    []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "volume"}}}},
	}}
	w := enginetest.New(t, since(ago(20)), account, pod,
		token("never", nil),
		token("used", map[string]string{lastUsed: ago(10)}),
		token("marked", map[string]string{lastUsed: ago(11), invalid: ago(10)}),
		token("old", map[string]string{lastUsed: ago(21), invalid: ago(11)}),
		token("env", nil), token("volume", nil),
		token("young", nil, func(s *corev1.Secret) { s.CreationTimestamp = metav1.NewTime(enginetest.Epoch.Add(-period)) }),
		token("badly", map[string]string{lastUsed: "never"}),
		token("other", nil, func(s *corev1.Secret) { s.Annotations[corev1.ServiceAccountUIDKey] = "another" }),
		token("manual", nil),
		token("going", nil, func(s *corev1.Secret) { s.DeletionTimestamp = &metav1.Time{Time: enginetest.Epoch} }),
	)
	wrote, after := look(t, w)
	want := `patch secrets never {"metadata":{"labels":{"` + invalid + `":"` + ago(0) + `"},"uid":"never"}}` + "\ndelete secrets old"
	if lines := strings.Split(wrote, "\n"); len(lines) == 2 && strings.HasPrefix(lines[0], "delete") {
		wrote = lines[1] + "\n" + lines[0] // a cache has no order
	}
	if wrote != want || after != day {
		t.Errorf("wrote\n%s\nand looks again in %s", wrote, after)
	}
}

// Nothing is unused before uses were noted for a whole period.
func TestNotTrackedLongEnough(t *testing.T) {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", UID: "a"}, Secrets: []corev1.ObjectReference{{Name: "never"}}}
	w := enginetest.New(t, account, token("never", nil))
	if wrote, after := look(t, w); wrote != "" || after != time.Minute {
		t.Errorf("no config map: wrote %q, looks again in %s", wrote, after)
	}
	w.Put(since(ago(10))) // from the next day on
	if wrote, after := look(t, w); wrote != "" || after != day {
		t.Errorf("tracked for 9 days: wrote %q, looks again in %s", wrote, after)
	}
	w.Put(since("once"))
	w.Observe()
	if _, later := engine.LaterThan(w.C.Reconcile(t.Context(), "all")); later {
		t.Error("a config map without a day is no error")
	}
}

package check

import (
	"math/rand"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
)

// TestPlainIsValid: what looks plain is valid by the regular expressions, and
// the usual looks plain.
func TestPlainIsValid(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	plain := 0
	for range 200_000 {
		n := r.Intn(8)
		if r.Intn(100) == 0 {
			n = 60 + r.Intn(200)
		}
		var b strings.Builder
		for range n {
			b.WriteByte("aZ09-_./é"[r.Intn(9)])
		}
		s := b.String()
		if plainKey(s) {
			if plain++; len(validation.IsQualifiedName(s)) > 0 {
				t.Fatalf("%q is no label key", s)
			}
		}
		if plainName(s) && len(validation.IsValidLabelValue(s)) > 0 {
			t.Fatalf("%q is no label value", s)
		}
		if plainSubdomain(s) && len(validation.IsDNS1123Subdomain(s)) > 0 {
			t.Fatalf("%q is no subdomain", s)
		}
	}
	if plain < 1000 {
		t.Errorf("only %d were plain", plain)
	}
	for _, s := range []string{"app", "app.kubernetes.io/name", "pod-template-hash", "kubernetes.io/config.seen", "a/B_c"} {
		if !plainKey(s) {
			t.Errorf("%q is not plain", s)
		}
	}
}

// TestDoubtfulHidesNoMistake: validation says the same of what Doubtful leaves.
func TestDoubtfulHidesNoMistake(t *testing.T) {
	for _, m := range []map[string]string{
		nil, {"app": "web"}, {"app": ""}, {"app": "-"}, {"/a": "b"}, {"A/a": "b"}, {"app": "web", "a..b/c": "d"}, {"a": strings.Repeat("x", 300<<10)},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: m, Annotations: m}}
		d := Doubtful(pod)
		if got, want := metavalidation.ValidateLabels(d.GetLabels(), nil), metavalidation.ValidateLabels(m, nil); len(got) != len(want) {
			t.Errorf("labels %.40q: %v, want %v", m, got, want)
		}
		if got, want := apivalidation.ValidateAnnotations(d.GetAnnotations(), nil), apivalidation.ValidateAnnotations(m, nil); len(got) != len(want) {
			t.Errorf("annotations %.40q: %v, want %v", m, got, want)
		}
	}
}

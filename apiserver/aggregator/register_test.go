package aggregator

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api/apiregistration"
)

// TestDecide goes through all that may be stored and wanted.
func TestDecide(t *testing.T) {
	of := func(label string, priority int32) *apiregistration.APIService {
		s := &apiregistration.APIService{ObjectMeta: metav1.ObjectMeta{}}
		s.Spec.VersionPriority = priority
		if label != "" {
			s.Labels = map[string]string{managedLabel: label}
		}
		return s
	}
	for _, tt := range []struct {
		about           string
		have, want      *apiregistration.APIService
		synced, atStart bool
		becomes         action
	}{
		{"nothing at all", nil, nil, false, false, nothing},
		{"a built-in one at the first start", nil, of(onStart, 1), false, false, create},
		{"a built-in one somebody deleted", nil, of(onStart, 1), true, true, nothing},
		{"a definition's", nil, of(always, 1), true, false, create},
		{"somebody's own, also wanted", of("", 1), of(always, 2), false, true, nothing},
		{"somebody's own, with another label", of("no", 1), nil, false, true, nothing},
		{"a built-in one of an older release", of(onStart, 1), nil, false, true, remove},
		{"a built-in one another server made since", of(onStart, 1), nil, false, false, nothing},
		{"a built-in one that changed while nobody looked", of(onStart, 1), of(onStart, 2), false, true, update},
		{"a built-in one that changed later", of(onStart, 1), of(onStart, 2), true, true, nothing},
		{"a built-in one as it should be", of(onStart, 1), of(onStart, 1), false, true, nothing},
		{"one whose definition is gone", of(always, 1), nil, true, false, remove},
		{"a definition's that somebody changed", of(always, 1), of(always, 2), true, false, update},
	} {
		if got := decide(tt.have, tt.want, tt.synced, tt.atStart); got != tt.becomes {
			t.Errorf("%s: %d, want %d", tt.about, got, tt.becomes)
		}
	}
}

package initial_test

import (
	"testing"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/initial"
)

func TestUpdateFlowControl(t *testing.T) {
	find := func(name string) *flowcontrolv1.FlowSchema {
		for _, f := range initial.FlowSchemas() {
			if f.Name == name {
				f.Generation = 1
				return f
			}
		}
		t.Fatalf("no flow schema %s", name)
		return nil
	}
	for _, tc := range []struct {
		name     string
		edit     func(*flowcontrolv1.FlowSchema)
		changed  bool
		restored bool
	}{
		{"probes", func(*flowcontrolv1.FlowSchema) {}, false, true},
		{"probes", func(f *flowcontrolv1.FlowSchema) { f.Spec.MatchingPrecedence = 7 }, true, true},
		{"probes", func(f *flowcontrolv1.FlowSchema) {
			f.Spec.MatchingPrecedence, f.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = 7, "false"
		}, false, false},
		{"probes", func(f *flowcontrolv1.FlowSchema) { f.Spec.MatchingPrecedence, f.Annotations, f.Generation = 7, nil, 2 }, true, false},
		{"exempt", func(f *flowcontrolv1.FlowSchema) {
			f.Spec.MatchingPrecedence, f.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = 7, "false"
		}, true, true},
	} {
		have, want := find(tc.name), find(tc.name)
		tc.edit(have)
		if changed := initial.UpdateFlowControl(have, api.Object(want)); changed != tc.changed {
			t.Errorf("%s: changed %v, want %v", tc.name, changed, tc.changed)
		}
		if restored := have.Spec.MatchingPrecedence == want.Spec.MatchingPrecedence; restored != tc.restored {
			t.Errorf("%s: restored %v, want %v", tc.name, restored, tc.restored)
		}
	}
}

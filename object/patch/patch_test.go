package patch

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

func code(err error) int32 {
	var st apierrors.APIStatus
	if errors.As(err, &st) {
		return st.Status().Code
	}
	return 0
}

func TestJSONAndMerge(t *testing.T) {
	const doc = `{"a":{"b":1},"l":[1,2]}`
	for _, tc := range []struct {
		merge       bool
		patch, want string
		code        int32
	}{
		{false, `[{"op":"replace","path":"/a/b","value":2}]`, `{"a":{"b":2},"l":[1,2]}`, 0},
		{false, `[{"op":"add","path":"/l/-","value":3}]`, `{"a":{"b":1},"l":[1,2,3]}`, 0},
		{false, `[{"op":"remove","path":"/nope"}]`, "", 422},
		{false, `[{"op":"test","path":"/a/b","value":9}]`, "", 422},
		{false, `[{"op":"fly","path":"/a"}]`, "", 422},
		{false, `[{"op":"add"}]`, "", 422},
		{false, `{"op":"add"}`, "", 400},
		{false, `[null]`, "", 422},
		{false, "[" + strings.Repeat(`{"op":"test","path":"/a/b","value":1},`, 10000) + `{"op":"test","path":"/a/b","value":1}]`, "", 413},
		{true, `{"a":null,"c":3}`, `{"c":3,"l":[1,2]}`, 0},
		{true, `{`, "", 400},
	} {
		apply := JSON
		if tc.merge {
			apply = Merge
		}
		for _, strict := range []bool{false, true} {
			out, _, err := apply([]byte(doc), []byte(tc.patch), strict)
			short := tc.patch[:min(len(tc.patch), 60)]
			if tc.code != 0 {
				if c := code(err); c < 400 || c >= 500 || !strict && c != tc.code {
					t.Errorf("%s: got %d %v, want %d", short, c, err, tc.code)
				}
				continue
			}
			if err != nil || string(out) != tc.want {
				t.Errorf("%s: got %s, %v, want %s", short, out, err, tc.want)
			}
		}
	}
}

func TestStrategicMergesListsByKey(t *testing.T) {
	old := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "1"}, {Name: "b", Image: "1"}}}}
	out := &corev1.Pod{}
	_, err := Strategic(old, []byte(`{"spec":{"containers":[{"name":"b","image":"2"},{"name":"a","$patch":"delete"}]}}`), true, out)
	if err != nil || len(out.Spec.Containers) != 1 || out.Spec.Containers[0].Image != "2" {
		t.Errorf("%+v %v", out.Spec, err)
	}
	if old.Spec.Containers[0].Image != "1" {
		t.Error("the original was changed")
	}
	strict, err := Strategic(old, []byte(`{"spek":1}`), true, &corev1.Pod{})
	if err != nil || len(strict) != 1 || !strings.Contains(strict[0].Error(), `unknown field "spek"`) {
		t.Errorf("%v %v", strict, err)
	}
	for _, bad := range []string{`{`, `{"spec":5}`, `{"spec":{"containers":[{"image":"no key"}]}}`, `{"$patch":"fly"}`, `{"spec":{"containers":[null,{"name":"a"}]}}`, `{"spec":{"tolerations":5}}`} {
		if _, err := Strategic(old, []byte(bad), false, &corev1.Pod{}); code(err) < 400 || code(err) >= 500 {
			t.Errorf("%s: %d %v", bad, code(err), err)
		}
	}
}

// FuzzJSON: no patch panics or answers with anything but a 4xx.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(`[{"op":"copy","from":"/a","path":"/b"},{"op":"move","from":"/l/0","path":"/l/-"}]`))
	f.Add([]byte(`{"a":{"b":null}}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, apply := range []func([]byte, []byte, bool) ([]byte, []error, error){JSON, Merge} {
			if _, _, err := apply([]byte(`{"a":{"b":1},"l":[1,2]}`), p, true); err != nil && (code(err) < 400 || code(err) >= 500) {
				t.Errorf("%q: %v", p, err)
			}
		}
	})
}

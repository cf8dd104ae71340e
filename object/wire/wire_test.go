package wire

import (
	"bytes"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

func testScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(s))
	return s
}

func testPod() *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "b", Labels: map[string]string{"x": "1", "app": "web", "empty": ""}},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

func TestSealIsUpstreamsEncoding(t *testing.T) {
	s := testScheme()
	pod := testPod()
	got, err := Seal("v1", "Pod", pod)
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := protobuf.NewSerializer(s, s).Encode(pod, &want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("Seal differs from upstream:\n%q\n%q", got, want.Bytes())
	}
	env, err := Open(got)
	if err != nil || env.Kind != "Pod" || env.APIVersion != "v1" || !bytes.Equal(env.Raw, Raw(got)) {
		t.Errorf("Open = %+v, %v", env, err)
	}
}

func TestStampedObjectDecodesAsUpstreamWould(t *testing.T) {
	s := testScheme()
	sealed, _ := Seal("v1", "Pod", testPod())
	for _, rv := range []int64{1, 9, 10, 1234567, 1<<63 - 1} {
		data := AppendObject(nil, "v1", "Pod", Raw(sealed), rv)
		obj, _, err := protobuf.NewSerializer(s, s).Decode(data, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		pod := obj.(*corev1.Pod)
		if pod.Name != "a" || pod.Labels["app"] != "web" || pod.Spec.NodeName != "n" || decimalSize(rv) != len(pod.ResourceVersion) {
			t.Errorf("rv %d: decoded %+v", rv, pod)
		}
	}
}

func TestListDecodesAsUpstreamWould(t *testing.T) {
	s := testScheme()
	sealed, _ := Seal("v1", "Pod", testPod())
	remaining := int64(77)
	raw := Raw(sealed)
	data := AppendListStart(nil, "v1", "PodList", ListMeta{ResourceVersion: "12", Continue: "more", Remaining: &remaining},
		ItemSize(raw, 5)+ItemSize(raw, 600))
	data = AppendListEnd(AppendItem(AppendItem(data, raw, 5), raw, 600))
	obj, _, err := protobuf.NewSerializer(s, s).Decode(data, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := obj.(*corev1.PodList)
	if l.ResourceVersion != "12" || l.Continue != "more" || *l.RemainingItemCount != 77 || len(l.Items) != 2 ||
		l.Items[0].ResourceVersion != "5" || l.Items[1].ResourceVersion != "600" || l.Items[1].Name != "a" {
		t.Errorf("decoded %+v", l)
	}
}

func TestWatchFrame(t *testing.T) {
	sealed, _ := Seal("v1", "Pod", testPod())
	frame := AppendWatchFrame(nil, "ADDED", sealed)
	var ev metav1.WatchEvent
	if err := ev.Unmarshal(frame[4:]); err != nil {
		t.Fatal(err)
	}
	if ev.Type != "ADDED" || !bytes.Equal(ev.Object.Raw, sealed) || int(frame[2])<<8|int(frame[3]) != len(frame)-4 {
		t.Errorf("frame %q", frame)
	}
}

func TestLabelsAndMetadata(t *testing.T) {
	sealed, _ := Seal("v1", "Pod", testPod())
	stamped := AppendObject(nil, "v1", "Pod", Raw(sealed), 42)
	a := new(Attrs)
	l := a.Labels(stamped)
	if len(l) != 3 || l.Get("app") != "web" || !l.Has("empty") || l.Has("nope") {
		t.Errorf("labels %v", l)
	}
	var p metav1.PartialObjectMetadata
	if err := p.Unmarshal(MetadataOnly(Raw(stamped))); err != nil || p.Name != "a" || p.ResourceVersion != "42" {
		t.Errorf("metadata %+v %v", p, err)
	}
}

func TestMalformedInputIsRefused(t *testing.T) {
	sealed, _ := Seal("v1", "Pod", testPod())
	for i := range sealed {
		// Every truncation either fails or yields a shorter raw; none panics.
		if e, err := Open(sealed[:i]); err == nil && len(e.Raw) > len(Raw(sealed)) {
			t.Errorf("truncation at %d yields more than the whole", i)
		}
		Labels(Raw(sealed[:i]))
	}
	for _, bad := range []string{"", "k8s", "{}", "k8s\x00\xff", "k8s\x00\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "k8s\x00" + strings.Repeat("\x0b", 100)} {
		if _, err := Open([]byte(bad)); err == nil && bad != "k8s\x00" {
			t.Errorf("Open(%q) succeeded", bad)
		}
	}
}

func TestSharedEncodingIsMadeOnce(t *testing.T) {
	a := new(Attrs)
	calls := 0
	build := func() ([]byte, error) { calls++; return []byte("x"), nil }
	s := a.Shared()
	for range 3 {
		if _, err := a.Shared().Encoding(EncodingKey{Form: "json"}, build); err != nil {
			t.Fatal(err)
		}
	}
	if calls != 1 {
		t.Errorf("built %d times", calls)
	}
	_ = s.entries
}

func FuzzOpen(f *testing.F) {
	sealed, _ := Seal("v1", "Pod", testPod())
	f.Add(sealed)
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := Open(data); err == nil {
			Labels(e.Raw)
			MetadataOnly(e.Raw)
			Texts(e.Raw, [][]uint64{{2, 10}, {3}}, func(int, string) {})
		}
	})
}

func TestStampJSON(t *testing.T) {
	for in, want := range map[string]string{
		`{"apiVersion":"g/v1","kind":"metadata","metadata":{"annotations":{"uid":"no"},"name":"a\"uid\":","uid":"u-1"},"spec":{"uid":"x"}}` + "\n": `{"apiVersion":"g/v1","kind":"metadata","metadata":{"annotations":{"uid":"no"},"name":"a\"uid\":","resourceVersion":"7","uid":"u-1"},"spec":{"uid":"x"}}`,
		`{"a":{"metadata":{"uid":"no"}},"data":["metadata",{"uid":"no"}],"metadata":{"uid":"u"}}`:                                                  `{"a":{"metadata":{"uid":"no"}},"data":["metadata",{"uid":"no"}],"metadata":{"resourceVersion":"7","uid":"u"}}`,
		`{"metadata":{"name":"n"},"spec":{"uid":"x"}}`:                                                                                             "",
		`{"metadata":"uid","uid":"x"}`: "",
		`{"metadata":{"uid`:            "",
		``:                             "",
	} {
		got, ok := StampJSON([]byte("-"), []byte(in), 7)
		if ok != (want != "") || string(got) != "-"+want {
			t.Errorf("%s\n got %v %s\nwant %s", in, ok, got, want)
		}
	}
}

func TestTexts(t *testing.T) {
	pod := testPod()
	pod.Spec.NodeName, pod.Status.Phase = "n1", corev1.PodRunning
	data, err := Seal("v1", "Pod", pod)
	if err != nil {
		t.Fatal(err)
	}
	got := map[int]string{}
	Texts(Raw(data), [][]uint64{{2, 10}, {3, 1}, {1, 1}, {2, 32}, {9}}, func(i int, text string) { got[i] = text })
	if want := map[int]string{0: "n1", 1: "Running", 2: pod.Name}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

package wire

import (
	"reflect"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	in := Init{Mode: ModeStart, Args: []string{"a", ""}, Env: []string{"K=v"}, Cwd: "/", UID: 1<<32 - 2, Groups: []int{0, 7}, Bounding: 1 << 63,
		Seccomp: []byte{1, 2}, Rlimits: []Rlimit{{7, 1, 2}}, SetOOM: true, OOMAdj: -998, Joins: []Join{{3, 4}}, Procs: []int{1}, RootFD: -1,
		Mounts:  []Mount{{Kind: MountFS, FD: -1, Type: "proc", Target: "/proc", Options: []string{"x=y"}, Attr: 6, File: true}},
		Devices: []Device{{"/dev/null", 0o20666, 1, 3, 0, 5}}, Masked: []string{"/proc/kcore"}, ReadOnly: []string{"/proc/sys"}, NullIn: true}
	var out Init
	if err := Decode(Encode(&in), &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%v\n%+v\n%+v", err, in, out)
	}
	p, err := Unmarshal(Packet{Kind: KindSpawn, Seq: 9, Body: []byte("body")}.Marshal())
	if err != nil || p.Kind != KindSpawn || p.Seq != 9 || string(p.Body) != "body" {
		t.Errorf("%+v %v", p, err)
	}
}

func TestEveryTruncationIsAnError(t *testing.T) {
	b := Encode(&Init{Args: []string{"abc"}, Mounts: []Mount{{Target: "/x"}}})
	for n := range b {
		var out Init
		if err := Decode(b[:n], &out); err == nil {
			t.Errorf("%d of %d bytes decoded", n, len(b))
		}
	}
}

func TestOtherVersionsAreRefused(t *testing.T) {
	b := Packet{Kind: KindList}.Marshal()
	b[0]++
	if _, err := Unmarshal(b); err == nil {
		t.Error("a packet of another version was read")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(&Init{Args: []string{"abc"}}))
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		var i Init
		Decode(b, &i)
		var s Spawn
		Decode(b, &s)
	})
}

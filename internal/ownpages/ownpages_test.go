//go:build linux

package ownpages

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestReadOnly(t *testing.T) {
	const exe = "/opt/a b/skiff"
	for _, c := range []struct {
		line       string
		begin, end uintptr
		ok         bool
	}{
		{"00400000-02214000 r-xp 00000000 fd:00 264 /opt/a b/skiff", 0x400000, 0x2214000, true},
		{"02214000-046e2000 r--p 01e14000 fd:00 264            /opt/a b/skiff", 0x2214000, 0x46e2000, true},
		{"046e2000-04809000 rw-p 042e2000 fd:00 264            /opt/a b/skiff", 0, 0, false},
		{"046e2000-04809000 r--s 042e2000 fd:00 264            /opt/a b/skiff", 0, 0, false},
		{"7f80e0600000-7f80e1200000 r--p 00000000 fd:00 265    /opt/a b/skiff2", 0, 0, false},
		{"7f80e0600000-7f80e1200000 r--p 00000000 fd:00 265    /srv/opt/a b/skiff", 0, 0, false},
		{"7f80e0600000-7f80e1200000 rw-p 00000000 00:00 0 ", 0, 0, false},
		{"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]", 0, 0, false},
		{"rubbish", 0, 0, false},
		{"x-y r-xp 0 0 0 /opt/a b/skiff", 0, 0, false},
	} {
		begin, end, ok := readOnly(c.line, exe)
		if ok != c.ok || ok && (begin != c.begin || end != c.end) {
			t.Errorf("%q: %x-%x %t, want %x-%x %t", c.line, begin, end, ok, c.begin, c.end, c.ok)
		}
	}
}

// TestRelease: the program goes on, on far fewer of its own pages.
func TestRelease(t *testing.T) {
	before := strings.Fields(residentFile(t))
	if err := Release(); err != nil {
		t.Fatal(err)
	}
	after := strings.Fields(residentFile(t))
	if len(before) < 1 || len(after) < 1 {
		t.Skip("this kernel does not say how much of a process is file-backed")
	}
	if number(t, after[0]) >= number(t, before[0]) {
		t.Errorf("file-backed memory was %s kB and is %s kB", before[0], after[0])
	}
}

// residentFile is the value of RssFile in /proc/self/status, "" without one.
func residentFile(t *testing.T) string {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

func number(t *testing.T, text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

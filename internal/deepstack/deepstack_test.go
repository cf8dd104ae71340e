package deepstack_test

import (
	"net/http"
	"runtime/debug"
	"testing"
	"unsafe"

	"github.com/skiff-project/skiff/internal/deepstack"
)

// down calls itself until it has used n frames of 100 bytes and more.
//
//go:noinline
func down(n int) (sum byte) {
	var frame [100]byte
	frame[n%len(frame)] = byte(n)
	if n > 0 {
		sum = down(n - 1)
	}
	return sum + frame[n%7]
}

// A stack that grows is another one: what is on it has moved.
func TestTheStackStays(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection moves stacks, too
	moved := func(begin func(), depth int) bool {
		answer := make(chan bool)
		go func() {
			begin()
			var here byte
			before := uintptr(unsafe.Pointer(&here))
			down(depth)
			answer <- uintptr(unsafe.Pointer(&here)) != before
		}()
		return <-answer
	}
	for _, c := range []struct {
		what  string
		begin func()
		depth int // of 144 bytes and more each
		moved bool
	}{
		{"nothing is done", func() {}, 30, true},
		{"a read", func() { deepstack.For(http.MethodGet) }, 30, false},
		{"a read that goes deeper", func() { deepstack.For(http.MethodGet) }, 70, true},
		{"a write", func() { deepstack.For(http.MethodPatch) }, 60, false},
	} {
		if got := moved(c.begin, c.depth); got != c.moved {
			t.Errorf("%s, %d calls deep: moved %t, want %t", c.what, c.depth, got, c.moved)
		}
	}
}

// BenchmarkRequest is a goroutine that goes as deep as a pod's creation.
func BenchmarkRequest(b *testing.B) {
	for name, begin := range map[string]func(){"grown first": func() { deepstack.For(http.MethodPost) }, "grows on its way": func() {}} {
		b.Run(name, func(b *testing.B) {
			done := make(chan byte)
			for b.Loop() {
				go func() {
					begin()
					done <- down(60)
				}()
				<-done
			}
		})
	}
}

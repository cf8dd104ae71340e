package deepstack_test

import (
	"net/http"
	"testing"

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

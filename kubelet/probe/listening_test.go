package probe

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
)

// A container without a readiness probe is not called ready before its server listens.
func TestWaitListening(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := int32(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	c := &v1.Container{Ports: []v1.ContainerPort{{ContainerPort: port}, {ContainerPort: 1, Protocol: v1.ProtocolUDP}}}
	r := &Runner{PID: func(context.Context, string) int { return os.Getpid() }}

	done := make(chan time.Time, 1)
	go func() {
		r.waitListening(t.Context(), clock.RealClock{}, Target{Container: c}, time.Now().Add(10*time.Second))
		done <- time.Now()
	}()
	select {
	case <-done:
		t.Fatal("ready although nothing listens")
	case <-time.After(10 * listenPoll):
	}
	if l, err = net.Listen("tcp", l.Addr().String()); err != nil {
		t.Skipf("another process took the port: %v", err)
	}
	defer l.Close()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("not ready although the port is open")
	}
}

func TestWaitListeningEndsAtDeadline(t *testing.T) {
	c := &v1.Container{Ports: []v1.ContainerPort{{ContainerPort: 1}}}
	r := &Runner{PID: func(context.Context, string) int { return os.Getpid() }}
	if !r.waitListening(t.Context(), clock.RealClock{}, Target{Container: c}, time.Now().Add(2*listenPoll)) {
		t.Error("not ready at the deadline")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if r.waitListening(gone, clock.RealClock{}, Target{Container: c}, time.Now().Add(time.Hour)) {
		t.Error("ready although the prober was stopped")
	}
}

package gcpace

import (
	"context"
	"os"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

func TestBusy(t *testing.T) {
	p := Pace{Rest: 15, Slack: 64 << 20}
	for live, want := range map[uint64]int{0: 6400, 4 << 20: 1600, 64 << 20: 100, 128 << 20: 50, 2 << 30: 15} {
		if got := p.busy(live); got != want {
			t.Errorf("%d bytes live: %d %%, want %d %%", live, got, want)
		}
	}
}

// TestRest: a small heap may half again be garbage; a large one less, but its
// collections stay rare.
func TestRest(t *testing.T) {
	for live, want := range map[uint64]int{0: 50, 16 << 20: 50, 64 << 20: 25, 1 << 30: 15} {
		if got := (Pace{Rest: 50}).rest(live); got != want {
			t.Errorf("%d bytes live: %d %%, want %d %%", live, got, want)
		}
	}
	if got := (Pace{Rest: 10}).rest(1 << 30); got != 10 {
		t.Errorf("who asks for 10 %% gets %d %%", got)
	}
}

// TestKeep: collections that follow each other closely make the next one wait
// for more garbage; at the end all is as it was.
func TestKeep(t *testing.T) {
	if os.Getenv("GOGC") != "" {
		t.Skip("$GOGC is set: the pace is the user's")
	}
	percent := func() uint64 {
		s := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	before := percent()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Pace{Rest: 50, Slack: 1 << 30}.Keep(ctx); close(done) }()
	for began := time.Now(); percent() <= before; time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("the percentage stays at %d", percent())
		}
		runtime.GC()
	}
	cancel()
	<-done
	if got := percent(); got != before {
		t.Errorf("in the end %d %%, want %d %%", got, before)
	}
}

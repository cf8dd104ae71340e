package runtime

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFigures prints the figures the budgets speak of, and fails only where a budget
// is missed by far: the machine may be busy.
func TestFigures(t *testing.T) {
	w := newWorld(t)
	var create, execs []time.Duration
	var id string
	for i := range 25 {
		cfg := podConfig(fmt.Sprint("p", i))
		cfg.LogDirectory = w.logs
		c := containerConfig("wait")
		c.LogPath = fmt.Sprint(i, ".log")
		start := time.Now()
		pod, err := w.RunPodSandbox(w.ctx, cfg, "")
		if err != nil {
			t.Fatal(err)
		}
		id = w.start(pod, cfg, c)
		create = append(create, time.Since(start))
	}
	w.ready(id, "ready")
	for range 40 {
		start := time.Now()
		w.exec(id, "pid")
		execs = append(execs, time.Since(start))
	}
	if p := os.Getenv("SKIFF_SMAPS"); p != "" {
		time.Sleep(time.Second)
		c, _ := w.container(id)
		s, _ := w.sandbox(c.rec.SandboxID)
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", s.mon.pid))
		os.WriteFile(p, b, 0o644)
	}
	slices.Sort(create)
	slices.Sort(execs)
	c, _ := w.container(id)
	s, _ := w.sandbox(c.rec.SandboxID)
	st, _ := os.Stat(shimPath)
	time.Sleep(time.Second) // a monitor gives memory back once it is idle
	t.Logf("sandbox + create + start p50 %v p90 %v; exec p50 %v; monitor PSS %s with 25 pods; helper %d bytes",
		create[12], create[22], execs[20], pss(s.mon.pid), st.Size())
	if create[12] > 500*time.Millisecond || st.Size() > 2_500_000 {
		t.Errorf("far over budget")
	}
}

func pss(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return "unknown"
}

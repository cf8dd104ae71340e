package gc

import (
	"context"
	"strings"
	"testing"
	"time"

	testclock "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/kubelet/fakecri"
)

func TestLongestUnusedGoFirst(t *testing.T) {
	clk := testclock.NewFakePassiveClock(time.Unix(1000, 0))
	rt := fakecri.New(clk)
	used := int64(50)
	g := &Images{Service: rt.Images(), Runtime: rt, High: 85, Low: 80, MinAge: 2 * time.Minute, Clock: clk,
		Usage: func(string) (int64, int64, error) { return 100 << 20, (100 - used) << 20, nil }}
	round := func() error { return g.Collect(context.Background()) }
	rt.AddImage("old:1")
	if err := round(); err != nil {
		t.Fatal(err)
	}
	clk.SetTime(clk.Now().Add(time.Minute))
	rt.AddImage("mid:1")
	if err := round(); err != nil {
		t.Fatal(err)
	}
	clk.SetTime(clk.Now().Add(5 * time.Minute))
	rt.AddImage("new:1")
	if err := round(); err != nil || len(rt.Calls()) != 0 {
		t.Fatalf("below the threshold: %v %v", err, rt.Calls())
	}
	used = 86 // six of a hundred above the low mark; each image is one
	err := round()
	if err == nil || !strings.Contains(err.Error(), "Attempted to free 6291456 bytes, but only found 2097152 bytes eligible to free.") {
		t.Errorf("error %v", err)
	}
	if got := strings.Join(rt.Calls(), "; "); got != "remove image sha256:old:1; remove image sha256:mid:1" {
		t.Errorf("removed %s", got)
	}
}

package embedded

import (
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
	"github.com/skiff-project/skiff/store/vfs"
)

// A lease that was written of has no more time after a restart than it had
// left then, unless it was renewed since.
func TestLeasesLoseNoTimeOverRestarts(t *testing.T) {
	const hour = 3600
	for name, tt := range map[string]struct {
		every time.Duration
		then  func(t *testing.T, s *Store) // after ten minutes
		want  int64
	}{
		"noted":            {5 * time.Minute, func(*testing.T, *Store) {}, hour - 600},
		"never noted":      {0, func(*testing.T, *Store) {}, hour},
		"renewed":          {5 * time.Minute, func(t *testing.T, s *Store) { renew(t, s, 1) }, hour},
		"in a checkpoint":  {5 * time.Minute, func(t *testing.T, s *Store) { checkpoint(t, s) }, hour - 600},
		"renewed, in both": {5 * time.Minute, func(t *testing.T, s *Store) { checkpoint(t, s); renew(t, s, 1); checkpoint(t, s) }, hour},
	} {
		t.Run(name, func(t *testing.T) {
			fs, clock := vfs.NewMem(), clocktesting.NewFakeClock(time.Now())
			opt := Options{FS: fs, Dir: "/d", Clock: clock, LeaseCheckpoint: tt.every}
			s, err := Open(opt)
			if err != nil {
				t.Fatal(err)
			}
			for id, ttl := range map[store.LeaseID]int64{1: hour, 2: 700, 3: hour} {
				if _, err := s.Leases().Grant(t.Context(), id, ttl); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Leases().Revoke(t.Context(), 3); err != nil {
				t.Fatal(err)
			}
			for _, want := range []int64{hour - 300, hour - 600} {
				clock.Step(5 * time.Minute)
				if tt.every > 0 {
					until(t, func() bool { return noted(t, s, 1) == want })
				}
			}
			if got := noted(t, s, 2); tt.every > 0 && got != 400 {
				t.Errorf("of a lease that ends before the next time %d s were written last, want the 400 of the time before", got)
			}
			tt.then(t, s)
			s.Close()
			if s, err = Open(opt); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if l, err := s.Leases().TimeToLive(t.Context(), 1); err != nil || l.Remaining != tt.want || l.TTL != hour {
				t.Errorf("after the restart %+v, %v: want %d s left", l, err, tt.want)
			}
		})
	}
}

func renew(t *testing.T, s *Store, id store.LeaseID) {
	t.Helper()
	if l, err := s.Leases().KeepAlive(t.Context(), id); err != nil || l.Remaining != 3600 {
		t.Fatalf("renewed: %+v, %v", l, err)
	}
}

func checkpoint(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// noted is what was written of a lease.
func noted(t *testing.T, s *Store, id store.LeaseID) (seconds int64) {
	t.Helper()
	if err := s.do(t.Context(), func(core *mvcc.Core) error { seconds = core.Leases()[id].Left; return nil }); err != nil {
		t.Fatal(err)
	}
	return seconds
}

func until(t *testing.T, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

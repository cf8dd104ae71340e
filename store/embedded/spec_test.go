package embedded_test

import (
	"testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
	"github.com/skiff-project/skiff/store/storetest"
	"github.com/skiff-project/skiff/store/vfs"
)

func TestStoreInMemory(t *testing.T) { storetest.Run(t, opener(embedded.Options{})) }

func TestStoreOnDisk(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return opener(embedded.Options{Dir: t.TempDir()})(t) })
}

// Tiny segments and checkpoints all the time must change nothing.
func TestStoreWithConstantCheckpoints(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return opener(embedded.Options{FS: vfs.NewMem(), Dir: "/data", CheckpointBytes: 512, SegmentBytes: 2048, ExtendBytes: 1024})(t)
	})
}

func opener(opt embedded.Options) func(t *testing.T) store.Store {
	opt.Index = storetest.Index
	return func(t *testing.T) store.Store {
		s, err := embedded.Open(opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
}

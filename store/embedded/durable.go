package embedded

import (
	"errors"
	"fmt"
	"path"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/mvcc"
	"github.com/skiff-project/skiff/store/vfs"
	"github.com/skiff-project/skiff/store/wal"
)

// spareBytes is the room in the log that puts leave to deletions and
// compactions, so that these work on a full disk.
const spareBytes = 256 << 10

// LockedError says that a running process has the store's folder open.
type LockedError struct {
	Dir string
	PID int // 0 if unknown
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("data folder %s is in use by another process; stop it first", e.Dir)
	}
	return fmt.Sprintf("data folder %s is in use by process %d; stop it first", e.Dir, e.PID)
}

// openLog rebuilds the core from the folder and opens the log.
func (s *Store) openLog() error {
	l, err := wal.Open(wal.Options{
		FS: s.opt.FS, Dir: s.opt.Dir, SegmentDir: s.opt.SegmentDir, NoSync: s.opt.NoSync, Log: s.opt.Log,
		SegmentBytes: s.opt.SegmentBytes, ExtendBytes: s.opt.ExtendBytes,
	}, s.core.Replay)
	if locked := (*vfs.LockedError)(nil); errors.As(err, &locked) {
		return &LockedError{Dir: path.Dir(locked.Name), PID: locked.PID}
	}
	if err != nil {
		return fmt.Errorf("open store %s: %w", s.opt.Dir, err)
	}
	s.log = l
	s.core.Record()
	for id, life := range s.core.Leases() {
		s.lessor.add(id, life)
	}
	return nil
}

// reserve makes room in the log for a batch. It reports whether puts, and
// whether anything at all, must be refused for lack of space.
func (s *Store) reserve(batch []*call) (noPuts, nothing bool, err error) {
	live, history := s.core.Bytes()
	noPuts = live+history > s.opt.QuotaBytes
	if s.log == nil {
		return noPuts, false, nil
	}
	size, small := 0, 0
	for _, c := range batch {
		size += c.bytes()
		if !c.needsSpace() {
			small += c.bytes()
		}
	}
	if !noPuts {
		err = s.log.Reserve(size, spareBytes)
		if err == nil || !errors.Is(err, wal.ErrFull) {
			s.diskFull = false
			return false, false, err
		}
		if !s.diskFull {
			s.opt.Log.Warn("the disk is full: puts are refused until there is room", "err", err)
			s.diskFull, s.shrink = true, true
		}
	}
	if err = s.log.Reserve(small, 0); errors.Is(err, wal.ErrFull) {
		return true, true, nil
	}
	return true, false, err
}

// persist makes the records of the batch durable.
func (s *Store) persist() error {
	if s.log == nil || len(s.core.Journal()) == 0 {
		return nil
	}
	err := s.log.Append(s.core.Journal())
	s.core.ResetJournal()
	return err
}

// checkpointIfDue starts a checkpoint once the log has outgrown both the
// configured size and the last checkpoint, or the disk is full and a checkpoint
// would take less of it. The leader calls it between batches; the writing is
// done beside.
func (s *Store) checkpointIfDue() error {
	if s.log == nil || s.checkpointing.Load() {
		return nil
	}
	_, last, since := s.log.Sizes()
	live, history := s.core.Bytes()
	shrink := s.shrink && since+last > live+history
	s.shrink = false
	if !shrink && since < max(s.opt.CheckpointBytes, last) {
		return nil
	}
	return s.checkpoint(nil)
}

// checkpoint cuts the log and writes the state at the cut beside the writers.
// done, if any, gets the outcome.
func (s *Store) checkpoint(done chan<- error) error {
	num, err := s.log.Cut()
	if errors.Is(err, wal.ErrFull) {
		s.opt.Log.Warn("no room for a checkpoint", "err", err)
		if done != nil {
			done <- store.ErrNoSpace
		}
		return nil
	}
	if err != nil {
		return err
	}
	v, leases := s.core.View(), s.core.Leases()
	s.checkpointing.Store(true)
	s.work.Go(func() {
		err := s.writeCheckpoint(num, v, leases)
		s.checkpointing.Store(false)
		switch {
		case errors.Is(err, wal.ErrFull):
			s.opt.Log.Warn("no room for a checkpoint", "err", err)
			err = store.ErrNoSpace
		case err != nil && !errors.Is(err, store.ErrClosed):
			err = s.fail(err)
		}
		if done != nil {
			done <- err
		}
	})
	return nil
}

func (s *Store) writeCheckpoint(num uint64, v *mvcc.View, leases map[store.LeaseID]mvcc.Life) error {
	c, err := s.log.NewCheckpoint(num)
	if err != nil {
		if c != nil {
			c.Abort()
		}
		return err
	}
	err = mvcc.WriteCheckpoint(v, leases, func(chunk []byte) error {
		if err := s.Err(); err != nil {
			return err
		}
		return c.Write(chunk)
	})
	if err != nil {
		c.Abort()
		return err
	}
	return c.Commit()
}

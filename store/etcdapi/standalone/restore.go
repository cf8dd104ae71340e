package standalone

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/embedded"
	"github.com/skiff-project/skiff/store/etcdapi"
	"github.com/skiff-project/skiff/store/etcdapi/snapshot"
)

// Restore describes a snapshot to make a data folder of.
type Restore struct {
	File string // of `etcdctl snapshot save`, Skiff's or stock etcd's
	// DataDir gets the store; it must be missing or empty.
	DataDir string
	// StoreDir and SideDir are where in it. Default the folders of Run.
	StoreDir, SideDir string
	// WALDir is Config's.
	WALDir string
	// SkipHashCheck accepts a file without a checksum.
	SkipHashCheck bool
	// BumpRevision raises the revision and marks all below as compacted.
	BumpRevision int64
}

// Run restores. A folder left by a failed restore is removed.
func (r Restore) Run(ctx context.Context) error {
	if err := snapshot.EnsureEmpty(r.DataDir); err != nil {
		return err
	}
	if r.WALDir != "" {
		if err := snapshot.EnsureEmpty(r.WALDir); err != nil {
			return fmt.Errorf("--wal-dir: %w", err)
		}
	}
	if err := snapshot.CheckSum(r.File, r.SkipHashCheck); err != nil {
		return err
	}
	content, err := snapshot.Read(r.File)
	if err != nil {
		return err
	}
	if r.BumpRevision > 0 {
		content.Bump(r.BumpRevision)
	}
	if r.StoreDir == "" {
		r.StoreDir = StoreFolder
	}
	if r.SideDir == "" {
		r.SideDir = SideFolder
	}
	if err := os.MkdirAll(r.DataDir, 0o700); err != nil {
		return err
	}
	if err := r.fill(ctx, content); err != nil {
		for _, dir := range []string{r.StoreDir, r.SideDir} {
			os.RemoveAll(filepath.Join(r.DataDir, dir))
			if r.WALDir != "" {
				os.RemoveAll(filepath.Join(r.WALDir, dir))
			}
		}
		return fmt.Errorf("restore %s: %w", r.File, err)
	}
	return nil
}

func (r Restore) fill(ctx context.Context, content *snapshot.Restored) error {
	segments, err := segmentDirs(r.WALDir, r.StoreDir, r.SideDir)
	if err != nil {
		return err
	}
	side, err := embedded.Open(embedded.Options{Dir: filepath.Join(r.DataDir, r.SideDir), SegmentDir: segments[1]})
	if err != nil {
		return err
	}
	defer side.Close()
	for bucket, entries := range content.Buckets {
		for key, value := range entries {
			put := store.Op{Kind: store.OpPut, Key: etcdapi.BucketPrefix + bucket + "/" + key, Value: value}
			if _, err := side.Txn(ctx, store.Txn{Then: []store.Op{put}}); err != nil {
				return err
			}
		}
	}
	// Last: a folder with a store in it is a whole one.
	return embedded.Import(embedded.Options{Dir: filepath.Join(r.DataDir, r.StoreDir), SegmentDir: segments[0], QuotaBytes: 1<<63 - 1}, &content.Image)
}

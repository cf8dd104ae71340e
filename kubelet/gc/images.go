// Package gc deletes unused images when their file system fills up.
package gc

import (
	"context"
	"fmt"
	"sort"
	"time"

	"golang.org/x/sys/unix"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
)

// Images collects images: when use of their file system reaches High percent, the longest unused go
// until it is at Low.
type Images struct {
	Service   internalapi.ImageManagerService
	Runtime   internalapi.RuntimeService
	High, Low int
	MinAge    time.Duration
	Clock     clock.PassiveClock
	// Usage returns size and free bytes of the file system at a mount point; nil = statfs.
	Usage func(path string) (total, free int64, err error)

	seen map[string]*record
}

type record struct{ first, used time.Time }

// Collect does one round.
func (g *Images) Collect(ctx context.Context) error {
	if g.High >= 100 {
		return nil
	}
	list, err := g.Service.ListImages(ctx, nil)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	inUse, err := g.note(ctx, list)
	if err != nil {
		return err
	}
	total, free, err := g.usage(ctx)
	if err != nil || total == 0 {
		return err
	}
	if used := int(100 - free*100/total); used < g.High {
		return nil
	}
	want := total*int64(100-g.Low)/100 - free
	return g.free(ctx, list, inUse, want)
}

// note keeps the records of when images were seen and used, and returns those in use.
func (g *Images) note(ctx context.Context, list []*runtimeapi.Image) (map[string]bool, error) {
	containers, err := g.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, c := range containers {
		for _, ref := range []string{c.ImageRef, c.ImageId, c.GetImage().GetImage()} {
			used[ref] = true
		}
	}
	now := g.Clock.Now()
	old := g.seen
	g.seen = map[string]*record{}
	inUse := map[string]bool{}
	for _, i := range list {
		r := old[i.Id]
		if r == nil {
			r = &record{first: now}
		}
		g.seen[i.Id] = r
		for _, name := range append(append([]string{i.Id}, i.RepoTags...), i.RepoDigests...) {
			inUse[i.Id] = inUse[i.Id] || used[name]
		}
		if inUse[i.Id] {
			r.used = now
		}
	}
	return inUse, nil
}

func (g *Images) usage(ctx context.Context) (int64, int64, error) {
	res, err := g.Service.ImageFsInfo(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("image file system: %w", err)
	}
	if len(res.GetImageFilesystems()) == 0 {
		return 0, 0, nil
	}
	path := res.ImageFilesystems[0].GetFsId().GetMountpoint()
	if g.Usage != nil {
		return g.Usage(path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("image file system %s: %w", path, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

func (g *Images) free(ctx context.Context, list []*runtimeapi.Image, inUse map[string]bool, want int64) error {
	now := g.Clock.Now()
	var idle []*runtimeapi.Image
	for _, i := range list {
		if !inUse[i.Id] && !i.Pinned && now.Sub(g.seen[i.Id].first) >= g.MinAge {
			idle = append(idle, i)
		}
	}
	sort.SliceStable(idle, func(a, b int) bool {
		x, y := g.seen[idle[a].Id], g.seen[idle[b].Id]
		if !x.used.Equal(y.used) {
			return x.used.Before(y.used)
		}
		return x.first.Before(y.first)
	})
	var freed int64
	for _, i := range idle {
		if freed >= want {
			return nil
		}
		if err := g.Service.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: i.Id}); err != nil {
			continue // in use by now, or the next round finds it again
		}
		freed += int64(i.Size)
	}
	if freed < want {
		//lint:ignore ST1005 the text is upstream's
		return fmt.Errorf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", want, freed)
	}
	return nil
}

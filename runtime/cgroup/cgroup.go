// Package cgroup gives each container a control group, on both layouts of Linux.
//
// Limits are written by opencontainers/cgroups, runc's own library; making the group
// on v2, the device rules and all reading are done here, because the library's come
// with an eBPF toolkit and read far more files than a statistic needs.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"golang.org/x/sys/unix"
)

// Resources are a container's limits; zero means no limit, as in CRI.
type Resources struct {
	CPUShares   int64
	CPUQuota    int64 // microseconds per period
	CPUPeriod   int64 // microseconds
	MemoryLimit int64 // bytes
	MemorySwap  int64 // bytes, memory and swap together, as in CRI
	Pids        int64
	CpusetCpus  string
	CpusetMems  string
	Hugepages   map[string]uint64 // page size ("2MB") to bytes
	Unified     map[string]string // v2 only: file to value
}

// Device is one rule that lets a container use device nodes.
type Device struct {
	Type         byte   // 'c', 'b' or 'a'
	Major, Minor int64  // -1: any
	Access       string // of r, w, m
}

// Tree is the host's control groups. The zero value is not useful: use Detect.
type Tree struct {
	V2   bool
	Root string // mount point of v2
}

// Detect looks at /sys/fs/cgroup.
func Detect() (Tree, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return Tree{}, fmt.Errorf("control groups: %w; mount cgroup2 at /sys/fs/cgroup", err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return Tree{V2: true, Root: "/sys/fs/cgroup"}, nil
	}
	for _, need := range []string{"cpu", "memory", "pids", "devices", "freezer"} {
		if _, err := os.Stat("/sys/fs/cgroup/" + need); err != nil {
			return Tree{}, fmt.Errorf("control groups v1 without the %s hierarchy: mount it below /sys/fs/cgroup, or use cgroup2", need)
		}
	}
	return Tree{Root: "/sys/fs/cgroup"}, nil
}

// Group is one control group.
type Group struct {
	tree Tree
	name string // absolute within the hierarchies
	v1   *fs.Manager
	v2   *fs2.Manager
}

// Open names a group, which need not exist.
func (t Tree) Open(name string) (*Group, error) {
	name = path.Clean("/" + name)
	if name == "/" {
		return nil, errors.New("refusing the root control group")
	}
	g := &Group{tree: t, name: name}
	conf := &cgroups.Cgroup{Path: name, Resources: &cgroups.Resources{SkipDevices: true}}
	var err error
	if t.V2 {
		g.v2, err = fs2.NewManager(conf, g.dir())
	} else {
		g.v1, err = fs.NewManager(conf, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("control group %s: %w", name, err)
	}
	return g, nil
}

func (g *Group) dir() string { return filepath.Join(g.tree.Root, g.name) }

// v1Path is the folder of one v1 controller, or empty.
func (g *Group) v1Path(controller string) string { return g.v1.Path(controller) }

// Create makes the group and its parents.
func (g *Group) Create() error {
	if !g.tree.V2 {
		if err := g.v1.Apply(-1); err != nil {
			return err
		}
		// Without its device rules the library leaves that hierarchy out; without a
		// group there, a container would keep the agent's own.
		return os.MkdirAll(g.v1Path("devices"), 0o755)
	}
	at := g.tree.Root
	for part := range strings.SplitSeq(strings.Trim(g.name, "/"), "/") {
		if err := enableAll(at); err != nil {
			return err
		}
		at = filepath.Join(at, part)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// wanted are the v2 controllers handed down to pods.
var wanted = []string{"cpu", "memory", "pids", "cpuset", "io", "hugetlb"}

// enableAll hands the wanted controllers of a v2 group to its children, one by one,
// so that one the kernel cannot hand down does not take the others with it.
func enableAll(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	on, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	avail, enabled := strings.Fields(string(have)), " "+strings.TrimSpace(string(on))+" "
	for _, c := range avail {
		if !slices.Contains(wanted, c) || strings.Contains(enabled, " "+c+" ") {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, "cgroup.subtree_control"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("+" + c)
		f.Close()
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("control group %s holds processes itself and cannot hand %s to children: %w", dir, c, err)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return nil
}

// Set writes limits. On an update the old limits stay where r is zero.
func (g *Group) Set(r Resources) error {
	res := &cgroups.Resources{SkipDevices: true, CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
		Memory: r.MemoryLimit, MemorySwap: r.MemorySwap, CpuQuota: r.CPUQuota}
	if r.CPUPeriod > 0 {
		res.CpuPeriod = uint64(r.CPUPeriod)
	}
	if r.CPUShares > 0 {
		res.CpuShares = uint64(r.CPUShares)
	}
	if r.Pids > 0 {
		res.PidsLimit = &r.Pids
	}
	// Upstream's kubelet limits huge pages to 0 by default; where nothing counts them there is nothing to limit.
	for size, limit := range r.Hugepages {
		if g.countsHugepages(size) {
			res.HugetlbLimit = append(res.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: size, Limit: limit})
		}
	}
	if !g.tree.V2 {
		if len(r.Unified) > 0 {
			return errors.New("unified resources need control groups v2")
		}
		if res.MemorySwap != 0 && !exists(filepath.Join(g.v1Path("memory"), "memory.memsw.limit_in_bytes")) {
			res.MemorySwap = 0
		}
		return g.v1.Set(res)
	}
	res.Unified = r.Unified
	if r.CPUShares > 0 {
		res.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(uint64(r.CPUShares))
	}
	if res.MemorySwap != 0 && !exists(filepath.Join(g.dir(), "memory.swap.max")) {
		res.MemorySwap = 0
	}
	return g.v2.Set(res)
}

// countsHugepages reports whether the group has a count of pages of a size ("2MB").
func (g *Group) countsHugepages(size string) bool {
	if g.tree.V2 {
		return exists(filepath.Join(g.dir(), "hugetlb."+size+".max"))
	}
	return g.v1Path("hugetlb") != ""
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// ProcsFiles opens the files into which a process writes "0" to enter the group. The
// caller closes them.
func (g *Group) ProcsFiles() ([]*os.File, error) {
	dirs := []string{g.dir()}
	if !g.tree.V2 {
		dirs = dirs[:0]
		for _, p := range g.v1.GetPaths() {
			dirs = append(dirs, p)
		}
	}
	var out []*os.File
	for _, d := range dirs {
		f, err := os.OpenFile(filepath.Join(d, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			for _, o := range out {
				o.Close()
			}
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// Paths maps each v1 controller to its folder of this group; nil on v2.
func (g *Group) Paths() map[string]string {
	if g.tree.V2 {
		return nil
	}
	return g.v1.GetPaths()
}

// Add moves a process into the group.
func (g *Group) Add(pid int) error {
	files, err := g.ProcsFiles()
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		_, err := f.WriteString(strconv.Itoa(pid))
		errs = append(errs, err)
		f.Close()
	}
	return errors.Join(errs...)
}

// Pids lists the group's processes, without its children's.
func (g *Group) Pids() ([]int, error) {
	dir := g.dir()
	if !g.tree.V2 {
		dir = g.v1Path("pids")
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var out []int
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	return out, err
}

// Kill kills every process in the group.
func (g *Group) Kill() error {
	if g.tree.V2 {
		err := os.WriteFile(filepath.Join(g.dir(), "cgroup.kill"), []byte("1"), 0)
		if err == nil || errors.Is(err, os.ErrNotExist) && !exists(g.dir()) {
			return nil
		}
	}
	for range 16 { // a fork may outrun one pass
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	return nil
}

// Destroy removes the group, waiting briefly for killed processes to leave it.
func (g *Group) Destroy() error {
	if !g.tree.V2 {
		// v1 refuses a parent less than a child has, and counts a removed child until the last
		// trace of its processes is freed. Failing here only means that such a write comes too soon.
		if f, err := os.OpenFile(filepath.Join(g.v1Path("cpu"), "cpu.cfs_quota_us"), os.O_WRONLY, 0); err == nil {
			f.WriteString("-1")
			f.Close()
		}
	}
	var err error
	for i := range 8 {
		if err = g.remove(); err == nil {
			return nil
		}
		g.Kill()
		time.Sleep(time.Millisecond << i)
	}
	return fmt.Errorf("remove control group %s: %w", g.name, err)
}

func (g *Group) remove() error {
	dirs := []string{g.dir()}
	if !g.tree.V2 {
		dirs = dirs[:0]
		for _, d := range g.v1.GetPaths() {
			dirs = append(dirs, d)
		}
	}
	var errs []error
	for _, d := range dirs {
		errs = append(errs, removeTree(d))
	}
	return errors.Join(errs...)
}

// removeTree removes a group's folder and its children's: files in it are the
// kernel's and go with the folder.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		return rerr
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

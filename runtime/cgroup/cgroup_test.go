package cgroup

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// fakeTree is a v2 hierarchy of plain files. The files a kernel would make appear
// when a group is made, through the groups' own code path.
func fakeTree(t *testing.T) Tree {
	t.Helper()
	cgroups.TestMode = true
	t.Cleanup(func() { cgroups.TestMode = false })
	root := t.TempDir()
	populate(t, root)
	return Tree{V2: true, Root: root}
}

func populate(t *testing.T, dir string) {
	t.Helper()
	for name, content := range map[string]string{"cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma\n", "cgroup.subtree_control": "",
		"cgroup.procs": "", "cgroup.events": "populated 0\nfrozen 0\n", "cgroup.freeze": "0", "cpu.weight": "100", "cpu.max": "max 100000", "memory.max": "max", "memory.swap.max": "max",
		"memory.low": "0", "pids.max": "max", "cpuset.cpus": "", "cpuset.mems": "", "memory.high": "max", "hugetlb.2MB.max": "max"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestV2CreateHandsControllersDown(t *testing.T) {
	tree := fakeTree(t)
	pods := filepath.Join(tree.Root, "kubepods")
	if err := os.Mkdir(pods, 0o755); err != nil {
		t.Fatal(err)
	}
	populate(t, pods)
	g, err := tree.Open("/kubepods/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{tree.Root, pods} {
		// A plain file keeps the last write only: the kernel takes one controller each.
		if got := read(t, filepath.Join(dir, "cgroup.subtree_control")); !strings.HasSuffix(got, "+pids") && !strings.Contains(got, "+pids") {
			t.Errorf("%s: %q", dir, got)
		}
	}
	if !exists(filepath.Join(pods, "c1")) {
		t.Error("group was not made")
	}
}

func TestV2Limits(t *testing.T) {
	tree := fakeTree(t)
	g, err := tree.Open("/c1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(tree.Root, "c1")
	populate(t, dir)
	err = g.Set(Resources{CPUShares: 4096, CPUQuota: 50000, CPUPeriod: 100000, MemoryLimit: 64 << 20, MemorySwap: 64 << 20, Pids: 77,
		CpusetCpus: "0-1", Unified: map[string]string{"memory.high": "1000000"},
		Hugepages: map[string]uint64{"2MB": 0, "1GB": 0}}) // nothing counts pages of 1 GB here: no error
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu.max": "50000 100000", "memory.max": "67108864", "memory.swap.max": "0", "pids.max": "77",
		"cpuset.cpus": "0-1", "memory.high": "1000000", "hugetlb.2MB.max": "0"} {
		if got := read(t, filepath.Join(dir, file)); got != want {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
	if w := read(t, filepath.Join(dir, "cpu.weight")); w == "100" || w == "" {
		t.Errorf("cpu.weight %q", w)
	}
}

func TestV2Statistics(t *testing.T) {
	tree := fakeTree(t)
	dir := filepath.Join(tree.Root, "c1")
	os.Mkdir(dir, 0o755)
	for name, content := range map[string]string{"cpu.stat": "usage_usec 1500\nuser_usec 1000\n", "memory.current": "1000\n", "memory.max": "4000\n",
		"memory.stat": "anon 300\ninactive_file 400\npgfault 7\npgmajfault 2\n", "memory.events": "low 0\noom 1\noom_kill 3\n",
		"memory.swap.current": "55\n", "pids.current": "4\n", "cgroup.procs": "12\n34\n"} {
		os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)
	}
	g, err := tree.Open("c1")
	if err != nil {
		t.Fatal(err)
	}
	want := Stats{CPUUsage: 1500000, MemoryUsage: 1000, WorkingSet: 600, RSS: 300, MemoryLimit: 4000, PageFaults: 7, MajorPageFaults: 2, SwapUsage: 55, Pids: 4}
	if got := g.Stats(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if g.OOMKills() != 3 {
		t.Error("OOM kills")
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 2 || pids[1] != 34 {
		t.Errorf("%v %v", pids, err)
	}
}

func TestRootIsRefused(t *testing.T) {
	for _, name := range []string{"", "/", "..", "/a/../.."} {
		if _, err := (Tree{V2: true, Root: t.TempDir()}).Open(name); err == nil {
			t.Errorf("%q accepted", name)
		}
	}
}

// TestDeviceProgramOnAKernel loads the rules into a bare v2 group, where there is one.
func TestDeviceProgramOnAKernel(t *testing.T) {
	root := "/sys/fs/cgroup/unified"
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		root = "/sys/fs/cgroup"
	} else if unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("no cgroup2 mounted")
	}
	dir := filepath.Join(root, "skiff-device-test")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	if err := attachDeviceProgram(dir, deviceProgram(append(DefaultDevices(), Device{'b', 8, 3, "rw"}))); err != nil {
		t.Fatal(err)
	}
}

// simulate runs a device program as the kernel would.
func simulate(t *testing.T, prog []byte, typ, access, major, minor uint32) uint32 {
	t.Helper()
	var r [11]uint64
	for pc := 0; pc < len(prog)/8; pc++ {
		i := prog[pc*8:]
		dst, src := i[1]&15, i[1]>>4
		off, imm := int16(binary.LittleEndian.Uint16(i[2:])), uint64(int64(int32(binary.LittleEndian.Uint32(i[4:]))))
		switch i[0] {
		case opLoadW:
			r[dst] = uint64(map[int16]uint32{accessOff: access<<16 | typ, majorOff: major, minorOff: minor}[off])
		case opMovReg:
			r[dst] = r[src]
		case opMovImm:
			r[dst] = imm
		case opAndImm:
			r[dst] &= imm
		case opShrImm:
			r[dst] >>= imm
		case opJneImm:
			if r[dst] != imm {
				pc += int(off)
			}
		case opJneReg:
			if r[dst] != r[src] {
				pc += int(off)
			}
		case opExit:
			return uint32(r[0])
		default:
			t.Fatalf("unknown instruction %#x", i[0])
		}
	}
	t.Fatal("ran off the end")
	return 0
}

func TestDeviceRules(t *testing.T) {
	prog := deviceProgram(append(DefaultDevices(), Device{'b', 8, 3, "r"}))
	for _, tc := range []struct {
		name                      string
		typ, access, major, minor uint32
		want                      uint32
	}{
		{"read null", typeChar, readBit, 1, 3, 1},
		{"write null", typeChar, writeBit, 1, 3, 1},
		{"make any node", typeChar, mknodBit, 99, 99, 1},
		{"make and read", typeChar, mknodBit | readBit, 99, 99, 0},
		{"read kmem", typeChar, readBit, 1, 2, 0},
		{"read a disk", typeBlock, readBit, 8, 0, 0},
		{"read the allowed disk", typeBlock, readBit, 8, 3, 1},
		{"write the allowed disk", typeBlock, writeBit, 8, 3, 0},
		{"any pty", typeChar, readBit | writeBit, 136, 17, 1},
	} {
		if got := simulate(t, prog, tc.typ, tc.access, tc.major, tc.minor); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// Package node computes the Node object this kubelet registers and keeps up to date. Facts are read
// from the machine by Read; everything else is pure.
package node

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts is what the machine says of itself.
type Facts struct {
	CPUs         int64
	MemoryBytes  int64
	MemoryFree   int64 // available without swapping, bytes
	SwapBytes    int64
	DiskBytes    int64 // file system of the kubelet's folder
	DiskFree     int64
	InodesTotal  int64
	InodesFree   int64
	PIDs, PIDMax int64
	HugePages    map[string]int64 // resource name → bytes

	MachineID, SystemUUID, BootID string
	Kernel, OSImage, Arch, OS     string
}

// Read gathers the facts. root is the folder whose file system counts as the node's storage.
func Read(root string) (Facts, error) {
	f := Facts{CPUs: int64(runtime.NumCPU()), Arch: runtime.GOARCH, OS: runtime.GOOS, HugePages: hugePages()}
	if err := f.memory(); err != nil {
		return f, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return f, fmt.Errorf("read file system of %s: %w", root, err)
	}
	f.DiskBytes, f.DiskFree = int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	f.InodesTotal, f.InodesFree = int64(st.Files), int64(st.Ffree)
	f.PIDMax = number("/proc/sys/kernel/pid_max")
	if n := number("/proc/sys/kernel/threads-max"); n > 0 && n < f.PIDMax {
		f.PIDMax = n
	}
	if fields := strings.Fields(text("/proc/loadavg")); len(fields) > 3 {
		if _, total, ok := strings.Cut(fields[3], "/"); ok {
			f.PIDs, _ = strconv.ParseInt(total, 10, 64)
		}
	}
	f.MachineID = text("/etc/machine-id")
	f.SystemUUID = text("/sys/class/dmi/id/product_uuid")
	if f.SystemUUID == "" {
		f.SystemUUID = f.MachineID
	}
	f.BootID = text("/proc/sys/kernel/random/boot_id")
	f.Kernel = text("/proc/sys/kernel/osrelease")
	f.OSImage = osImage()
	return f, nil
}

func text(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

func number(path string) int64 {
	n, _ := strconv.ParseInt(text(path), 10, 64)
	return n
}

func (f *Facts) memory() error {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return fmt.Errorf("read memory size: %w", err)
	}
	defer file.Close()
	sc := bufio.NewScanner(file)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "MemTotal:":
			f.MemoryBytes = kb << 10
		case "MemAvailable:":
			f.MemoryFree = kb << 10
		case "SwapTotal:":
			f.SwapBytes = kb << 10
		}
	}
	return sc.Err()
}

func hugePages() map[string]int64 {
	out := map[string]int64{}
	dirs, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*kB")
	for _, d := range dirs {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(d), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		name := fmt.Sprintf("hugepages-%dMi", kb>>10)
		if kb>>10 >= 1024 {
			name = fmt.Sprintf("hugepages-%dGi", kb>>20)
		} else if kb < 1024 {
			name = fmt.Sprintf("hugepages-%dKi", kb)
		}
		out[name] = number(filepath.Join(d, "nr_hugepages")) * kb << 10
	}
	return out
}

func osImage() string {
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		for _, line := range strings.Split(text(path), "\n") {
			if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return "Linux"
}

//go:build linux

// Package ownpages gives the memory that holds the running program's own code
// and read-only data back to the kernel. A start touches most of a program
// once; an idle process needs little of it.
package ownpages

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Release unmaps the pages of the running binary from this process; what is
// used is mapped again at its next use, from the page cache and so without
// reading the disk while that holds them. Pages that were written to are
// private to the process and are left alone. The error is the first one met.
func Release() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for _, line := range bytes.Split(maps, []byte{'\n'}) {
		begin, end, ok := readOnly(string(line), self)
		if !ok {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return nil
}

// readOnly reads one line of /proc/self/maps (proc(5)): the range it maps, and
// whether that is a part of file that cannot have been written to.
func readOnly(line, file string) (begin, end uintptr, ok bool) {
	// begin-end perms offset device inode  path; only the path may hold spaces.
	if len(line) <= len(file) || line[len(line)-len(file):] != file || line[len(line)-len(file)-1] != ' ' {
		return 0, 0, false
	}
	dash, space := -1, -1
	for i := range line {
		if line[i] == '-' && dash < 0 {
			dash = i
		}
		if line[i] == ' ' {
			space = i
			break
		}
	}
	if dash < 0 || space < dash || len(line) < space+5 || line[space+2] == 'w' || line[space+4] != 'p' {
		return 0, 0, false
	}
	b, err1 := strconv.ParseUint(line[:dash], 16, 64)
	e, err2 := strconv.ParseUint(line[dash+1:space], 16, 64)
	return uintptr(b), uintptr(e), err1 == nil && err2 == nil && b < e
}

package runtime

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// PIDFD_GET_INFO (linux/pidfd.h): _IOWR(0xFF, 11, struct pidfd_info).
const (
	pidfdInfoExit = 1 << 3
	pidfdInfoSize = 64 // PIDFD_INFO_SIZE_VER0
)

type pidfdInfo struct {
	mask     uint64
	cgroupID uint64
	ids      [11]uint32 // pid, tgid, ppid, then user and group ids
	exitCode int32
}

// pidfdExitCode asks the kernel for the exit code of a reaped process, which it keeps
// for pidfds held since before (Linux 6.15).
func pidfdExitCode(fd int) (int, bool) {
	info := pidfdInfo{mask: pidfdInfoExit}
	const request = 3<<30 | pidfdInfoSize<<16 | 0xff<<8 | 11
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&info))); e != 0 || info.mask&pidfdInfoExit == 0 {
		return 0, false
	}
	ws := unix.WaitStatus(info.exitCode)
	if ws.Signaled() {
		return 128 + int(ws.Signal()), true
	}
	return ws.ExitStatus(), true
}

//go:build linux

package main

import (
	"strings"
	"unsafe"

	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
)

// runInit reads the specification, waits for the monitor's go and becomes the
// container's command. It returns only on failure, which it also reports on the sync
// socket; success closes that socket on execve.
func runInit() error {
	// Nothing in the container may read this process's memory or executable while it
	// is still ours (CVE-2019-5736, CVE-2016-9962).
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return report(wrap("close_range", err)) // CVE-2024-21626
	}
	var spec wire.Init
	b, err := readAll(wire.SpecFD)
	if err == nil {
		err = wire.Decode(b, &spec)
	}
	if err != nil {
		return report(wrap("read specification", err))
	}
	word := []byte{0}
	if n, err := retry(func() (int, error) { return unix.Read(wire.SyncFD, word) }); err != nil || n != 1 {
		return failure("monitor went away")
	}
	return report(enter(&spec))
}

func report(err error) error {
	if err != nil {
		unix.Write(wire.SyncFD, []byte("E"+err.Error()))
	}
	return err
}

func retry(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}

func readAll(fd int) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	b := make([]byte, st.Size)
	off := 0
	for off < len(b) {
		n, err := unix.Pread(fd, b[off:], int64(off))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		off += n
	}
	return b[:off], nil
}

// enter does the work in the only order that is safe: cgroup, namespaces, file
// systems, terminal, limits, privileges, command.
func enter(s *wire.Init) error {
	for _, fd := range s.Procs {
		if _, err := unix.Write(wire.FirstFD+fd, []byte("0")); err != nil {
			return wrap("join cgroup", err)
		}
	}
	if s.SetOOM {
		setOOM(s.OOMAdj)
	}
	if err := join(s); err != nil {
		return err
	}
	if s.Mode == wire.ModePodInit {
		return podInit()
	}
	if s.Mode == wire.ModeStart {
		if err := setupRoot(s); err != nil {
			return err
		}
	}
	if err := setupIO(s); err != nil {
		return err
	}
	for _, r := range s.Rlimits {
		if err := setRlimit(r); err != nil {
			return err
		}
	}
	return become(s)
}

// setOOM is best effort: lowering the value needs CAP_SYS_RESOURCE, which a
// virtual machine may lack, and a pod must start without it.
func setOOM(adj int) {
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC {
		if _, err := unix.Write(fd, []byte(itoa(adj))); err != nil && adj < 0 {
			unix.Write(fd, []byte("0"))
		}
	}
	unix.Close(fd)
}

func setRlimit(r wire.Rlimit) error {
	lim := unix.Rlimit{Cur: r.Soft, Max: r.Hard}
	var old unix.Rlimit
	if err := unix.Prlimit(0, r.Kind, nil, &old); err == nil && old.Max < lim.Max {
		lim.Max = old.Max // raising needs CAP_SYS_RESOURCE
		lim.Cur = min(lim.Cur, lim.Max)
	}
	return wrap("set resource limit", unix.Prlimit(0, r.Kind, &lim, nil))
}

func join(s *wire.Init) error {
	if len(s.Joins) > 0 || s.CgroupNS {
		// setns to a mount namespace needs file system state of one's own.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return wrap("unshare file system state", err)
		}
	}
	for _, j := range s.Joins {
		if err := unix.Setns(wire.FirstFD+j.FD, j.Flags); err != nil {
			return wrap("join namespace", err)
		}
	}
	if s.CgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return wrap("new cgroup namespace", err)
		}
	}
	return nil
}

// setupIO opens the terminal or adjusts the pipes handed in.
func setupIO(s *wire.Init) error {
	if s.TTY {
		return setupTTY(s)
	}
	if s.NullIn && s.Mode == wire.ModeStart {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Dup3(fd, 0, 0)
			unix.Close(fd)
		}
	}
	// A command that is not root may reopen /dev/stdout: give it the pipes.
	for fd := 0; fd < 3; fd++ {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			unix.Fchown(fd, int(s.UID), int(s.GID))
		}
	}
	return nil
}

func setupTTY(s *wire.Init) error {
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open terminal", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return wrap("unlock terminal", err)
	}
	// TIOCGPTPEER opens the other end without a path somebody could replace.
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return wrap("open terminal's other end", errno)
	}
	fd := int(r)
	unix.Fchown(fd, int(s.UID), -1)
	unix.Fchmod(fd, 0o620)
	if s.Mode == wire.ModeStart {
		bindConsole(fd)
	}
	rights := unix.UnixRights(master)
	if err := unix.Sendmsg(wire.SyncFD, []byte("T"), rights, nil, 0); err != nil {
		return wrap("hand over terminal", err)
	}
	unix.Close(master)
	if err := unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0); err != nil {
		return wrap("make controlling terminal", err)
	}
	for i := 0; i < 3; i++ {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return wrap("dup terminal", err)
		}
	}
	return nil
}

// bindConsole makes /dev/console the terminal; a read-only /dev is no reason to fail.
func bindConsole(slave int) {
	fd, err := unix.Open("/dev/console", unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDWR|unix.O_NOCTTY, 0o600)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	tree, err := unix.OpenTree(slave, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return
	}
	unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	unix.Close(tree)
}

// become drops privileges and executes the command.
func become(s *wire.Init) error {
	path, err := lookPath(s)
	if err != nil {
		return err
	}
	cwdErr := chdir(s.Cwd)
	for c := 0; c <= 63; c++ {
		if s.Bounding&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			if err == unix.EINVAL {
				break // past the kernel's last capability
			}
			return wrap("drop bounding capability", err)
		}
	}
	// Without no_new_privs, loading a filter needs CAP_SYS_ADMIN: now or never.
	if !s.NoNewPrivs {
		if err := loadSeccomp(s); err != nil {
			return err
		}
	}
	if err := setIDs(s); err != nil {
		return err
	}
	if cwdErr != nil {
		// A folder only its owner may enter: try again as that user.
		if err := chdir(s.Cwd); err != nil {
			return err
		}
	}
	if s.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return wrap("no_new_privs", err)
		}
		if err := loadSeccomp(s); err != nil {
			return err
		}
	}
	err = execve(path, s.Args, s.Env)
	return failure("exec: " + quote(s.Args[0]) + ": " + err.Error())
}

// chdir enters dir and proves that it lies inside the container's root: a descriptor
// leaked from outside must not become a working directory (CVE-2024-21626).
func chdir(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return wrap("chdir to cwd ("+quote(dir)+")", err)
	}
	buf := make([]byte, 4097)
	n, err := unix.Getcwd(buf)
	if err != nil || n < 1 || buf[0] != '/' {
		return failure("current working directory is outside of the container root")
	}
	return nil
}

func setIDs(s *wire.Init) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return wrap("keep capabilities", err)
	}
	groups := make([]uint32, len(s.Groups)+1)
	for i, g := range s.Groups {
		groups[i] = uint32(g)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(s.Groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return wrap("setgroups", e)
	}
	// Raw calls: the thread that executes the command is this one; its siblings vanish.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(s.GID), uintptr(s.GID), uintptr(s.GID)); e != 0 {
		return wrap("setresgid", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(s.UID), uintptr(s.UID), uintptr(s.UID)); e != 0 {
		return wrap("setresuid", e)
	}
	return setCaps(s)
}

func setCaps(s *wire.Init) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		shift := uint(32 * i)
		data[i].Permitted = uint32(s.Caps >> shift)
		data[i].Effective = uint32(s.Caps >> shift)
		data[i].Inheritable = uint32(s.Ambient >> shift)
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return wrap("set capabilities", err)
	}
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := 0; c <= 63; c++ {
		if s.Ambient&(1<<c) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return wrap("raise ambient capability", err)
		}
	}
	return nil
}

func loadSeccomp(s *wire.Init) error {
	n := len(s.Seccomp) / 8
	if n == 0 {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(n), Filter: (*unix.SockFilter)(unsafe.Pointer(&s.Seccomp[0]))}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(s.SeccompFlags), uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return wrap("load seccomp filter", e)
	}
	return nil
}

// lookPath finds the command as a shell would, in the container's own PATH.
func lookPath(s *wire.Init) (string, error) {
	name := s.Args[0]
	if name == "" {
		return "", failure("exec: \"\": executable file not found in $PATH")
	}
	if strings.ContainsRune(name, '/') {
		return name, nil
	}
	path := ""
	for _, e := range s.Env {
		if strings.HasPrefix(e, "PATH=") {
			path = e[5:]
		}
	}
	for _, dir := range strings.Split(path, ":") {
		if dir == "" {
			dir = "."
		}
		p := dir + "/" + name
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o111 != 0 {
			return p, nil
		}
	}
	return "", failure("exec: " + quote(name) + ": executable file not found in $PATH")
}

func execve(path string, args, env []string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	argv, err := ptrs(args)
	if err != nil {
		return err
	}
	envp, err := ptrs(env)
	if err != nil {
		return err
	}
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p)),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envp[0])))
	return e
}

func ptrs(ss []string) ([]*byte, error) {
	out := make([]*byte, len(ss)+1)
	for i, s := range ss {
		p, err := unix.BytePtrFromString(s)
		if err != nil {
			return nil, failure("argument or variable holds a NUL byte")
		}
		out[i] = p
	}
	return out, nil
}

func quote(s string) string { return "\"" + s + "\"" }

func itoa(n int) string {
	if n < 0 {
		return "-" + itoa(-n)
	}
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

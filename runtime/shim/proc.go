//go:build linux

package main

import (
	"runtime"
	"syscall"

	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
)

// proc is one child: a container's first process, or an exec.
type proc struct {
	state  wire.Proc
	spec   wire.Spawn
	seq    uint32
	pidfd  int
	sync   int    // open until the command runs or failed
	failed string // what the child reported before dying
	master int    // terminal
	in     int    // our end of stdin
	out    stream
	errs   stream
	log    logFile
	taps   []*tap
}

// stdin is the descriptor through which an attached client writes.
func (p *proc) stdin() int {
	if p.spec.TTY {
		return p.master
	}
	return p.in
}

type stream struct {
	fd      int
	name    string
	partial []byte
}

// spawn forks the helper and tells the rest to later events: the reply to the agent
// goes out when the command runs (sync socket closed) or failed (text on it).
func (m *monitor) spawn(seq uint32, s *wire.Spawn, fds []int) error {
	if m.procs[s.ID] != nil {
		return failure("process exists already")
	}
	head := 2
	pidns := -1
	if s.JoinPID {
		head++
	}
	if s.Stdio {
		head += 3
	}
	if len(fds) < head {
		return failure("descriptors missing")
	}
	if s.JoinPID {
		pidns = fds[2]
	}
	p := &proc{spec: *s, seq: seq, pidfd: -1, sync: -1, master: -1, in: -1, log: logFile{fd: -1}}
	p.state = wire.Proc{ID: s.ID, Exec: s.Exec}
	p.out = stream{fd: -1, name: "stdout"}
	p.errs = stream{fd: -1, name: "stderr"}
	if !s.Exec {
		if err := p.log.open(s.LogPath); err != nil {
			return wrap("open log "+s.LogPath, err)
		}
	}
	var given []int
	if s.Stdio {
		given = fds[head-3 : head]
	}
	theirs, err := p.makeIO(given)
	if err != nil {
		m.dropStreams(p)
		return err
	}
	err = m.fork(p, fds, head, pidns, theirs)
	for i, fd := range theirs {
		if i == 3 || !s.Stdio {
			unix.Close(fd)
		}
	}
	if err != nil {
		m.dropStreams(p)
		return err
	}
	return nil
}

// makeIO returns the child's descriptors 0 to 3, and keeps our ends. Closing them is
// the caller's business, except 0 to 2 when they came with the request.
func (p *proc) makeIO(given []int) ([]int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, wrap("sync socket", err)
	}
	p.sync = pair[0]
	if p.spec.Stdio {
		return []int{given[0], given[1], given[2], pair[1]}, nil
	}
	theirs := make([]int, 3, 4)
	for i := range theirs {
		var fd [2]int
		if p.spec.TTY || i == 0 && !p.spec.Stdin {
			fd[0], err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
			fd[1] = -1
		} else {
			err = unix.Pipe2(fd[:], unix.O_CLOEXEC)
		}
		if err != nil {
			return nil, wrap("stdio", err)
		}
		switch {
		case fd[1] < 0:
			theirs[i] = fd[0]
		case i == 0:
			theirs[0], p.in = fd[0], fd[1]
		case i == 1:
			p.out.fd, theirs[1] = fd[0], fd[1]
		default:
			p.errs.fd, theirs[2] = fd[0], fd[1]
		}
	}
	return append(theirs, pair[1]), nil
}

func (m *monitor) fork(p *proc, fds []int, head, pidns int, theirs []int) error {
	files := make([]uintptr, 0, 8+len(fds))
	for _, fd := range theirs {
		files = append(files, uintptr(fd))
	}
	files = append(files, uintptr(fds[1]))
	for _, fd := range fds[head:] {
		files = append(files, uintptr(fd))
	}
	flags := uintptr(0)
	if p.spec.NewPID {
		flags |= unix.CLONE_NEWPID
	}
	if p.spec.NewNS {
		flags |= unix.CLONE_NEWNS
	}
	attr := &syscall.ProcAttr{Dir: "/", Files: files, Env: []string{"GOMAXPROCS=1", "GOGC=off"},
		Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: flags, PidFD: &p.pidfd}}
	// The child moves descriptors about before it executes the helper by its number:
	// keep that far above all it may use.
	top := 0
	for _, f := range files {
		top = max(top, int(f))
	}
	program, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, top+2*len(files)+16)
	if err != nil {
		return wrap("keep helper", err)
	}
	defer unix.Close(program)
	helper := "/proc/self/fd/" + itoa(program)
	argv := []string{"skiff-shim", "init"}
	var pid int
	if pidns < 0 {
		pid, err = syscall.ForkExec(helper, argv, attr)
	} else {
		done := make(chan struct{})
		go func() {
			// setns to a PID namespace sticks to the thread: end it with the goroutine.
			runtime.LockOSThread()
			defer close(done)
			if err = unix.Setns(pidns, unix.CLONE_NEWPID); err == nil {
				pid, err = syscall.ForkExec(helper, argv, attr)
			}
		}()
		<-done
	}
	if err != nil {
		return wrap("start helper", err)
	}
	p.state.PID = pid
	p.state.StartTime = startTime(pid)
	p.state.StartedAt = now()
	if err := m.release(p); err != nil {
		unix.Kill(pid, unix.SIGKILL)
		unix.Wait4(pid, nil, 0, nil)
		return err
	}
	m.procs[p.spec.ID] = p
	unix.SetNonblock(p.sync, true)
	m.watch(p.sync, unix.EPOLLIN, func(uint32) { m.synced(p) })
	m.watch(p.pidfd, unix.EPOLLIN, func(uint32) { m.exited(p) })
	m.watchOutput(p, &p.out)
	m.watchOutput(p, &p.errs)
	return nil
}

// release writes the start record, then lets the child go on: no container runs that
// a monitor or agent starting later could not find.
func (m *monitor) release(p *proc) error {
	if !p.spec.Exec && p.spec.Dir != "" {
		// Not synced: a power failure ends what runs, so that no start is to be remembered.
		if err := writeRecord(p.spec.Dir, wire.StartRecord, wire.Encode(&p.state), false); err != nil {
			return wrap("write start record", err)
		}
	}
	_, err := unix.Write(p.sync, []byte{1})
	return wrap("release child", err)
}

// writeRecord writes beside, syncs if told so, and renames.
func writeRecord(dir, name string, b []byte, sync bool) error {
	path := dir + "/" + name
	tmp := path + ".tmp"
	fd, err := unix.Open(tmp, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, b)
	if err == nil && sync {
		err = unix.Fdatasync(fd)
	}
	unix.Close(fd)
	if err != nil {
		unix.Unlink(tmp)
		return err
	}
	return unix.Rename(tmp, path)
}

// startTime is field 22 of /proc/<pid>/stat: with the number it names a process for
// good.
func startTime(pid int) uint64 {
	fd, err := unix.Open("/proc/"+itoa(pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	buf := make([]byte, 1024)
	n, _ := unix.Read(fd, buf)
	buf = buf[:max(n, 0)]
	for i := len(buf) - 1; i >= 0; i-- {
		if buf[i] == ')' {
			buf = buf[i+1:]
			break
		}
	}
	field, v := 2, uint64(0) // after ')' comes a space, then field 3
	for _, c := range buf {
		if c == ' ' {
			field++
			continue
		}
		if field == 22 && c >= '0' && c <= '9' {
			v = v*10 + uint64(c-'0')
		}
	}
	return v
}

// synced reads the child's word: a terminal, an error, or the end that means success.
func (m *monitor) synced(p *proc) {
	buf := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(p.sync, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	fds := rights(oob[:max(oobn, 0)])
	switch {
	case err == nil && n > 0 && buf[0] == 'T' && len(fds) == 1:
		p.master = fds[0]
		if !p.spec.Exec {
			p.out.fd = p.master
			m.watchOutput(p, &p.out)
		}
		return
	case err == nil && n > 0 && buf[0] == 'E':
		p.failed = string(buf[1:n])
		return
	}
	closeAll(fds)
	m.started(p)
}

// started answers the agent once, when the sync socket has ended.
func (m *monitor) started(p *proc) {
	if p.sync < 0 {
		return
	}
	m.drop(&p.sync)
	if p.failed != "" {
		return // exited answers, after reaping
	}
	fds := []int{p.pidfd}
	if p.spec.Exec && p.master >= 0 {
		fds = append(fds, p.master)
	}
	m.reply(p.seq, &wire.Reply{PID: p.state.PID, StartTime: p.state.StartTime, StartedAt: p.state.StartedAt}, fds...)
	if p.spec.Exec {
		m.drop(&p.master)
	}
}

// exited reaps a child, drains its output, writes the record, then tells.
func (m *monitor) exited(p *proc) {
	if p.sync >= 0 {
		m.synced(p) // an error may be waiting
		if p.sync >= 0 && p.failed == "" {
			m.started(p)
		}
	}
	var ws unix.WaitStatus
	pid, err := unix.Wait4(p.state.PID, &ws, unix.WNOHANG, nil)
	if err == unix.EINTR || pid == 0 && err == nil {
		return
	}
	p.state.Exited = true
	p.state.ExitedAt = now()
	p.state.Code = 255
	if err == nil {
		p.state.Code = ws.ExitStatus()
		if ws.Signaled() {
			p.state.Code = 128 + int(ws.Signal())
		}
	}
	m.drainAll(p)
	if p.failed != "" {
		m.drop(&p.sync)
		m.dropStreams(p)
		delete(m.procs, p.state.ID)
		m.reply(p.seq, &wire.Reply{Err: p.failed})
		return
	}
	if !p.spec.Exec && p.spec.Dir != "" {
		writeRecord(p.spec.Dir, wire.ExitRecord, wire.Encode(&p.state), true)
	}
	m.drop(&p.pidfd)
	m.send(wire.Packet{Kind: wire.KindExit, Body: wire.Encode(&p.state)})
	if p.spec.Exec {
		delete(m.procs, p.state.ID)
	}
}

func (m *monitor) dropStreams(p *proc) {
	m.drop(&p.pidfd)
	m.drop(&p.sync)
	m.drop(&p.in)
	if p.master >= 0 && p.master == p.out.fd {
		p.out.fd = -1
	}
	m.drop(&p.master)
	m.drop(&p.out.fd)
	m.drop(&p.errs.fd)
	m.closeTaps(p)
	p.log.close()
}

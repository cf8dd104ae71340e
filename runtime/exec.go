package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/skiff-project/skiff/runtime/wire"
)

// execProc is one command run in a container.
type execProc struct {
	mon    *monitor
	pid    int
	pidfd  int
	master *os.File // terminal, if asked for
	done   chan struct{}
	code   int // valid once done is closed
}

func (e *execProc) kill() {
	unix.PidfdSendSignal(e.pidfd, unix.SIGKILL, nil, 0)
}

// startExec runs cmd in a running container. stdio are the command's descriptors, and
// stay the caller's; nil with a terminal.
func (r *Runtime) startExec(c *container, cmd []string, tty bool, stdio []int) (*execProc, error) {
	if len(cmd) == 0 {
		return nil, status.Error(codes.InvalidArgument, "exec: no command")
	}
	s, err := r.sandbox(c.rec.SandboxID)
	if err != nil {
		return nil, err
	}
	l := newLaunch()
	defer l.close()
	if err := r.fillExec(c, cmd, tty, l); err != nil {
		return nil, err
	}
	e := &execProc{pidfd: -1, done: make(chan struct{})}
	id := newID()
	r.mu.Lock()
	r.execs[id] = e // before its exit event can come
	r.mu.Unlock()
	spawn := wire.Spawn{ID: id, Exec: true, TTY: tty, Stdio: !tty, JoinPID: true}
	reply, err := r.spawn(s, &spawn, l, stdio)
	if err != nil {
		r.mu.Lock()
		delete(r.execs, id)
		r.mu.Unlock()
		return nil, fmt.Errorf("failed to exec in container %q: %w", c.rec.ID, err)
	}
	e.pid, e.mon = reply.reply.PID, reply.mon
	if len(reply.fds) > 0 {
		e.pidfd = reply.fds[0]
	}
	if len(reply.fds) > 1 {
		unix.SetNonblock(reply.fds[1], true)
		e.master = os.NewFile(uintptr(reply.fds[1]), "terminal")
	}
	return e, nil
}

// fillExec: an exec joins the control group, then the namespaces, then is as confined
// as the container's own process.
func (r *Runtime) fillExec(c *container, cmd []string, tty bool, l *launch) error {
	r.mu.RLock()
	p, pid, state := c.rec.Process, c.pid, c.state
	pidfd := -1
	var err error
	if c.pidfd >= 0 {
		pidfd, err = unix.FcntlInt(uintptr(c.pidfd), unix.F_DUPFD_CLOEXEC, 3)
	}
	r.mu.RUnlock()
	if err != nil {
		return err
	}
	if state != runtimeapi.ContainerState_CONTAINER_RUNNING || pidfd < 0 {
		closeFDs([]int{pidfd})
		return status.Errorf(codes.FailedPrecondition, "container %q is in %s state", c.rec.ID, state)
	}
	p.Args = cmd
	if l.spec, err = r.initOf(p); err != nil {
		closeFDs([]int{pidfd})
		return err
	}
	l.spec.Mode, l.spec.TTY = wire.ModeExec, tty
	if tty && !hasEnv(p.Env, "TERM") {
		l.spec.Env = append(append([]string{}, p.Env...), "TERM=xterm")
	}
	l.spec.Joins = []wire.Join{{FD: l.add(pidfd),
		Flags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP}}
	if err := r.enterGroup(c.group, l); err != nil {
		return err
	}
	l.pidNS, err = openPIDNamespace(pid)
	return err
}

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// boundedBuffer keeps the first limit bytes and swallows the rest: a command must not
// fill the agent's memory (CVE-2022-1708).
type boundedBuffer struct {
	bytes.Buffer
	limit int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := b.limit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// ExecSync implements CRI. A command that ends with another code than zero is an
// error of type exec.CodeExitError; timeout zero means none.
func (r *Runtime) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, []byte, error) {
	c, err := r.container(id)
	if err != nil {
		return nil, nil, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	stdout, stderr := &boundedBuffer{limit: r.cfg.ExecSyncLimit}, &boundedBuffer{limit: r.cfg.ExecSyncLimit}
	code, err := r.execPipes(ctx, c, cmd, nil, stdout, stderr)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = status.Errorf(codes.DeadlineExceeded, "failed to exec in container: timeout %s exceeded", timeout)
		}
		return stdout.Bytes(), stderr.Bytes(), err
	}
	if code != 0 {
		err = &utilexec.CodeExitError{Err: fmt.Errorf("command '%s' exited with %d: %s", strings.Join(cmd, " "), code, stderr.Bytes()), Code: code}
		return stdout.Bytes(), stderr.Bytes(), err
	}
	return stdout.Bytes(), stderr.Bytes(), nil
}

// copier moves a process's output. Its end is not the process's: a child in the
// background may hold the pipe for ever, so a quiet pipe is given up some time after
// the process has ended.
type copier struct {
	from    *os.File
	to      io.Writer
	reading atomic.Bool
	count   atomic.Int64
	done    chan struct{}
}

func startCopy(from *os.File, to io.Writer) *copier {
	c := &copier{from: from, to: to, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		buf := make([]byte, 8<<10)
		for {
			c.reading.Store(true)
			n, err := c.from.Read(buf)
			c.reading.Store(false)
			c.count.Add(1)
			if n > 0 {
				if _, werr := c.to.Write(buf[:n]); werr != nil {
					// The reader is gone; go on draining so that the command does not block.
					c.to = io.Discard
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return c
}

const (
	quietCheck = 50 * time.Millisecond
	quietLimit = 10 // checks without news before an ended process's pipe is closed
)

// finish waits until everything is copied, or the pipe stays quiet.
func (c *copier) finish() {
	quiet, last := 0, int64(-1)
	for quiet < quietLimit {
		select {
		case <-c.done:
			return
		case <-time.After(quietCheck):
		}
		n := c.count.Load()
		if n != last || !c.reading.Load() {
			quiet, last = 0, n
			continue
		}
		quiet++
	}
	c.from.Close()
	<-c.done
}

// execPipes runs a command without a terminal and returns its exit code.
func (r *Runtime) execPipes(ctx context.Context, c *container, cmd []string, in io.Reader, stdout, stderr io.Writer) (int, error) {
	var theirs, ours [3]*os.File
	defer func() {
		for i := range 3 {
			theirs[i].Close()
			ours[i].Close()
		}
	}()
	for i := range 3 {
		rd, wr, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		if i == 0 {
			theirs[i], ours[i] = rd, wr
		} else {
			theirs[i], ours[i] = wr, rd
		}
	}
	e, err := r.startExec(c, cmd, false, []int{int(theirs[0].Fd()), int(theirs[1].Fd()), int(theirs[2].Fd())})
	if err != nil {
		return 0, err
	}
	defer closeFDs([]int{e.pidfd})
	for i := range theirs {
		theirs[i].Close()
	}
	if in == nil {
		ours[0].Close()
	} else {
		go func() {
			io.Copy(ours[0], in)
			ours[0].Close()
		}()
	}
	co, ce := startCopy(ours[1], stdout), startCopy(ours[2], stderr)
	err = r.awaitExec(ctx, c, e)
	co.finish()
	ce.finish()
	return e.code, err
}

// awaitExec waits for the end; when ctx ends first the command is killed.
func (r *Runtime) awaitExec(ctx context.Context, c *container, e *execProc) error {
	select {
	case <-e.done:
		return nil
	case <-e.mon.gone:
		select {
		case <-e.done: // the pod was stopped: the exit came before the monitor's end
			return nil
		default:
			return fmt.Errorf("exec in container %q: %w", c.rec.ID, errMonitorGone)
		}
	case <-ctx.Done():
		e.kill()
		select {
		case <-e.done:
		case <-e.mon.gone:
		case <-time.After(killPatience):
		}
		return ctx.Err()
	}
}

// execTTY runs a command on a terminal.
func (r *Runtime) execTTY(ctx context.Context, c *container, cmd []string, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) (int, error) {
	e, err := r.startExec(c, cmd, true, nil)
	if err != nil {
		return 0, err
	}
	defer closeFDs([]int{e.pidfd})
	if e.master == nil {
		return 0, errors.New("exec: no terminal came back")
	}
	defer e.master.Close()
	stop := make(chan struct{})
	defer close(stop)
	go resizeLoop(e.master, resize, stop)
	if in != nil {
		go io.Copy(e.master, in)
	}
	var co *copier
	if out != nil {
		co = startCopy(e.master, out)
	}
	err = r.awaitExec(ctx, c, e)
	if co != nil {
		co.finish()
	}
	return e.code, err
}

func resizeLoop(master *os.File, resize <-chan remotecommand.TerminalSize, stop <-chan struct{}) {
	for {
		select {
		case size, ok := <-resize:
			if !ok {
				return
			}
			raw, err := master.SyscallConn()
			if err != nil {
				return
			}
			raw.Control(func(fd uintptr) {
				unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
			})
		case <-stop:
			return
		}
	}
}

// attach connects a client to a container's first process.
func (r *Runtime) attach(ctx context.Context, c *container, in io.Reader, stdout, stderr io.Writer, resize <-chan remotecommand.TerminalSize) error {
	s, err := r.sandbox(c.rec.SandboxID)
	if err != nil {
		return err
	}
	r.mu.RLock()
	running, m := c.state == runtimeapi.ContainerState_CONTAINER_RUNNING, s.mon
	r.mu.RUnlock()
	if !running || m == nil {
		return status.Errorf(codes.FailedPrecondition, "container %q is not running", c.rec.ID)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outW.Close()
		return err
	}
	defer errR.Close()
	reply, err := m.call(wire.KindAttach, &wire.Target{ID: c.rec.ID}, int(outW.Fd()), int(errW.Fd()))
	outW.Close()
	errW.Close()
	if err != nil {
		return err
	}
	var stdin *os.File
	if len(reply.fds) > 0 {
		unix.SetNonblock(reply.fds[0], true)
		stdin = os.NewFile(uintptr(reply.fds[0]), "stdin")
		defer stdin.Close()
	}
	if stdin != nil && c.cfg.GetTty() {
		stop := make(chan struct{})
		defer close(stop)
		go resizeLoop(stdin, resize, stop)
	}
	return r.attachCopy(ctx, c, m, stdin, in, [2]*os.File{outR, errR}, [2]io.Writer{stdout, stderr})
}

func (r *Runtime) attachCopy(ctx context.Context, c *container, m *monitor, stdin *os.File, in io.Reader, from [2]*os.File, to [2]io.Writer) error {
	var wg sync.WaitGroup
	for i := range from {
		w := to[i]
		if w == nil {
			w = io.Discard
		}
		wg.Go(func() { io.Copy(w, from[i]) })
	}
	outDone := make(chan struct{})
	go func() {
		wg.Wait()
		close(outDone)
	}()
	said := make(chan struct{}) // closed when the client has said all, and the process may hear others yet
	if in != nil && stdin != nil {
		go func() {
			io.Copy(stdin, in)
			if !c.cfg.GetStdinOnce() || c.cfg.GetTty() {
				close(said)
				return
			}
			stdin.Close()
			m.call(wire.KindCloseStdin, &wire.Target{ID: c.rec.ID})
		}()
	}
	select {
	case <-said:
	case <-outDone: // also when the monitor ends: its sockets end with it
	case <-ctx.Done():
	}
	return nil
}

package reference

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is what runs as one component; the zero Program is an absent one.
type Program struct {
	Path string   // executable
	Name []string // what comes before the flags, such as the component's name
	Args []string // further flags, after those the cluster gives
}

// Program is upstream's program of that name.
func (b Binaries) Program(name string) Program { return Program{Path: b.Path(name)} }

// Skiff is Skiff's program of that name.
func Skiff(binary, name string) Program { return Program{Path: binary, Name: []string{name}} }

func (p Program) absent() bool { return p.Path == "" }

// Process is a running component.
type Process struct {
	Name string
	PID  int // as the host sees it
	Log  string

	cmd    *exec.Cmd
	exited chan struct{}
	err    error // of exiting; read after exited is closed
}

// spawn starts a program with its output in a log of its own. It runs in the
// namespaces of box, or in the caller's if box is nil.
func spawn(name string, p Program, args []string, dir string, b *box) (*Process, error) {
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	all := append(append(append([]string{}, p.Name...), args...), p.Args...)
	fmt.Fprintf(log, "$ %s %s\n", p.Path, strings.Join(all, " "))
	cmd := exec.Command(p.Path, all...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	proc := &Process{Name: name, PID: cmd.Process.Pid, Log: log.Name(), cmd: cmd, exited: make(chan struct{})}
	go func() {
		proc.err = cmd.Wait()
		close(proc.exited)
	}()
	return proc, nil
}

// stop asks the process to end, and ends it after patience.
func (p *Process) stop(patience time.Duration) {
	syscall.Kill(-p.PID, syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(patience):
	}
	syscall.Kill(-p.PID, syscall.SIGKILL)
	<-p.exited
}

// waitReady polls check until it succeeds. What it returns otherwise ends
// with the last lines of the process's log.
func (p *Process) waitReady(ctx context.Context, patience time.Duration, check func(context.Context) error) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	last := errors.New("never asked")
	for {
		try, done := context.WithTimeout(ctx, 2*time.Second)
		err := check(try)
		done()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-p.exited:
			return fmt.Errorf("%s ended after %s: %v; the end of its log:\n%s", p.Name, time.Since(began).Round(time.Millisecond), p.err, Tail(p.Log, 12))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready after %s: %w; the end of its log:\n%s", p.Name, time.Since(began).Round(time.Second), last, Tail(p.Log, 12))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Tail is the last n lines of a log, at most 8 KB, without the command it
// begins with.
func Tail(path string, n int) string {
	const most = 8 << 10
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data[max(0, len(data)-most):]), []byte("\n"))
	lines = slices.DeleteFunc(lines, func(l []byte) bool { return bytes.HasPrefix(l, []byte("$ ")) })
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}

// box is namespaces of its own (processes, mounts, network) for everything
// that leaves traces on a host. They end, with every process and mount in
// them, when their first process does; and that ends when the program that
// made the box does, however it ends.
type box struct {
	pid    int
	holder *exec.Cmd
	hold   *os.File // its first process ends when this is closed
}

// boxScript makes a host of its own of the new namespaces: the folders that
// node components write to whatever their flags say are the data folder's.
// The first process ignores SIGCHLD, so that the kernel reaps orphans.
const boxScript = `set -e
mount --make-rshared /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
for d in /var/lib/kubelet /var/log /var/lib/cni; do
	mkdir -p "$d" "$0/host$d"
	mount --bind "$0/host$d" "$d"
done
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo ready
trap '' CHLD
exec cat`

func newBox(dir string) (*box, error) {
	cmd := exec.Command("sh", "-c", boxScript, dir)
	// Unshared, not cloned: Go then makes the mounts private first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
	in, hold, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd.Stdin = in
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("namespaces (root is needed): %w", err)
	}
	b := &box{pid: cmd.Process.Pid, holder: cmd, hold: hold}
	if n, _ := out.Read(make([]byte, 16)); n == 0 {
		b.close()
		return nil, fmt.Errorf("set up namespaces: %s", errs.String())
	}
	return b, nil
}

// close ends every process in the box.
func (b *box) close() {
	b.hold.Close()
	syscall.Kill(b.pid, syscall.SIGKILL)
	b.holder.Wait()
}

// start starts cmd inside the box.
func (b *box) start(cmd *exec.Cmd) error {
	if b == nil {
		return cmd.Start()
	}
	done := make(chan error, 1)
	go func() {
		// The thread is not unlocked, so it ends with the goroutine, and nothing
		// else ever runs in these namespaces.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			for _, ns := range []string{"net", "pid", "mnt"} {
				if err := enter(b.pid, ns); err != nil {
					return fmt.Errorf("enter namespace %s: %w", ns, err)
				}
			}
			return cmd.Start()
		}()
	}()
	return <-done
}

func enter(pid int, ns string) error {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, ns), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, 0)
}

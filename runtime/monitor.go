package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
)

// errMonitorGone says that a pod's monitor does not answer any more.
var errMonitorGone = errors.New("the pod's monitor is gone")

// monitor is the agent's end of a pod monitor's socket.
type monitor struct {
	conn *net.UnixConn
	proc *os.Process // nil if an earlier agent started it
	pid  int
	exit func(wire.Proc)
	lost func() // called once, when the connection has ended
	gone chan struct{}
	// reaped closes when a monitor of ours has ended and been waited for.
	reaped chan struct{}

	mu      sync.Mutex
	seq     uint32
	pending map[uint32]*pendingCall
}

type pendingCall struct {
	mon   *monitor
	done  chan struct{}
	reply wire.Reply
	fds   []int
	procs []procFD
}

// procFD is a process of a monitor with its pidfd, -1 once it has ended.
type procFD struct {
	wire.Proc
	fd int
}

// startMonitor runs a monitor for the sandbox whose state folder is dir.
func startMonitor(program, dir string, onExit func(wire.Proc), onLost func()) (*monitor, error) {
	sock, err := listenIn(dir)
	if err != nil {
		return nil, fmt.Errorf("monitor socket: %w", err)
	}
	defer sock.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	// A monitor says nothing unless it crashes; then this tells why.
	crash, err := os.OpenFile(filepath.Join(dir, "monitor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer crash.Close()
	p, err := os.StartProcess(program, []string{"skiff-shim", "monitor"}, &os.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: []*os.File{null, null, crash, sock},
		Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return nil, fmt.Errorf("start monitor: %w", err)
	}
	m, err := dialMonitor(dir, onExit)
	if err != nil {
		p.Kill()
		p.Wait()
		return nil, err
	}
	m.proc, m.pid, m.lost = p, p.Pid, onLost
	go m.read()
	return m, nil
}

// adoptMonitor connects to the monitor an earlier agent started.
func adoptMonitor(dir string, onExit func(wire.Proc), onLost func()) (*monitor, error) {
	m, err := dialMonitor(dir, onExit)
	if err != nil {
		return nil, err
	}
	m.lost = onLost
	go m.read()
	return m, nil
}

const socketName = "m.sock"

// short names a file in dir in a way that fits into a socket address, however long
// dir is. The returned file keeps it valid.
func short(dir string) (string, *os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName), d, nil
}

// listenIn makes the monitor's listening socket: a path socket, 0600 in a 0700 folder
// (CVE-2020-15257).
func listenIn(dir string) (*os.File, error) {
	os.Remove(filepath.Join(dir, socketName))
	name, d, err := short(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "monitor socket")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		f.Close()
		return nil, err
	}
	if err := os.Chmod(filepath.Join(dir, socketName), 0o600); err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Listen(fd, 4); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func dialMonitor(dir string, onExit func(wire.Proc)) (*monitor, error) {
	name, d, err := short(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMonitorGone, err)
	}
	m := &monitor{conn: conn, exit: onExit, gone: make(chan struct{}), reaped: make(chan struct{}), pending: map[uint32]*pendingCall{}}
	raw, err := conn.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			cred, cerr := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
			if cerr != nil || int(cred.Uid) != os.Geteuid() {
				err = errors.New("monitor socket belongs to somebody else")
			}
		})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return m, nil
}

// readBuffer is the largest packet a monitor sends: an error text and its frame.
const readBuffer = 8 << 10

func (m *monitor) read() {
	buf := make([]byte, readBuffer)
	oob := make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, _, _, err := m.conn.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			break
		}
		m.packet(buf[:n], parseFDs(oob[:oobn]))
	}
	m.conn.Close()
	if m.proc != nil {
		// It closes its connection only by ending, or for a newer agent; in the latter
		// case this one is on its way out too.
		go func() {
			m.proc.Wait()
			close(m.reaped)
		}()
	}
	m.mu.Lock()
	close(m.gone)
	for seq, p := range m.pending {
		p.reply.Err = errMonitorGone.Error()
		delete(m.pending, seq)
		close(p.done)
	}
	m.mu.Unlock()
	m.lost()
}

func parseFDs(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (m *monitor) packet(b []byte, fds []int) {
	p, err := wire.Unmarshal(b)
	if err != nil {
		closeFDs(fds)
		return
	}
	if p.Kind == wire.KindExit {
		closeFDs(fds)
		var e wire.Proc
		if wire.Decode(p.Body, &e) == nil {
			m.exit(e)
		}
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	call := m.pending[p.Seq]
	if call == nil {
		closeFDs(fds)
		return
	}
	switch p.Kind {
	case wire.KindProc:
		e := procFD{fd: -1}
		if wire.Decode(p.Body, &e.Proc) != nil {
			closeFDs(fds)
			return
		}
		if len(fds) > 0 {
			e.fd = fds[0]
		}
		call.procs = append(call.procs, e)
	case wire.KindReply:
		if err := wire.Decode(p.Body, &call.reply); err != nil {
			call.reply.Err = err.Error()
		}
		call.fds = fds
		delete(m.pending, p.Seq)
		close(call.done)
	}
}

// call sends a request and waits for its reply. The descriptors sent stay the
// caller's; those received become the caller's.
func (m *monitor) call(kind uint32, body wire.Walker, fds ...int) (*pendingCall, error) {
	p := &pendingCall{mon: m, done: make(chan struct{})}
	m.mu.Lock()
	select {
	case <-m.gone:
		m.mu.Unlock()
		return nil, errMonitorGone
	default:
	}
	m.seq++
	seq := m.seq
	m.pending[seq] = p
	m.mu.Unlock()
	pkt := wire.Packet{Kind: kind, Seq: seq}
	if body != nil {
		pkt.Body = wire.Encode(body)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := m.conn.WriteMsgUnix(pkt.Marshal(), oob, nil); err != nil {
		m.mu.Lock()
		delete(m.pending, seq)
		m.mu.Unlock()
		return nil, fmt.Errorf("tell monitor: %w", err)
	}
	<-p.done
	if p.reply.Err != "" {
		closeFDs(p.fds)
		for _, e := range p.procs {
			closeFDs([]int{e.fd})
		}
		if p.reply.Err == errMonitorGone.Error() {
			return nil, errMonitorGone
		}
		return nil, errors.New(p.reply.Err)
	}
	return p, nil
}

// shutdownPatience bounds how long a monitor may take to end: longer than it gives
// attached clients to take their last output.
const shutdownPatience = 5 * time.Second

// shutdown ends the monitor; its processes must have ended.
func (m *monitor) shutdown() {
	m.conn.Write(wire.Packet{Kind: wire.KindShutdown}.Marshal())
	select {
	case <-m.gone:
	case <-time.After(shutdownPatience): // stopped, or stuck on a disk
		if m.pid > 0 {
			unix.Kill(m.pid, unix.SIGKILL)
		}
		m.conn.Close()
		<-m.gone
	}
	if m.proc != nil {
		<-m.reaped
	}
}

func (m *monitor) close() { m.conn.Close() }

func (m *monitor) alive() bool {
	select {
	case <-m.gone:
		return false
	default:
		return true
	}
}

//go:build linux

package main

import (
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"github.com/skiff-project/skiff/runtime/wire"
	"golang.org/x/sys/unix"
)

// listenFD is the listening socket the agent hands over: it made the socket, so the
// first connection cannot come too early.
const listenFD = 3

// trimAfter is how long a monitor must be idle before it returns memory, in
// milliseconds.
const trimAfter = 300

// monitor parents the containers and execs of one pod. One thread, one epoll: a pod
// costs little memory and there is nothing to lock.
type monitor struct {
	ep    int
	conn  int // the agent, or -1
	procs map[string]*proc
	fds   map[int]func(events uint32)
	buf   []byte // what is read from a container, shared by all of them
	pack  []byte
	line  []byte
	quit  bool
	// paused says that a client holds a container's stream back.
	paused bool
	// trim says that memory may be given back once it is quiet.
	trim bool
}

func runMonitor() error {
	debug.SetGCPercent(10)
	m := &monitor{conn: -1, procs: map[string]*proc{}, fds: map[int]func(uint32){}, trim: true}
	// INT and TERM sent to the agent's group or by a careless operator must not orphan
	// the pod: a monitor ends when the agent says so.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE, unix.SIGTTOU)
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC)
	os.Chdir("/")
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return wrap("epoll", err)
	}
	m.ep = ep
	m.watch(listenFD, unix.EPOLLIN, m.accept)
	events := make([]unix.EpollEvent, 32)
	for !m.quit {
		wait := -1
		switch {
		case m.paused:
			wait = 1000
		case m.trim:
			wait = trimAfter
		}
		n, err := unix.EpollWait(ep, events, wait)
		if err != nil && err != unix.EINTR {
			return wrap("epoll_wait", err)
		}
		if n == 0 && m.trim {
			m.trim, m.pack, m.buf, m.line = false, nil, nil, nil
			rest()
		}
		for _, e := range events[:max(n, 0)] {
			if f := m.fds[int(e.Fd)]; f != nil {
				f(e.Events)
			}
		}
		if m.paused {
			m.dropStuck()
		}
	}
	m.lastWords()
	return nil
}

func (m *monitor) watch(fd int, events uint32, f func(uint32)) {
	m.fds[fd] = f
	unix.EpollCtl(m.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (m *monitor) rewatch(fd int, events uint32) {
	unix.EpollCtl(m.ep, unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// drop forgets a descriptor and closes it; -1 is ignored.
func (m *monitor) drop(fd *int) {
	if *fd < 0 {
		return
	}
	if _, ok := m.fds[*fd]; ok {
		delete(m.fds, *fd)
		unix.EpollCtl(m.ep, unix.EPOLL_CTL_DEL, *fd, nil)
	}
	unix.Close(*fd)
	*fd = -1
}

// accept takes a new agent; the one before is gone or being replaced.
func (m *monitor) accept(uint32) {
	fd, _, err := unix.Accept4(listenFD, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || int(cred.Uid) != unix.Geteuid() {
		unix.Close(fd)
		return
	}
	m.drop(&m.conn)
	m.conn = fd
	m.watch(fd, unix.EPOLLIN, m.receive)
}

func (m *monitor) receive(uint32) {
	m.trim = true
	if m.pack == nil {
		m.pack = make([]byte, wire.MaxPacket)
	}
	oob := make([]byte, unix.CmsgSpace(253*4))
	n, oobn, _, _, err := unix.Recvmsg(m.conn, m.pack, oob, unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	fds := rights(oob[:max(oobn, 0)])
	if err != nil || n == 0 {
		m.drop(&m.conn)
		return
	}
	p, err := wire.Unmarshal(m.pack[:n])
	if err != nil {
		closeAll(fds)
		m.reply(p.Seq, &wire.Reply{Err: err.Error()})
		return
	}
	m.handle(p, fds)
}

func rights(oob []byte) []int {
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// send writes one packet to the agent. If its queue is full or it is gone, the packet
// is dropped and the connection with it: the agent reconnects and lists.
func (m *monitor) send(p wire.Packet, fds ...int) {
	if m.conn < 0 {
		return
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(m.conn, p.Marshal(), oob, nil, unix.MSG_NOSIGNAL); err != nil {
		m.drop(&m.conn)
	}
}

func (m *monitor) reply(seq uint32, r *wire.Reply, fds ...int) {
	m.send(wire.Packet{Kind: wire.KindReply, Seq: seq, Body: wire.Encode(r)}, fds...)
}

func (m *monitor) handle(p wire.Packet, fds []int) {
	switch p.Kind {
	case wire.KindSpawn:
		var s wire.Spawn
		if err := wire.Decode(p.Body, &s); err != nil {
			closeAll(fds)
			m.reply(p.Seq, &wire.Reply{Err: err.Error()})
			return
		}
		if err := m.spawn(p.Seq, &s, fds); err != nil {
			m.reply(p.Seq, &wire.Reply{Err: err.Error()})
		}
		closeAll(fds)
		return
	case wire.KindList:
		m.list(p.Seq)
	case wire.KindShutdown:
		m.quit = true
	default:
		m.target(p, fds)
		return
	}
	closeAll(fds)
}

func (m *monitor) list(seq uint32) {
	for _, pr := range m.procs {
		var fds []int
		if !pr.state.Exited {
			fds = append(fds, pr.pidfd)
		}
		if pr.sync >= 0 {
			continue // still starting: its own reply will tell
		}
		m.send(wire.Packet{Kind: wire.KindProc, Seq: seq, Body: wire.Encode(&pr.state)}, fds...)
	}
	m.reply(seq, &wire.Reply{PID: os.Getpid()})
}

// target serves the requests that name one process.
func (m *monitor) target(p wire.Packet, fds []int) {
	var t wire.Target
	err := wire.Decode(p.Body, &t)
	pr := m.procs[t.ID]
	if err == nil && pr == nil {
		err = failure("no such process")
	}
	var out []int
	switch {
	case err != nil:
	case p.Kind == wire.KindReopenLog:
		err = pr.log.reopen()
	case p.Kind == wire.KindAttach && len(fds) == 2:
		m.attach(pr, fds)
		fds = nil
		if fd := pr.stdin(); fd >= 0 {
			out = append(out, fd)
		}
	case p.Kind == wire.KindCloseStdin:
		m.drop(&pr.in)
	case p.Kind == wire.KindForget:
		m.forget(pr)
	default:
		err = failure("unknown request")
	}
	closeAll(fds)
	r := &wire.Reply{}
	if err != nil {
		r.Err = err.Error()
	}
	m.reply(p.Seq, r, out...)
}

func (m *monitor) forget(pr *proc) {
	if !pr.state.Exited {
		return
	}
	m.dropStreams(pr)
	delete(m.procs, pr.state.ID)
	m.trim = true
}

func now() int64 { return time.Now().UnixNano() }

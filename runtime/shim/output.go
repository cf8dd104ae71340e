//go:build linux

package main

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readSize is how much is read from a container at once, in bytes, and so the
	// longest line written whole (containerd's and upstream's limit too).
	readSize = 16 << 10
	// tapLimit bounds what waits for one attached client, in bytes. At it the
	// container's stream pauses; a client that takes nothing for tapPatience is dropped.
	tapLimit    = 1 << 20
	tapPatience = 10 * time.Second
)

// tap is one attached client: its two sockets and what they have not taken yet.
type tap struct {
	fd    [2]int
	queue [2][]byte
	since time.Time // of the oldest byte waiting
}

func (m *monitor) watchOutput(p *proc, s *stream) {
	if s.fd < 0 {
		return
	}
	unix.SetNonblock(s.fd, true)
	m.watch(s.fd, unix.EPOLLIN, func(uint32) { m.readOutput(p, s) })
}

// readOutput moves one buffer from a container to its log and clients; it reports
// whether more may follow at once.
func (m *monitor) readOutput(p *proc, s *stream) bool {
	if s.fd < 0 {
		return false
	}
	if m.buf == nil {
		m.buf = make([]byte, readSize)
	}
	n, err := unix.Read(s.fd, m.buf)
	if err == unix.EINTR {
		return true
	}
	if err == unix.EAGAIN {
		return false
	}
	if err != nil || n == 0 { // EIO: the terminal's last user is gone
		m.endStream(p, s)
		return false
	}
	m.logLines(p, s, m.buf[:n])
	m.feedTaps(p, s, m.buf[:n])
	return true
}

func (m *monitor) endStream(p *proc, s *stream) {
	m.flush(p, s)
	if s.fd == p.master {
		m.drop(&p.master)
		s.fd = -1
	} else {
		m.drop(&s.fd)
	}
	if p.out.fd < 0 && p.errs.fd < 0 {
		m.closeTaps(p)
	}
}

// logLines writes the kubelet's format: time, stream, P or F, text.
func (m *monitor) logLines(p *proc, s *stream, b []byte) {
	if p.log.fd < 0 {
		return
	}
	at := time.Now()
	m.line = m.line[:0]
	for len(b) > 0 {
		i := indexNewline(b)
		if i < 0 {
			s.partial = append(s.partial, b...)
			if len(s.partial) >= readSize {
				m.appendLine(s, at, 'P', s.partial)
				s.partial = s.partial[:0]
			}
			break
		}
		text := b[:i]
		if len(s.partial) > 0 {
			s.partial = append(s.partial, text...)
			text = s.partial
		}
		m.appendLine(s, at, 'F', text)
		s.partial = s.partial[:0]
		b = b[i+1:]
	}
	p.log.write(m.line)
}

// flush writes output that ended without a newline as a part of a line: read back,
// it has no newline either.
func (m *monitor) flush(p *proc, s *stream) {
	if len(s.partial) == 0 {
		return
	}
	m.line = m.line[:0]
	m.appendLine(s, time.Now(), 'P', s.partial)
	s.partial = nil
	p.log.write(m.line)
}

func (m *monitor) appendLine(s *stream, at time.Time, tag byte, text []byte) {
	m.line = at.UTC().AppendFormat(m.line, "2006-01-02T15:04:05.000000000Z07:00")
	m.line = append(m.line, ' ')
	m.line = append(m.line, s.name...)
	m.line = append(m.line, ' ', tag, ' ')
	m.line = append(m.line, text...)
	m.line = append(m.line, '\n')
}

func indexNewline(b []byte) int {
	for i, c := range b {
		if c == '\n' {
			return i
		}
	}
	return -1
}

// drainLimit bounds what is read after a death, in buffers: a survivor that shares
// the pipe must not hold the exit back.
const drainLimit = 4096

func (m *monitor) drainAll(p *proc) {
	for _, s := range []*stream{&p.out, &p.errs} {
		for range drainLimit {
			if !m.readOutput(p, s) {
				break
			}
		}
		m.flush(p, s)
	}
}

// attach adds a client and takes over its sockets.
func (m *monitor) attach(p *proc, fds []int) {
	t := &tap{fd: [2]int{fds[0], fds[1]}}
	for _, fd := range fds {
		unix.SetNonblock(fd, true)
	}
	p.taps = append(p.taps, t)
	if p.out.fd < 0 && p.errs.fd < 0 {
		m.closeTaps(p)
	}
}

func (m *monitor) feedTaps(p *proc, s *stream, b []byte) {
	which := 0
	if s == &p.errs {
		which = 1
	}
	for _, t := range p.taps {
		if t.fd[which] < 0 {
			continue
		}
		if len(t.queue[which]) == 0 {
			n, err := unix.Write(t.fd[which], b)
			if err != nil && err != unix.EAGAIN && err != unix.EINTR {
				m.drop(&t.fd[which])
				continue
			}
			if n == len(b) {
				continue
			}
			t.since = time.Now()
			t.queue[which] = append(t.queue[which], b[max(n, 0):]...)
			m.watch(t.fd[which], unix.EPOLLOUT, func(uint32) { m.drainTap(p, t, which) })
		} else {
			t.queue[which] = append(t.queue[which], b...)
		}
		if len(t.queue[which]) >= tapLimit {
			if s.fd < 0 {
				t.queue[which] = nil
				m.drop(&t.fd[which])
			} else {
				m.rewatch(s.fd, 0) // pause until the client has taken some
				m.paused = true
			}
		}
	}
}

func (m *monitor) drainTap(p *proc, t *tap, which int) {
	n, err := unix.Write(t.fd[which], t.queue[which])
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil {
		t.queue[which] = nil
		m.drop(&t.fd[which])
	} else {
		t.queue[which] = t.queue[which][n:]
		t.since = time.Now()
		if len(t.queue[which]) == 0 {
			t.queue[which] = nil
			delete(m.fds, t.fd[which])
			unix.EpollCtl(m.ep, unix.EPOLL_CTL_DEL, t.fd[which], nil)
		}
	}
	for _, s := range []*stream{&p.out, &p.errs} {
		if s.fd >= 0 && len(t.queue[which]) < tapLimit {
			m.rewatch(s.fd, unix.EPOLLIN)
		}
	}
	if t.queue[which] == nil && p.out.fd < 0 && p.errs.fd < 0 {
		m.closeTaps(p)
	}
}

// closeTaps ends all clients of a process that writes no more, once they took all.
func (m *monitor) closeTaps(p *proc) {
	kept := p.taps[:0]
	for _, t := range p.taps {
		for i := range t.fd {
			if len(t.queue[i]) == 0 {
				m.drop(&t.fd[i])
			}
		}
		if t.fd[0] >= 0 || t.fd[1] >= 0 {
			kept = append(kept, t)
		}
	}
	p.taps = kept
}

// lastPatience bounds what an ending monitor waits for attached clients.
const lastPatience = 2 * time.Second

// lastWords gives attached clients what waits for them, before the monitor ends.
func (m *monitor) lastWords() {
	events := make([]unix.EpollEvent, 32)
	for end := time.Now().Add(lastPatience); time.Now().Before(end); {
		waits := false
		for _, p := range m.procs {
			for _, t := range p.taps {
				waits = waits || len(t.queue[0])+len(t.queue[1]) > 0
			}
		}
		if !waits {
			return
		}
		n, _ := unix.EpollWait(m.ep, events, 100)
		for _, e := range events[:max(n, 0)] {
			if f := m.fds[int(e.Fd)]; f != nil && int(e.Fd) != m.conn && e.Fd != listenFD {
				f(e.Events)
			}
		}
	}
}

// logFile is a container's log on disk. A write that fails is dropped: a full disk
// must not stop the container.
type logFile struct {
	fd   int
	path string
}

func (l *logFile) open(path string) error {
	l.fd, l.path = -1, path
	if path == "" {
		return nil
	}
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_APPEND|unix.O_WRONLY|unix.O_CLOEXEC, 0o640)
	if err == nil {
		l.fd = fd
	}
	return err
}

// reopen starts a new file at the same path, after the kubelet moved the old one.
func (l *logFile) reopen() error {
	if l.path == "" {
		return nil
	}
	old := l.fd
	if err := l.open(l.path); err != nil {
		l.fd = old
		return wrap("reopen log "+l.path, err)
	}
	if old >= 0 {
		unix.Close(old)
	}
	return nil
}

func (l *logFile) write(b []byte) {
	for len(b) > 0 && l.fd >= 0 {
		n, err := unix.Write(l.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		b = b[n:]
	}
}

func (l *logFile) close() {
	if l.fd > 0 {
		unix.Close(l.fd)
	}
	l.fd = -1
}

// dropStuck drops clients that kept a container waiting for too long; it runs once a
// second while a stream is paused.
func (m *monitor) dropStuck() {
	m.paused = false
	for _, p := range m.procs {
		for _, t := range p.taps {
			for i := range t.fd {
				if len(t.queue[i]) < tapLimit {
					continue
				}
				if time.Since(t.since) < tapPatience {
					m.paused = true
					continue
				}
				t.queue[i] = nil
				m.drop(&t.fd[i])
				for _, s := range []*stream{&p.out, &p.errs} {
					if s.fd >= 0 {
						m.rewatch(s.fd, unix.EPOLLIN)
					}
				}
			}
		}
	}
}

package audit

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skiff-project/skiff/api"
)

// Mode is how a sink takes events: "batch" queues them and drops what does not
// fit; "blocking" has each request wait; "blocking-strict" also refuses a
// request whose beginning cannot be recorded.
type Mode string

// Modes.
const (
	ModeBatch          Mode = "batch"
	ModeBlocking       Mode = "blocking"
	ModeBlockingStrict Mode = "blocking-strict"
)

// Modes there are.
func Modes() []Mode { return []Mode{ModeBatch, ModeBlocking, ModeBlockingStrict} }

// LogConfig is a log file; zero numbers mean no bound, as upstream's flags do.
type LogConfig struct {
	Path       string // "-": standard output
	Format     string // "json" (default) or "legacy"
	Mode       Mode   // default blocking
	Buffer     int    // events queued in mode batch; default 10,000
	MaxAgeDays int    // of files rotated away
	MaxBackups int    // how many of them
	MaxSizeMB  int    // of the file before it is rotated
	Compress   bool   // those rotated away, by gzip
	Truncate   *Truncate
}

// logFile writes a line for each event.
type logFile struct {
	conf  LogConfig
	lost  func(plugin string, n int, err error)
	out   io.WriteCloser
	queue *queue // mode batch
}

func newLog(c LogConfig, lost func(string, int, error)) (*logFile, error) {
	api.SetIfEmpty(&c.Mode, ModeBlocking)
	api.SetIfEmpty(&c.Format, "json")
	api.SetIfEmpty(&c.Buffer, 10_000)
	l := &logFile{conf: c, lost: lost, out: nopCloser{os.Stdout}}
	if c.Path != "-" {
		f, err := openRotated(c)
		if err != nil {
			return nil, fmt.Errorf("audit log: %w", err)
		}
		l.out = f
	}
	if c.Mode == ModeBatch {
		l.queue = newQueue(c.Buffer, 1, 0, 0, func(lines [][]byte) {
			if _, err := l.out.Write(lines[0]); err != nil {
				lost("log", 1, err)
			}
		})
	}
	return l, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func (l *logFile) name() string { return "log" }
func (l *logFile) strict() bool { return l.conf.Mode == ModeBlockingStrict }

func (l *logFile) put(e *Event, text []byte) error {
	line := append(slices.Clip(text), '\n')
	if l.conf.Format == "legacy" {
		line = []byte(e.legacy())
	}
	if l.queue != nil {
		return l.queue.put(line)
	}
	_, err := l.out.Write(line)
	return err
}

func (l *logFile) close() {
	if l.queue != nil {
		l.queue.close()
	}
	l.out.Close()
}

// queue hands what is put into it, in order and in batches, to one goroutine.
type queue struct {
	ch   chan []byte
	mu   sync.RWMutex // closed is not changed while someone puts
	shut bool
	done chan struct{}
}

// newQueue calls send with at most size items, or fewer once wait has passed (0: at once),
// whose bytes are at most those given (0: any) where there is more than one.
func newQueue(capacity, size int, bytes int64, wait time.Duration, send func([][]byte)) *queue {
	q := &queue{ch: make(chan []byte, capacity), done: make(chan struct{})}
	go func() {
		defer close(q.done)
		for item := range q.ch { // idle: it waits here, without a timer
			batch, sum := [][]byte{item}, int64(len(item))
			var timer <-chan time.Time
			if size > 1 {
				timer = time.After(wait)
			}
			for open := true; open && len(batch) < size; {
				select {
				case next, ok := <-q.ch:
					if open = ok; !ok {
						break
					}
					if sum += int64(len(next)); bytes > 0 && sum > bytes {
						send(batch)
						batch, sum = nil, int64(len(next))
					}
					batch = append(batch, next)
				case <-timer:
					open = false
				}
			}
			send(batch)
		}
	}()
	return q
}

var (
	errFull   = errors.New("audit buffer queue blocked")
	errClosed = errors.New("audit backend shut down")
)

func (q *queue) put(item []byte) error {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.shut {
		return errClosed
	}
	select {
	case q.ch <- item:
		return nil
	default:
		return errFull
	}
}

// close waits until everything queued is sent.
func (q *queue) close() {
	q.mu.Lock()
	if !q.shut {
		q.shut = true
		close(q.ch)
	}
	q.mu.Unlock()
	<-q.done
}

// rotated is a file that is renamed away, with the time in its name, when it
// has grown to its bound: audit.log becomes audit-2026-01-02T15-04-05.000.log.
type rotated struct {
	conf LogConfig
	mu   sync.Mutex
	file *os.File
	size int64
	wg   sync.WaitGroup // of compressing
}

func openRotated(c LogConfig) (*rotated, error) {
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, err
	}
	r := &rotated{conf: c}
	return r, r.open()
}

func (r *rotated) open() error {
	f, err := os.OpenFile(r.conf.Path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	r.file, r.size = f, info.Size()
	return nil
}

// Write implements io.Writer: p is one line.
func (r *rotated) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil { // it could not be opened again
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	if limit := int64(r.conf.MaxSizeMB) << 20; limit > 0 && r.size > 0 && r.size+int64(len(p)) > limit {
		if err := r.rotate(time.Now()); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

const rotatedTime = "2006-01-02T15-04-05.000"

func (r *rotated) rotate(now time.Time) error {
	r.file.Close()
	r.file = nil
	ext := filepath.Ext(r.conf.Path)
	old := strings.TrimSuffix(r.conf.Path, ext) + "-" + now.UTC().Format(rotatedTime) + ext
	if err := os.Rename(r.conf.Path, old); err != nil {
		return err
	}
	r.wg.Wait() // compressing the last one, which is long over
	r.wg.Go(func() {
		if r.conf.Compress {
			compress(old) //nolint:errcheck // what is not compressed is still there
		}
		r.prune(now)
	})
	return r.open()
}

// prune removes files rotated away that are too old or too many.
func (r *rotated) prune(now time.Time) {
	ext := filepath.Ext(r.conf.Path)
	base := strings.TrimSuffix(filepath.Base(r.conf.Path), ext) + "-"
	entries, err := os.ReadDir(filepath.Dir(r.conf.Path))
	if err != nil {
		return
	}
	kept := 0
	for _, e := range slices.Backward(entries) { // by name, and so by time: the newest first
		stamp, ok := strings.CutPrefix(e.Name(), base)
		stamp = strings.TrimSuffix(strings.TrimSuffix(stamp, ".gz"), ext)
		at, err := time.Parse(rotatedTime, stamp)
		if !ok || err != nil {
			continue
		}
		kept++
		tooOld := r.conf.MaxAgeDays > 0 && now.Sub(at) > time.Duration(r.conf.MaxAgeDays)*24*time.Hour
		if tooOld || r.conf.MaxBackups > 0 && kept > r.conf.MaxBackups {
			os.Remove(filepath.Join(filepath.Dir(r.conf.Path), e.Name())) //nolint:errcheck // tried again at the next rotation
		}
	}
}

func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path+".gz", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Close()); err != nil {
		os.Remove(path + ".gz")
		return err
	}
	return os.Remove(path)
}

// Close implements io.Closer.
func (r *rotated) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wg.Wait()
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

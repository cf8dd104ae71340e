// Package logs reads, follows and rotates container logs in the CRI format: one line per entry,
// "<RFC3339Nano time> <stdout|stderr> <P|F> <text>", where P marks a part whose line goes on in
// the next entry.
package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Options select and shape what is read.
type Options struct {
	Follow     bool
	Since      time.Time // zero: all
	Tail       *int64    // last so many lines; nil: all
	LimitBytes *int64
	Timestamps bool
	Stream     string // "stdout" or "stderr" alone; "" both
}

// maxEntry bounds one entry (the runtime splits at 16 KiB).
const maxEntry = 1 << 20

type entry struct {
	when    time.Time
	stamp   []byte
	stream  string
	partial bool
	text    []byte // with its newline unless partial
}

// parse splits one line of a log file (without its newline).
func parse(line []byte) (entry, error) {
	var e entry
	f := bytes.SplitN(line, []byte{' '}, 4)
	if len(f) < 3 {
		return e, fmt.Errorf("log line %q is not in the CRI format", line[:min(len(line), 40)])
	}
	when, err := time.Parse(time.RFC3339Nano, string(f[0]))
	if err != nil {
		return e, fmt.Errorf("log line has a bad time: %w", err)
	}
	e.when, e.stamp, e.stream = when, f[0], string(f[1])
	if e.stream != "stdout" && e.stream != "stderr" {
		return e, fmt.Errorf("log line has an unknown stream %q", e.stream)
	}
	e.partial = bytes.HasPrefix(f[2], []byte("P"))
	if len(f) == 4 {
		e.text = append(e.text, f[3]...)
	}
	if !e.partial {
		e.text = append(e.text, '\n')
	}
	return e, nil
}

var errLimit = errors.New("byte limit reached")

type writer struct {
	o              Options
	stdout, stderr io.Writer
	left           int64 // -1: no limit
	inLine         map[string]bool
}

func (w *writer) write(e entry) error {
	if w.o.Stream != "" && w.o.Stream != e.stream || e.when.Before(w.o.Since) {
		return nil
	}
	out := w.stdout
	if e.stream == "stderr" {
		out = w.stderr
	}
	text := e.text
	if w.o.Timestamps && !w.inLine[e.stream] {
		text = append(append(append([]byte(nil), e.stamp...), ' '), text...)
	}
	w.inLine[e.stream] = e.partial
	if w.left >= 0 && int64(len(text)) > w.left {
		text = text[:w.left]
	}
	_, err := out.Write(text)
	if w.left >= 0 {
		if w.left -= int64(len(text)); w.left == 0 && err == nil {
			return errLimit
		}
	}
	return err
}

// Alive says whether the container still runs; Read stops following when it does not.
type Alive func() bool

// Read copies a container's log file to stdout and stderr. When following it waits for more, across
// rotations, until ctx ends or the container is down and everything is read.
func Read(ctx context.Context, path string, o Options, alive Alive, stdout, stderr io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open log file %q: %w", path, err)
	}
	defer func() { f.Close() }()
	if o.Tail != nil {
		at, err := tailStart(f, *o.Tail, o.Stream)
		if err != nil {
			return fmt.Errorf("find the tail of log file %q: %w", path, err)
		}
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	w := &writer{o: o, stdout: stdout, stderr: stderr, left: -1, inLine: map[string]bool{}}
	if o.LimitBytes != nil {
		if w.left = *o.LimitBytes; w.left == 0 {
			return nil
		}
	}
	err = w.run(ctx, path, &f, alive)
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

func (w *writer) run(ctx context.Context, path string, f **os.File, alive Alive) error {
	r := bufio.NewReaderSize(*f, 64<<10)
	var held []byte
	watch := newWatch(path, w.o.Follow)
	defer watch.close()
	for {
		running := w.o.Follow && alive() // asked before reading: what it wrote before dying is read
		chunk, err := r.ReadBytes('\n')
		held = append(held, chunk...)
		if err == nil {
			e, perr := parse(bytes.TrimSuffix(held, []byte{'\n'}))
			held = held[:0]
			if perr != nil {
				continue
			}
			if werr := w.write(e); werr != nil {
				return werr
			}
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if len(held) > maxEntry {
			held = held[:0]
		}
		if !w.o.Follow {
			return nil
		}
		if next := rotated(*f, path); next != nil {
			(*f).Close()
			*f, held = next, nil
			r.Reset(next)
			continue
		}
		if !running {
			return nil
		}
		if err := watch.wait(ctx); err != nil {
			return nil // the client went away
		}
	}
}

// rotated returns the new file if path no longer names the open one.
func rotated(f *os.File, path string) *os.File {
	have, err := f.Stat()
	if err != nil {
		return nil
	}
	now, err := os.Stat(path)
	if err != nil || os.SameFile(have, now) {
		return nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil
	}
	return next
}

// tailStart finds the offset at which the last n lines begin, reading backwards in blocks. A line
// is what ends in an entry marked F; with a stream set only that stream's lines count.
func tailStart(f *os.File, n int64, stream string) (int64, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || n <= 0 {
		return size, err
	}
	const block = 32 << 10
	var tail []byte
	end := size
	for end > 0 {
		begin := max(0, end-block)
		buf := make([]byte, end-begin)
		if _, err := f.ReadAt(buf, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		tail = append(buf, tail...)
		end = begin
		if at, ok := lastLines(tail, n, stream, begin == 0); ok {
			return begin + at, nil
		}
		if len(tail) > 64<<20 {
			return begin, nil // bound: more than this is not kept in memory
		}
	}
	return 0, nil
}

func lastLines(b []byte, n int64, stream string, whole bool) (int64, bool) {
	end := len(b)
	var seen int64
	start := len(b)
	for end > 0 {
		i := bytes.LastIndexByte(b[:end-1], '\n') + 1
		if i == 0 && !whole {
			return 0, false // the first line may be cut
		}
		e, err := parse(bytes.TrimSuffix(b[i:end], []byte{'\n'}))
		if err == nil && (stream == "" || e.stream == stream) {
			if !e.partial || end == len(b) {
				if seen == n {
					return int64(start), true
				}
				seen++
			}
			start = i
		}
		end = i
	}
	return int64(start), true
}

// LastLines returns the text of the last lines of a log, at most limit bytes of it.
func LastLines(path string, lines, limit int64) (string, error) {
	var out bytes.Buffer
	err := Read(context.Background(), path, Options{Tail: &lines}, func() bool { return false }, &out, &out)
	b := out.Bytes()
	if int64(len(b)) > limit {
		b = b[int64(len(b))-limit:]
	}
	return string(b), err
}

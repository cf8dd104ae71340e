package cluster

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"k8s.io/klog/v2"
)

// maxLogBytes is when a component's log is moved aside; one older file is kept.
const maxLogBytes = 10 << 20

// logFile is an append-only log that moves itself aside when it is full.
type logFile struct {
	mu   sync.Mutex
	path string
	file *os.File
	size int64
}

func openLog(path string) (*logFile, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Write appends one record; a record is never split over two files.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(p)) > maxLogBytes {
		l.file.Close()
		if err := os.Rename(l.path, l.path+".1"); err != nil && !os.IsNotExist(err) {
			return 0, err
		}
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

// logs hands each component its own log file below one folder.
type logs struct {
	dir   string
	level slog.Level
	// all, if set, takes every component's log instead of files.
	all   *slog.Logger
	mu    sync.Mutex
	files []*logFile
}

// logger opens <dir>/<component>.log.
func (l *logs) logger(component string) (*slog.Logger, error) {
	if l.all != nil {
		return l.all.With("component", component), nil
	}
	f, err := openLog(filepath.Join(l.dir, component+".log"))
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.files = append(l.files, f)
	l.mu.Unlock()
	log := slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: l.level}))
	log.Info("starting", "component", component, "version", gitVersion(), "pid", os.Getpid())
	return log, nil
}

// routeKlog sends what client-go and its kin log to log. A peer that hangs up
// a stream is the usual end of an exec; they call it an error.
func routeKlog(log *slog.Logger) {
	klog.SetSlogLogger(slog.New(dropped{log.Handler(), "Error on socket receive"}))
}

// dropped is a handler without the records of one message.
type dropped struct {
	slog.Handler
	message string
}

func (d dropped) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == d.message {
		return nil
	}
	return d.Handler.Handle(ctx, r)
}

func (d dropped) WithAttrs(attrs []slog.Attr) slog.Handler {
	return dropped{d.Handler.WithAttrs(attrs), d.message}
}

func (d dropped) WithGroup(name string) slog.Handler {
	return dropped{d.Handler.WithGroup(name), d.message}
}

func (l *logs) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.files {
		f.Close()
	}
	l.files = nil
}

package server

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/skiff-project/skiff/kubelet/logs"
)

// ports reads the ports of a websocket port-forward.
func ports(r *http.Request) ([]int32, error) {
	var out []int32
	q := r.URL.Query()
	for _, list := range [][]string{q["port"], q["ports"]} {
		for _, s := range list {
			n, err := strconv.ParseUint(s, 10, 16)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("unable to parse %q as a port", s)
			}
			out = append(out, int32(n))
		}
	}
	return out, nil
}

// logOptions reads a log request's query.
func logOptions(q url.Values, now time.Time) (o logs.Options, previous bool, err error) {
	boolean := func(name string) bool {
		b, perr := strconv.ParseBool(q.Get(name))
		if perr != nil && q.Get(name) != "" {
			err = fmt.Errorf("bad value %q of %s", q.Get(name), name)
		}
		return b
	}
	number := func(name string, least int64) *int64 {
		s := q.Get(name)
		if s == "" {
			return nil
		}
		n, perr := strconv.ParseInt(s, 10, 64)
		if perr != nil || n < least {
			err = fmt.Errorf("bad value %q of %s", s, name)
			return nil
		}
		return &n
	}
	o.Follow, o.Timestamps, previous = boolean("follow"), boolean("timestamps"), boolean("previous")
	o.Tail, o.LimitBytes = number("tailLines", 0), number("limitBytes", 1)
	if t := q.Get("tail"); t != "" && t != "all" {
		q.Set("tailLines", t)
		o.Tail = number("tailLines", 0)
	}
	if s := number("sinceSeconds", 1); s != nil {
		o.Since = now.Add(-time.Duration(*s) * time.Second)
	}
	if t := q.Get("sinceTime"); t != "" {
		when, perr := time.Parse(time.RFC3339Nano, t)
		if perr != nil {
			err = fmt.Errorf("bad value %q of sinceTime", t)
		}
		o.Since = when
	}
	switch q.Get("stream") {
	case "", "All":
	case "Stdout":
		o.Stream = "stdout"
	case "Stderr":
		o.Stream = "stderr"
	default:
		err = fmt.Errorf("invalid stream type %q", q.Get("stream"))
	}
	return o, previous, err
}

// flusher sends every write on its way at once.
type flusher struct {
	w io.Writer
	f http.Flusher
}

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if f.f != nil {
		f.f.Flush()
	}
	return n, err
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	o, previous, err := logOptions(r.URL.Query(), s.cfg.Clock.Now())
	if err != nil {
		fail(w, &Error{http.StatusUnprocessableEntity, fmt.Errorf(`{"message": "Invalid request: %w."}`, err)})
		return
	}
	path, alive, err := s.cfg.Backend.LogFile(r.PathValue("ns"), r.PathValue("pod"), r.PathValue("container"), previous)
	if err != nil {
		fail(w, err)
		return
	}
	out := flusher{w: w}
	w.Header().Set("Content-Type", "text/plain")
	if o.Follow {
		out.f, _ = w.(http.Flusher)
		w.WriteHeader(http.StatusOK)
		if out.f != nil {
			out.f.Flush() // the client is let in before the first line
		}
	}
	if err := logs.Read(r.Context(), path, o, alive, out, out); err != nil {
		fail(w, &Error{http.StatusBadRequest, fmt.Errorf("failed to try resolving symlinks in path %q: %w", path, err)})
	}
}

// nodeLogs serves the node's log files to who may see nodes/log. Links that lead out of the folder
// lead nowhere: pods may be able to place some in it.
func (s *Server) nodeLogs(w http.ResponseWriter, r *http.Request) {
	root, err := os.OpenRoot(s.cfg.LogDir)
	if err != nil {
		http.Error(w, "the node's logs: "+err.Error(), http.StatusInternalServerError)
		return
	}
	defer root.Close()
	http.StripPrefix("/logs/", http.FileServerFS(root.FS())).ServeHTTP(w, r)
}

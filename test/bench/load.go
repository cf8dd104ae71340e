//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
)

// load is work to be done by many at the same time: a number of operations,
// or as many as a span of time allows.
type load struct {
	workers int
	count   int
	span    time.Duration
}

// do runs op(worker, i), i counting all operations, and returns how many were
// done in which time.
func (l load) do(ctx context.Context, op func(ctx context.Context, worker, i int) error) (int, time.Duration, error) {
	var next, done atomic.Int64
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for w := range l.workers {
		group.Go(func() error {
			for ctx.Err() == nil && (l.span == 0 || time.Since(began) < l.span) {
				i := int(next.Add(1) - 1)
				if l.count > 0 && i >= l.count {
					return nil
				}
				if err := op(ctx, w, i); err != nil {
					return err
				}
				done.Add(1)
			}
			return ctx.Err()
		})
	}
	err := group.Wait()
	return int(done.Load()), time.Since(began), err
}

// measure does a load and gives two figures: what the servers ran for per
// operation, and the operations per second.
func (r *round) measure(ctx context.Context, name string, l load, op func(ctx context.Context, worker, i int) error) error {
	list := r.servers()
	before := running(list)
	profiled := r.profile(ctx, name)
	latencies := func() []time.Duration { return nil }
	if r.Kubeconfig != "" {
		op, latencies = timed(l.workers, op)
	}
	n, took, err := l.do(ctx, op)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := profiled(); err != nil {
		return fmt.Errorf("profile of %s: %w", name, err)
	}
	r.perOperation(name, running(list)-before, n, took)
	if all := latencies(); len(all) > 0 {
		r.duration(name+": latency, median", quantile(all, 0.5))
		r.duration(name+": latency, 99th of 100", quantile(all, 0.99))
	}
	return nil
}

// profile takes profiles of the first two seconds from now; its answer waits for them.
func (r *round) profile(ctx context.Context, name string) func() error {
	if r.Profiles == "" {
		return func() error { return nil }
	}
	take := func(path, end string) error {
		data, err := r.have.client.RESTClient().Get().RequestURI("/debug/pprof/" + path).DoRaw(ctx)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(r.Profiles, strings.NewReplacer(" ", "-", ",", "", ":", "").Replace(name)+end), data, 0o644)
	}
	done := make(chan error, 1)
	go func() { done <- take("profile?seconds=2", ".cpu.pb.gz") }()
	return func() error { return errors.Join(<-done, take("heap", ".heap.pb.gz")) }
}

func (r *round) perOperation(name string, cpu time.Duration, n int, took time.Duration) {
	if len(r.servers()) > 0 {
		r.figure(name+": server CPU", "µs", float64(cpu.Nanoseconds())/1000/float64(n))
	}
	r.figure(name+": rate", "/s", float64(n)/took.Seconds())
}

// wire is a bare HTTP/2 connection to an API server: no encoding or decoding,
// so that the client costs little beside the server.
type wire struct {
	http *http.Client
	base string
	done func() // closes what is idle
}

// dial opens connections of their own.
func (c *cluster) dial(n int) ([]*wire, error) {
	tls, err := rest.TLSConfigFor(c.config)
	if err != nil {
		return nil, err
	}
	wires := make([]*wire, n)
	for i := range wires {
		t := utilnet.SetTransportDefaults(&http.Transport{TLSClientConfig: tls.Clone(), DisableCompression: true, Proxy: c.config.Proxy})
		wires[i] = &wire{&http.Client{Transport: t}, c.config.Host, t.CloseIdleConnections}
		if c.space != "" { // whose file may have tokens and addresses of any form
			base, _, err := rest.DefaultServerUrlFor(c.config)
			if err != nil {
				return nil, err
			}
			wires[i].base = strings.TrimSuffix(base.String(), "/")
			if wires[i].http.Transport, err = rest.HTTPWrappersForConfig(c.config, t); err != nil {
				return nil, err
			}
		}
	}
	return wires, nil
}

func hangUp(wires []*wire) {
	for _, w := range wires {
		w.done()
	}
}

// open sends a request and returns its answer's body, which is good.
func (w *wire) open(ctx context.Context, method, path, accept, content string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	if body != nil {
		req.Header.Set("Content-Type", content)
	}
	resp, err := w.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 2048))
		return nil, fmt.Errorf("%s %s: %s: %q", method, path, resp.Status, text)
	}
	return resp.Body, nil
}

// do sends a request and throws its answer away.
func (w *wire) do(ctx context.Context, method, path, accept, content string, body []byte) error {
	answer, err := w.open(ctx, method, path, accept, content, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	_, err = io.Copy(io.Discard, answer)
	return err
}

// quantile is that of a list, which it sorts; 0 of none.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(len(list)-1, int(q*float64(len(list))))]
}

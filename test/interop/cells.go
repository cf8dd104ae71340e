package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skiff-project/skiff/test/reference"
)

// cell is one cluster and what it goes through.
type cell struct {
	name    string
	options reference.Options
	kubectl []string // the client: a program and its first arguments
	script  []step
}

// side is one project's programs.
type side struct {
	program func(name string) reference.Program
	runtime reference.Program
	kubectl []string
}

func (p parts) sides() (skiff, upstream side) {
	skiff = side{
		program: func(name string) reference.Program { return reference.Skiff(p.skiff, name) },
		runtime: reference.Skiff(p.skiff, "runtime"),
		kubectl: []string{p.skiff, "kubectl"},
	}
	upstream = side{
		program: p.upstream.Program,
		runtime: reference.Containerd(),
		kubectl: []string{p.upstream.Path("kubectl")},
	}
	return skiff, upstream
}

// whole is a cluster of one side with a real node, or with simulated ones.
func (p parts) whole(s side, real bool) reference.Options {
	o := reference.Options{
		Etcd: s.program("etcd"), APIServer: s.program("kube-apiserver"),
		ControllerManager: s.program("kube-controller-manager"), Scheduler: s.program("kube-scheduler"),
	}
	if real {
		o.Kubelet, o.Runtime, o.Proxy, o.Images = s.program("kubelet"), s.runtime, s.program("kube-proxy"), []string{p.images}
	} else {
		o.Hollow, o.HollowNodes = reference.Skiff(p.skiff, "sim"), 3
	}
	return o
}

// swaps lists the components with how one is exchanged, and whether that
// wants real pods.
var swaps = []struct {
	name string
	real bool
	swap func(o *reference.Options, s side)
}{
	{"etcd", true, func(o *reference.Options, s side) { o.Etcd = s.program("etcd") }},
	{"kube-apiserver", true, func(o *reference.Options, s side) { o.APIServer = s.program("kube-apiserver") }},
	{"kube-controller-manager", false, func(o *reference.Options, s side) { o.ControllerManager = s.program("kube-controller-manager") }},
	{"kube-scheduler", false, func(o *reference.Options, s side) { o.Scheduler = s.program("kube-scheduler") }},
	{"kubelet", true, func(o *reference.Options, s side) { o.Kubelet = s.program("kubelet") }},
	{"runtime", true, func(o *reference.Options, s side) { o.Runtime = s.runtime }},
	{"kube-proxy", true, func(o *reference.Options, s side) { o.Proxy = s.program("kube-proxy") }},
}

// cells are all mixtures, in the order they are run.
func cells(p parts) []cell {
	skiff, upstream := p.sides()
	list := []cell{{name: "upstream alone", options: p.whole(upstream, true), kubectl: upstream.kubectl, script: acceptance}}
	for _, s := range swaps {
		o := p.whole(upstream, s.real)
		s.swap(&o, skiff)
		list = append(list, cell{name: "upstream with Skiff's " + s.name, options: o, kubectl: upstream.kubectl, script: acceptance})
	}
	list = append(list, cell{name: "Skiff alone", options: p.whole(skiff, true), kubectl: skiff.kubectl, script: acceptance})
	for _, s := range swaps {
		o := p.whole(skiff, s.real)
		s.swap(&o, upstream)
		list = append(list, cell{name: "Skiff with upstream's " + s.name, options: o, kubectl: skiff.kubectl, script: acceptance})
	}
	short := upstream.program("kube-apiserver")
	short.Args = []string{"--event-ttl=20s"}
	return append(list,
		cell{name: "upstream's kube-apiserver on skiff etcd, in depth", kubectl: upstream.kubectl, script: store,
			options: reference.Options{Etcd: skiff.program("etcd"), APIServer: short}},
		cell{name: "data of upstream's kube-apiserver, served by Skiff's", kubectl: skiff.kubectl, script: moving(skiff, upstream),
			options: reference.Options{Etcd: upstream.program("etcd"), APIServer: upstream.program("kube-apiserver")}},
		cell{name: "data of Skiff's kube-apiserver, served by upstream's", kubectl: upstream.kubectl, script: moving(upstream, skiff),
			options: reference.Options{Etcd: upstream.program("etcd"), APIServer: skiff.program("kube-apiserver")}},
	)
}

// step is a part of a script: run is bounded by within.
type step struct {
	name   string
	needs  string // a step that must have passed
	real   bool   // only where pods are real
	within time.Duration
	run    func(context.Context, *session) error
}

// session is a running cell.
type session struct {
	cell
	p       parts
	cluster *reference.Cluster
	memory  map[string]string // what steps leave for later ones
}

// outcome is how a step went.
type outcome struct {
	step string
	took time.Duration
	err  error
}

// result is how a cell went.
type result struct {
	cell     string
	outcomes []outcome
	took     time.Duration
}

// errors are those of its steps; the first is the one to look at.
func (r result) errors() []error {
	var list []error
	for _, o := range r.outcomes {
		if o.err != nil {
			list = append(list, fmt.Errorf("%s: %w", o.step, o.err))
		}
	}
	return list
}

func (r result) failed() bool { return len(r.errors()) > 0 }

func (r result) String() string {
	verdict := "pass"
	if r.failed() {
		verdict = "FAIL"
	}
	return strings.TrimSpace(fmt.Sprintf("%s  %-52s %4.0f s  %s", verdict, r.cell, r.took.Seconds(), clip(errors.Join(r.errors()...))))
}

// run starts the cell's cluster, takes it through the script, and removes it.
// A step that fails does not keep those from running that do not need it.
func (c cell) run(ctx context.Context, p parts, logs string) (r result) {
	began := time.Now()
	r.cell = c.name
	defer func() { r.took = time.Since(began) }()
	dir, err := os.MkdirTemp("/tmp", "skio")
	if err != nil {
		r.outcomes = append(r.outcomes, outcome{"start", 0, err})
		return r
	}
	defer os.RemoveAll(dir)
	c.options.Dir = dir
	cluster, err := reference.Start(ctx, c.options)
	r.outcomes = append(r.outcomes, outcome{"start", time.Since(began), err})
	if err == nil {
		s := &session{cell: c, p: p, cluster: cluster, memory: map[string]string{}}
		s.play(ctx, &r)
		if err := cluster.Stop(); err != nil {
			r.outcomes = append(r.outcomes, outcome{"stop", 0, err})
		}
	}
	if r.failed() {
		keepLogs(filepath.Join(dir, "log"), filepath.Join(logs, strings.NewReplacer(" ", "-", "'", "", ",", "").Replace(c.name)))
	}
	return r
}

func (s *session) play(ctx context.Context, r *result) {
	passed := map[string]bool{"": true}
	for _, st := range s.script {
		if !passed[st.needs] || st.real && s.options.Kubelet.Path == "" {
			continue
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(ctx, st.within)
		err := st.run(ctx, s)
		cancel()
		passed[st.name] = err == nil
		r.outcomes = append(r.outcomes, outcome{st.name, time.Since(began), err})
	}
}

// keepLogs copies a failing cell's logs to where they stay.
func keepLogs(from, to string) {
	os.RemoveAll(to)
	err := os.CopyFS(to, os.DirFS(from))
	if err != nil {
		fmt.Fprintln(os.Stderr, "keep logs:", err)
	}
}

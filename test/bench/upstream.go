//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/skiff-project/skiff/test/reference"
)

// tools are upstream's programs, built.
type tools struct {
	Dir    string
	Images string // archive of the image that pods are of
}

func (t tools) path(name string) string { return filepath.Join(t.Dir, name) }

// all are the programs of a node with its control plane.
func (t tools) all() []string {
	var list []string
	for name := range strings.FieldsSeq("etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl") {
		list = append(list, t.path(name))
	}
	for name := range strings.FieldsSeq("containerd containerd-shim-runc-v2 runc") {
		if path, err := exec.LookPath(name); err == nil { // buildTools has seen to it
			list = append(list, path)
		}
	}
	return list
}

// buildTools builds and installs what is missing, and packs the image.
func buildTools(ctx context.Context, skiff string) (tools, error) {
	b, err := reference.Build(ctx, reference.BuildOptions{Out: os.Stderr})
	if err != nil {
		return tools{}, err
	}
	t := tools{Dir: b.Dir, Images: filepath.Join(b.Dir, "bench-images.tar")}
	return t, errors.Join(reference.Install(ctx), reference.Images(ctx, b, skiff, t.Images))
}

// crowdAbout says what upstream gets that a cluster of a few nodes needs not.
const crowdAbout = "Upstream has what its operators give it for thousands of nodes: no client limits in the scheduler and the controller manager (--kube-api-qps and " +
	"--kube-api-burst of 10,000), 3,000 requests in flight and 1,000 that change something, 8 GiB for etcd; Skiff has its defaults."

// startUpstream runs upstream's components.
func (r *round) startUpstream(ctx context.Context, p parts) (*cluster, error) {
	if p.fresh {
		if err := errors.Join(os.RemoveAll(filepath.Join(p.dir, "etcd")), os.RemoveAll(filepath.Join(p.dir, "host"))); err != nil {
			return nil, err
		}
	}
	b := reference.Binaries{Dir: r.Tools.Dir}
	o := reference.Options{
		Etcd: b.Program("etcd"), APIServer: b.Program("kube-apiserver"),
		ControllerManager: b.Program("kube-controller-manager"), Scheduler: b.Program("kube-scheduler"), Dir: p.dir,
	}
	if p.crowd {
		lifted := []string{"--kube-api-qps=10000", "--kube-api-burst=10000"}
		o.Etcd.Args = []string{"--quota-backend-bytes=8589934592"}
		o.APIServer.Args = []string{"--max-requests-inflight=3000", "--max-mutating-requests-inflight=1000"}
		o.Scheduler.Args = lifted
		o.ControllerManager.Args = append(lifted[:2:2], "--cluster-cidr="+crowdRange)
	}
	if p.node {
		o.Kubelet, o.Runtime, o.Proxy = b.Program("kubelet"), reference.Containerd(), b.Program("kube-proxy")
		if _, err := os.Stat(filepath.Join(p.dir, "containerd")); err != nil { // a folder that was used has them
			o.Images = []string{r.Tools.Images}
		}
	}
	c := &cluster{image: reference.SkiffImage}
	progress, w := io.Pipe()
	told := make(chan struct{})
	node := make(chan error, 1)
	go func() {
		defer close(told)
		c.follow(progress, func() {
			if !p.node {
				node <- nil
				return
			}
			go func() { node <- c.timeNode(ctx, filepath.Join(p.dir, "conf", "admin.conf")) }()
		})
	}()
	o.Out = w
	began, err := reference.Start(ctx, o)
	w.Close()
	<-told
	if err != nil {
		return nil, err
	}
	c.stop = began.Stop
	if err = <-node; err == nil {
		err = c.connect(began.Kubeconfig)
	}
	if err == nil {
		err = within(ctx, time.Minute, "the default account", c.accountReady)
	}
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// follow takes the times of a start from what it says, "NAME is ready after N
// ms", and calls up when the API is.
func (c *cluster) follow(progress io.Reader, up func()) {
	sc := bufio.NewScanner(progress)
	for sc.Scan() {
		var name string
		var ms int
		if n, _ := fmt.Sscanf(sc.Text(), "%s is ready after %d ms", &name, &ms); n < 2 {
			continue
		}
		switch name {
		case "etcd":
			c.began = time.Now().Add(-time.Duration(ms) * time.Millisecond)
		case "kube-apiserver":
			c.api = time.Since(c.began)
			up()
		}
	}
}

// timeNode waits until the node is Ready, while the start of what comes after
// the kubelet goes on.
func (c *cluster) timeNode(ctx context.Context, kubeconfig string) error {
	early := &cluster{began: c.began}
	if err := early.connect(kubeconfig); err != nil {
		return err
	}
	err := within(ctx, 2*time.Minute, "upstream's node", early.nodeReady)
	c.ready = time.Since(c.began)
	return err
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// crowdRange has room for the pods of 65,536 nodes; nothing of it leaves the
// worker's namespace.
const crowdRange = "128.0.0.0/8"

// startSkiff runs `skiff up`, which always has a node.
func (r *round) startSkiff(ctx context.Context, p parts) (*cluster, error) {
	dir := filepath.Join(p.dir, "skiff") // p.dir may be a mount and stays
	c := &cluster{}
	if p.fresh {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	log := filepath.Join(r.Dir, "skiff.log")
	args := []string{"up", "--merge-kubeconfig=false", "--data-dir", dir}
	if p.crowd {
		args = append(args, "--pod-cidr", crowdRange)
	}
	if r.Profiles != "" {
		args = append(args, "--profiling")
	}
	cmd, exited, err := spawn(log, r.Skiff, args...)
	if err != nil {
		return nil, err
	}
	c.began = time.Now()
	c.stop = func() error {
		// The process first: what `down` says then is about the pods alone.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		err := <-exited
		out, down := exec.Command(r.Skiff, "down", "--data-dir", dir).CombinedOutput()
		if down != nil {
			down = fmt.Errorf("skiff down: %w\n%s", down, out)
		}
		return errors.Join(err, down)
	}
	alive := func(do func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case err := <-exited:
				exited <- err
				return stop{fmt.Errorf("skiff ended: %v\n%s", err, tail(log))}
			default:
				return do(ctx)
			}
		}
	}
	err = within(ctx, time.Minute, "Skiff's API", alive(func(ctx context.Context) error {
		if c.client == nil {
			if err := c.connect(filepath.Join(dir, "admin.conf")); err != nil {
				return err
			}
		}
		return c.apiReady(ctx)
	}))
	c.api = time.Since(c.began)
	if err == nil {
		err = within(ctx, time.Minute, "Skiff's node", alive(c.nodeReady))
		c.ready = time.Since(c.began)
	}
	if err == nil {
		err = within(ctx, time.Minute, "the default account", c.accountReady)
	}
	if err == nil {
		c.image, err = c.ownImage(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// ownImage is the image of Skiff's control plane pods, which is on its nodes.
func (c *cluster) ownImage(ctx context.Context) (image string, err error) {
	return image, within(ctx, time.Minute, "the control plane's pods", func(ctx context.Context) error {
		pods, err := c.client.CoreV1().Pods(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: "tier=control-plane"})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return errors.New("none yet")
		}
		image = pods.Items[0].Spec.Containers[0].Image
		return nil
	})
}

// spawn starts a program with its output in a file. Its end, once, is sent;
// one that was asked for by a signal is no error.
func spawn(log, program string, args ...string) (*exec.Cmd, chan error, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	exited := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGTERM {
			err = nil
		}
		exited <- err
	}()
	return cmd, exited, nil
}

// tail is the end of a log.
func tail(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

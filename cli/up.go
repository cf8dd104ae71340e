package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/cli/box"
	"github.com/skiff-project/skiff/cluster"
)

// contextName is what a local cluster is called in the user's kubeconfig.
const contextName = "skiff"

// upFlags are the flags of `skiff up`.
type upFlags struct {
	opts       cluster.Options
	detach     bool
	progressFD int
	timeout    time.Duration
	nodeIP     string
	podCIDR    string
	svcCIDR    string
	kubeconfig bool
	profiling  bool
	apiArgs    []string
}

// newUp is `skiff up`.
func newUp() *cobra.Command {
	f := &upFlags{opts: cluster.Options{Applets: box.Names()}}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start or resume a cluster on this machine and wait until it is Ready",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.parse(); err != nil {
				return err
			}
			switch {
			case f.progressFD > 0:
				return f.detached(cmd.Context(), cluster.Up)
			case f.detach:
				return f.spawn()
			}
			return f.foreground(cmd.Context())
		},
	}
	fs := cmd.Flags()
	dataDirFlag(cmd, &f.opts.DataDir)
	fs.BoolVarP(&f.detach, "detach", "d", false, "return once the cluster is Ready; it goes on in the background")
	fs.IntVar(&f.opts.Nodes, "nodes", 0, "how many nodes; further ones each live in a network namespace of this machine (default 1)")
	fs.StringVar(&f.opts.NodeName, "node-name", "", "name of this node (default: the host name)")
	fs.StringVar(&f.nodeIP, "node-ip", "", "address of this node (default: that of the default route's interface)")
	fs.IntVar(&f.opts.APIPort, "api-port", 0, "port of the API server (default 6443)")
	fs.IntVar(&f.opts.KubeletPort, "kubelet-port", 0, "port of the kubelet (default 10250)")
	fs.IntVar(&f.opts.EtcdPort, "etcd-port", 0, "loopback port of etcd's API (default 2379)")
	fs.StringArrayVar(&f.apiArgs, "kube-apiserver-arg", nil, "flag of kube-apiserver without its dashes, as audit-policy-file=FILE; may be given more than once")
	fs.BoolVar(&f.profiling, "profiling", false, "serve Go's profiles of this process at /debug/pprof/ of the API server")
	fs.StringVar(&f.podCIDR, "pod-cidr", "", "address range of pods (default 10.244.0.0/16)")
	fs.StringVar(&f.svcCIDR, "service-cidr", "", "address range of Services (default 10.96.0.0/12)")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for all nodes to be Ready")
	fs.BoolVar(&f.kubeconfig, "merge-kubeconfig", true, "add context \""+contextName+"\" to the user's kubeconfig")
	fs.IntVar(&f.progressFD, "progress-fd", 0, "write progress as JSON lines to this file descriptor")
	_ = fs.MarkHidden("progress-fd")
	return cmd
}

func (f *upFlags) parse() error {
	for _, p := range []struct {
		text, flag string
		dst        *netip.Prefix
	}{{f.podCIDR, "--pod-cidr", &f.opts.PodCIDR}, {f.svcCIDR, "--service-cidr", &f.opts.ServiceCIDR}} {
		if p.text == "" {
			continue
		}
		v, err := netip.ParsePrefix(p.text)
		if err != nil {
			return fmt.Errorf("%s: %q is not an address range such as 10.244.0.0/16", p.flag, p.text)
		}
		*p.dst = v.Masked()
	}
	var err error
	if f.opts.API, err = apiSettings(f.apiArgs); err != nil {
		return fmt.Errorf("--kube-apiserver-arg: %w", err)
	}
	f.opts.API.Profiling = f.opts.API.Profiling || f.profiling
	if f.nodeIP == "" {
		return nil
	}
	ip, err := netip.ParseAddr(f.nodeIP)
	if err != nil {
		return fmt.Errorf("--node-ip: %q is not an IP address", f.nodeIP)
	}
	f.opts.NodeIP = ip
	return nil
}

// foreground runs the cluster in this process until a signal.
func (f *upFlags) foreground(ctx context.Context) error {
	p := newPrinter(os.Stdout)
	fmt.Printf("Starting a cluster in %s\n", cmp.Or(f.opts.DataDir, cluster.DefaultDataDir))
	begin := time.Now()
	return f.serve(ctx, cluster.Up, p.show, func() {
		if err := f.welcome(time.Since(begin)); err != nil {
			fmt.Fprintln(os.Stderr, "skiff:", err)
			return
		}
		fmt.Println("Ctrl-C ends skiff and leaves the pods running; 'skiff down' stops everything.")
	})
}

// detached runs the cluster or node for a parent that reads its progress.
func (f *upFlags) detached(ctx context.Context, start starter) error {
	progress := jsonProgress(f.progressFD)
	err := f.serve(ctx, start, progress, func() {})
	if err != nil {
		progress(cluster.Event{State: cluster.Stopped, Detail: err.Error()})
	}
	return err
}

// spawn starts this program again in a session of its own and shows its
// progress until it is Ready or gone.
func (f *upFlags) spawn() error {
	dir := cmp.Or(f.opts.DataDir, cluster.DefaultDataDir)
	fmt.Printf("Starting a cluster in %s\n", dir)
	begin := time.Now()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := append(os.Args[1:len(os.Args):len(os.Args)], "--progress-fd=3")
	child := exec.Command(self, args...)
	child.Env = os.Environ()
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if out := daemonLog(dir); out != nil {
		child.Stdout, child.Stderr = out, out
		defer out.Close()
	}
	if err := child.Start(); err != nil {
		return err
	}
	w.Close()
	if err := follow(r, newPrinter(os.Stdout)); err != nil {
		_ = child.Wait()
		return err
	}
	return f.welcome(time.Since(begin))
}

// daemonLog is where the detached process's own output goes; nil (nowhere)
// when the folder cannot be written, which the process itself will report.
func daemonLog(dataDir string) *os.File {
	dir := filepath.Join(dataDir, "log")
	if os.MkdirAll(dir, 0o700) != nil {
		return nil
	}
	out, err := os.OpenFile(filepath.Join(dir, "skiff.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil
	}
	return out
}

// follow shows the progress of a detached start until Ready. Its error is
// the one the detached process ended with.
func follow(r io.Reader, p *printer) error {
	var failed error
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var e cluster.Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			return fmt.Errorf("progress of the detached process: %w", err)
		}
		switch e.State {
		case cluster.Ready:
			return nil
		case cluster.Stopped:
			failed = errors.New(e.Detail)
		default:
			p.show(e)
		}
	}
	if failed != nil {
		return failed
	}
	return errors.New("the detached process ended before the cluster was Ready; its log says why")
}

func jsonProgress(fd int) cluster.Progress {
	out := os.NewFile(uintptr(fd), "progress")
	syscall.CloseOnExec(fd)
	enc := json.NewEncoder(out)
	return func(e cluster.Event) {
		_ = enc.Encode(e) // a reader that went away is no reason to stop
		if e.State == cluster.Ready || e.State == cluster.Stopped {
			out.Close()
		}
	}
}

// welcome merges the context into the user's kubeconfig and says what to do next.
func (f *upFlags) welcome(took time.Duration) error {
	fmt.Printf("Cluster ready in %s.\n", short(took))
	admin := filepath.Join(cmp.Or(f.opts.DataDir, cluster.DefaultDataDir), "admin.conf")
	if !f.kubeconfig {
		fmt.Printf("\n  export KUBECONFIG=%s\n  skiff kubectl get nodes\n", admin)
		return nil
	}
	target, err := userKubeconfig()
	if err != nil {
		return err
	}
	if err := bootstrap.MergeKubeconfig(target, admin, contextName); err != nil {
		return fmt.Errorf("add context %q to %s: %w", contextName, target, err)
	}
	fmt.Printf("kubectl context %q is in %s. Try:\n\n  skiff kubectl get nodes\n  skiff demo\n  skiff status\n", contextName, target)
	return nil
}

package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-project/skiff/sim/hollow"
)

// simFlags are the flags of `skiff sim`.
type simFlags struct {
	cfg        hollow.Config
	kubeconfig string
	keep       bool
	report     time.Duration
	verbose    bool
}

// newSim is `skiff sim`.
func newSim() *cobra.Command {
	f := &simFlags{}
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Add simulated nodes to a cluster, Skiff's or any other, until interrupted",
		Long: "Add simulated nodes to a cluster. They renew leases and take pods through their phases as kubelets\n" +
			"do, but run nothing. At the end the nodes are deleted, unless --keep is given.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return f.run(ctx, cmd.OutOrStdout())
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&f.cfg.Nodes, "nodes", 10, "how many")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "cluster to add them to (default: as kubectl finds it)")
	fs.StringVar(&f.cfg.Prefix, "prefix", "hollow", "nodes are named <prefix>-0 and up")
	fs.DurationVar(&f.cfg.Timing.Start, "start-delay", 500*time.Millisecond, "how long containers take to start")
	fs.DurationVar(&f.cfg.Timing.Stop, "stop-delay", 100*time.Millisecond, "how long containers take to end")
	fs.DurationVar(&f.cfg.Timing.RunFor, "run-for", time.Second, "how long pods that complete run")
	fs.DurationVar(&f.cfg.LeaseInterval, "lease-interval", 10*time.Second, "between renewals of a node's lease")
	fs.IntVar(&f.cfg.Parallelism, "parallelism", 32, "API calls under way at once")
	fs.DurationVar(&f.report, "report", 10*time.Second, "print figures this often; 0: only at the end")
	fs.BoolVar(&f.keep, "keep", false, "leave the nodes in the cluster at the end")
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "log to standard error")
	return cmd
}

func (f *simFlags) run(ctx context.Context, out io.Writer) error {
	conn, err := connection(f.kubeconfig)
	if err != nil {
		return err
	}
	if f.cfg.Client, err = kubernetes.NewForConfig(conn); err != nil {
		return err
	}
	if f.verbose {
		f.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	k, err := hollow.New(f.cfg)
	if err != nil {
		return err
	}
	begin := time.Now()
	var reports sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reports.Go(func() {
		select {
		case <-k.Ready():
			fmt.Fprintf(out, "%d nodes registered at %s in %s\n", f.cfg.Nodes, conn.Host, short(time.Since(begin)))
		case <-ctx.Done():
			return
		}
		if f.report > 0 {
			reportStats(ctx, k, f.report, out)
		}
	})
	err = k.Run(ctx)
	cancel()
	reports.Wait()
	fmt.Fprintln(out, statsLine(k.Stats()))
	if f.keep {
		return err
	}
	end, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if rerr := k.Remove(end); rerr != nil && err == nil {
		err = fmt.Errorf("remove the nodes: %w", rerr)
	}
	return err
}

func reportStats(ctx context.Context, k *hollow.Kubelets, every time.Duration, out io.Writer) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fmt.Fprintln(out, statsLine(k.Stats()))
		}
	}
}

func statsLine(s hollow.Stats) string {
	return fmt.Sprintf("nodes %d, pods %d, pod writes %d, lease renewals %d (%d late), node reports %d, failed calls %d",
		s.Nodes, s.Pods, s.PodWrites, s.Renewals, s.Late, s.NodeWrites, s.Errors)
}

// connection is to the cluster kubectl would talk to, without a rate limit:
// the caller bounds what it has under way.
func connection(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	cfg, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	cfg.WarningHandler = rest.NoWarnings{}
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	cfg.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	cfg.UserAgent = "skiff-sim"
	return cfg, nil
}

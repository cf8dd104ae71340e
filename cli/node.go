package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/cli/box"
	"github.com/skiff-project/skiff/cluster"
)

// newNode is `skiff node`: what `skiff up --nodes` runs for each further node.
// It ends, leaving its pods running, when its standard input closes.
func newNode() *cobra.Command {
	f := &upFlags{opts: cluster.Options{Applets: box.Names()}}
	cmd := &cobra.Command{
		Use: "node", Short: "Run one node of a cluster whose API server is elsewhere", Args: cobra.NoArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin) // any end of it is the end
				cancel()
			}()
			return f.detached(ctx, cluster.UpNode)
		},
	}
	fs := cmd.Flags()
	dataDirFlag(cmd, &f.opts.DataDir)
	fs.DurationVar(&f.timeout, "timeout", time.Minute, "how long to wait for the node to be Ready")
	fs.IntVar(&f.progressFD, "progress-fd", 1, "write progress as JSON lines to this file descriptor")
	return cmd
}

// starter is cluster.Up or cluster.UpNode.
type starter func(ctx context.Context, opts cluster.Options, timeout time.Duration, progress cluster.Progress) (*cluster.Cluster, error)

// serve starts the cluster or node, calls ready once it is, and waits for its end.
func (f *upFlags) serve(ctx context.Context, start starter, progress cluster.Progress, ready func()) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := start(ctx, f.opts, f.timeout, progress)
	if err != nil {
		return err
	}
	progress(cluster.Event{State: cluster.Ready})
	ready()
	return c.Wait(ctx)
}

package cli

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/bootstrap"
	"github.com/skiff-project/skiff/cluster"
)

// newDown is `skiff down`.
func newDown() *cobra.Command {
	var dir string
	var purge bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the cluster and its pods; with --purge delete it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			begin := time.Now()
			p := newPrinter(os.Stdout)
			if err := cluster.Down(cmd.Context(), dir, purge, p.show); err != nil {
				return err
			}
			if purge {
				if target, err := userKubeconfig(); err == nil {
					if err := bootstrap.RemoveContext(target, contextName); err != nil {
						return fmt.Errorf("remove context %q from %s: %w", contextName, target, err)
					}
				}
				fmt.Printf("Cluster deleted in %s: no process, mount, network or file of it is left.\n", short(time.Since(begin)))
				return nil
			}
			fmt.Printf("Cluster stopped in %s. 'skiff up' resumes it; 'skiff down --purge' deletes it.\n", short(time.Since(begin)))
			return nil
		},
	}
	dataDirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&purge, "purge", false, "delete all data of the cluster as well")
	return cmd
}

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

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
			if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
				fmt.Println("There is no cluster in", dir)
				return nil
			}
			begin := time.Now()
			p := newPrinter(os.Stdout)
			ours := contextIsOurs(dir)
			if err := cluster.Down(cmd.Context(), dir, purge, p.show); err != nil {
				return err
			}
			if purge {
				if err := removeContext(ours); err != nil {
					return err
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

// contextIsOurs reports whether the user's context leads to the cluster in
// dir: another cluster may have taken the name since.
func contextIsOurs(dir string) bool {
	target, err := userKubeconfig()
	if err != nil {
		return false
	}
	user, err := clientcmd.LoadFromFile(target)
	if err != nil {
		return false
	}
	admin, err := clientcmd.LoadFromFile(cluster.Options{DataDir: dir}.AdminConfig())
	if err != nil {
		return false
	}
	theirs, mine := clusterOf(user, contextName), clusterOf(admin, admin.CurrentContext)
	return theirs != nil && mine != nil && theirs.Server == mine.Server &&
		bytes.Equal(theirs.CertificateAuthorityData, mine.CertificateAuthorityData)
}

// clusterOf is the cluster a context leads to, or nil.
func clusterOf(cfg *api.Config, name string) *api.Cluster {
	if c := cfg.Contexts[name]; c != nil {
		return cfg.Clusters[c.Cluster]
	}
	return nil
}

// removeContext takes the context out of the user's kubeconfig if it is ours.
func removeContext(ours bool) error {
	if !ours {
		return nil
	}
	target, err := userKubeconfig()
	if err != nil {
		return err
	}
	if err := bootstrap.RemoveContext(target, contextName); err != nil {
		return fmt.Errorf("remove context %q from %s: %w", contextName, target, err)
	}
	return nil
}

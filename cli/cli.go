// Package cli holds what a user types: up, down, status, demo and image, and,
// in folders of their own, the embedded kubectl and etcdctl and the small
// userland of Skiff's own image.
package cli

import (
	"os"
	"os/user"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/cluster"
)

// Commands lists the user commands in the order help shows them.
func Commands() []*cobra.Command {
	return []*cobra.Command{newUp(), newDown(), newStatus(), newDemo(), newImage(), newSecrets(), newTestenv(), newSim(), newNode(), newVersion()}
}

// dataDirFlag adds --data-dir, which every command that touches a local cluster has.
func dataDirFlag(cmd *cobra.Command, dst *string) {
	cmd.Flags().StringVar(dst, "data-dir", cluster.DefaultDataDir, "folder that holds the cluster")
}

// userKubeconfig is the file kubectl would change: the first of $KUBECONFIG,
// else ~/.kube/config. Under sudo it is still the invoking root's own.
func userKubeconfig() (string, error) {
	if list := filepath.SplitList(os.Getenv("KUBECONFIG")); len(list) > 0 && list[0] != "" {
		return list[0], nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		u, uerr := user.Current()
		if uerr != nil {
			return "", err
		}
		home = u.HomeDir
	}
	return filepath.Join(home, ".kube", "config"), nil
}

package cli

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/cluster"
	"github.com/skiff-project/skiff/cluster/rotation"
)

// newSecrets is `skiff secrets rotate`.
func newSecrets() *cobra.Command {
	cmd := &cobra.Command{Use: "secrets", Short: "The key that Secrets are stored under"}
	var dir string
	rotate := &cobra.Command{
		Use: "rotate", Short: "Make a new key, store all Secrets under it and forget the old one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			begin, p := time.Now(), newPrinter(os.Stdout)
			var last rotation.Step
			err := cluster.NewClient(dir).RotateSecrets(cmd.Context(), func(s rotation.Step) {
				last = s
				p.draft("Secrets", fmt.Sprintf("%d of %d", s.Done, s.Total))
			})
			if err != nil {
				p.line("✗", "Secrets", firstLine(err.Error()))
				return err
			}
			p.line("✓", "Secrets", fmt.Sprintf("%7s  %d objects are stored under %s; the old key is gone", short(time.Since(begin)), last.Done, last.Key))
			return nil
		},
	}
	dataDirFlag(rotate, &dir)
	cmd.AddCommand(rotate)
	return cmd
}

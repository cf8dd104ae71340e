package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/cluster"
)

// newImage is `skiff image load|pull|ls|rm`.
func newImage() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Load, pull and remove images on all nodes; list the first one's"}
	var dir string
	cmd.PersistentFlags().StringVar(&dir, "data-dir", cluster.DefaultDataDir, "folder that holds the cluster")
	client := func() *cluster.Client { return cluster.NewClient(dir) }
	cmd.AddCommand(
		&cobra.Command{
			Use: "load FILE...", Short: "Load images from OCI or Docker archives ('-' is standard input)", Args: cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, files []string) error { return loadImages(cmd, client(), files) },
		},
		&cobra.Command{
			Use: "pull NAME...", Short: "Pull images from their registries", Args: cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, names []string) error {
				for _, n := range names {
					id, err := client().PullImage(cmd.Context(), n)
					if err != nil {
						return err
					}
					fmt.Println(n, id)
				}
				return nil
			},
		},
		&cobra.Command{
			Use: "ls", Aliases: []string{"list"}, Short: "List local images", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return listImages(cmd, client()) },
		},
		&cobra.Command{
			Use: "rm NAME...", Aliases: []string{"remove"}, Short: "Remove images by name or ID", Args: cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, names []string) error {
				for _, n := range names {
					if err := client().RemoveImage(cmd.Context(), n); err != nil {
						return err
					}
				}
				return nil
			},
		},
	)
	return cmd
}

func loadImages(cmd *cobra.Command, c *cluster.Client, files []string) error {
	for _, name := range files {
		names, err := loadImage(cmd, c, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, n := range names {
			fmt.Println("loaded", n)
		}
	}
	return nil
}

func loadImage(cmd *cobra.Command, c *cluster.Client, name string) ([]string, error) {
	var in io.Reader = os.Stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return c.LoadImages(cmd.Context(), in)
}

func listImages(cmd *cobra.Command, c *cluster.Client) error {
	list, err := c.Images(cmd.Context())
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tID\tSIZE")
	for _, i := range list {
		id := strings.TrimPrefix(i.ID, "sha256:")
		if len(id) > 12 {
			id = id[:12]
		}
		for _, n := range i.Names {
			if !strings.Contains(n, "@") || len(i.Names) == 1 {
				fmt.Fprintf(w, "%s\t%s\t%.1f MB\n", n, id, float64(i.Bytes)/1e6)
			}
		}
	}
	return w.Flush()
}

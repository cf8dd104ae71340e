package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/cluster"
	"github.com/skiff-project/skiff/internal/atomicfile"
)

// newTestenv is `skiff testenv`: cluster.Start for other languages.
func newTestenv() *cobra.Command {
	var opts cluster.TestOptions
	var kubeconfig string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "testenv",
		Short: "Run a control plane in memory for tests; print its kubeconfig's path and stay in the foreground",
		Long: "Run a control plane in memory, without root: API server, controllers, scheduler and, with --nodes,\n" +
			"simulated nodes. The first line printed is the path of a kubeconfig; it is printed once the API is\n" +
			"ready. The control plane and the file go at SIGINT or SIGTERM. Any number run side by side.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if verbose {
				opts.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
			}
			return testenv(ctx, opts, kubeconfig, cmd.OutOrStdout())
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&opts.HollowNodes, "nodes", 0, "simulated nodes that run what is scheduled to them")
	fs.BoolVar(&opts.APIOnly, "api-only", false, "only the API server, as controller-runtime's envtest has it")
	fs.StringVar(&opts.Address, "address", "127.0.0.1:0", "where to serve the API; port 0 is any free one")
	fs.StringVar(&kubeconfig, "kubeconfig", "", "write the kubeconfig here (default: a new temporary file)")
	fs.BoolVarP(&verbose, "verbose", "v", false, "log to standard error")
	cmd.AddCommand(newAssets())
	return cmd
}

func testenv(ctx context.Context, opts cluster.TestOptions, kubeconfig string, out io.Writer) error {
	c, err := cluster.InMemory(ctx, opts)
	if err != nil {
		return err
	}
	defer c.Stop()
	if kubeconfig == "" {
		dir, err := os.MkdirTemp("", "skiff-testenv-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		kubeconfig = filepath.Join(dir, "kubeconfig")
	} else {
		defer os.Remove(kubeconfig)
	}
	if err := atomicfile.Write(kubeconfig, c.Kubeconfig(), 0o600); err != nil {
		return err
	}
	fmt.Fprintln(out, kubeconfig)
	return c.Wait(ctx)
}

// newAssets is `skiff testenv assets`.
func newAssets() *cobra.Command {
	return &cobra.Command{
		Use:   "assets DIR",
		Short: "Make DIR/etcd, DIR/kube-apiserver and DIR/kubectl for controller-runtime's envtest (KUBEBUILDER_ASSETS)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return err
			}
			dir, err := linkAssets(self, args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "export KUBEBUILDER_ASSETS=%s\n", dir)
			return nil
		},
	}
}

// assetNames are the programs envtest starts.
var assetNames = []string{"etcd", "kube-apiserver", "kubectl"}

// linkAssets makes the links to a binary and returns the folder's full path.
// Links are replaced; anything else of these names is left alone, as an error.
func linkAssets(binary, dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range assetNames {
		path := filepath.Join(dir, name)
		fi, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return "", err
		case fi.Mode()&fs.ModeSymlink == 0:
			return "", fmt.Errorf("%s is there and no link; move it away or choose another folder", path)
		default:
			if err := os.Remove(path); err != nil {
				return "", err
			}
		}
		if err := os.Symlink(binary, path); err != nil {
			return "", err
		}
	}
	return dir, nil
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-project/skiff/cluster"
)

// newStatus is `skiff status`: every component, node, version and the first
// certificate to end. It fails when something is not well, so scripts can ask.
func newStatus() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "status", Short: "Show every component, node, version and certificate expiry", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			return showStatus(ctx, dir)
		},
	}
	dataDirFlag(cmd, &dir)
	return cmd
}

func showStatus(ctx context.Context, dir string) error {
	s, err := cluster.NewClient(dir).Status(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("skiff %s (Kubernetes %s), pid %d, up %s, data in %s\n\n",
		s.Version, s.Kubernetes, s.PID, time.Since(s.Since).Round(time.Second), dir)
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "COMPONENT\tHEALTH\tDETAIL")
	sick := 0
	for _, c := range s.Components {
		if c.Health != "ok" {
			sick++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.Name, c.Health, c.Detail)
	}
	fmt.Fprintln(w, "\t\t\nNODE\tSTATUS\tVERSION")
	nodes, err := listNodes(ctx, dir)
	if err != nil {
		return errors.Join(w.Flush(), err)
	}
	for _, n := range nodes {
		state := "NotReady"
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				state = "Ready"
			}
		}
		if state != "Ready" {
			sick++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", n.Name, state, n.Status.NodeInfo.KubeletVersion)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nFirst certificate ends %s; skiff up renews it in time.\n", s.CertificateExpiry.Format(time.DateOnly))
	if sick > 0 {
		return fmt.Errorf("%d of the above are not well; logs are in %s", sick, filepath.Join(dir, "log"))
	}
	return nil
}

func listNodes(ctx context.Context, dir string) ([]corev1.Node, error) {
	client, err := adminClient(dir)
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// adminClient connects as the administrator of the cluster in dir.
func adminClient(dir string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", cluster.Options{DataDir: dir}.AdminConfig())
	if err != nil {
		return nil, fmt.Errorf("no cluster in %s: %w", dir, err)
	}
	cfg.QPS, cfg.Burst = 50, 100
	return kubernetes.NewForConfig(cfg)
}

// newVersion is `skiff version`.
func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions of skiff and of the API it serves", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			fmt.Printf("skiff %s (Kubernetes %s)\n", cluster.Version, cluster.KubernetesVersion)
		},
	}
}

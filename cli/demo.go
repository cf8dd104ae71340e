package cli

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/cluster"
)

// demoManifest is the Namespace, the Deployment and the Service.
//
//go:embed demo.yaml
var demoManifest string

// What the manifest calls them, and how many it asks for.
const (
	demoNamespace = "demo"
	demoName      = "web"
	demoReplicas  = 3
)

// newDemo is `skiff demo`: a web Deployment and Service from Skiff's own
// image, reached every way a Service can be. It needs no network.
func newDemo() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a 3-replica web Deployment and a Service from Skiff's own image", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			return runDemo(ctx, dir, cmd.OutOrStdout())
		},
	}
	dataDirFlag(cmd, &dir)
	return cmd
}

// demo is one run.
type demo struct {
	config  *rest.Config
	client  kubernetes.Interface
	out     io.Writer
	service *corev1.Service
	nodeIP  string
}

func runDemo(ctx context.Context, dir string, out io.Writer) error {
	cfg, err := clientcmd.BuildConfigFromFlags("", cluster.Options{DataDir: dir}.AdminConfig())
	if err != nil {
		return fmt.Errorf("no cluster in %s: start one with 'sudo skiff up -d' (%w)", dir, err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	d := &demo{config: cfg, client: client, out: out}
	for _, step := range []struct {
		what string
		run  func(context.Context) (string, error)
	}{
		{"apply", d.apply},
		{"pods", d.waitReady},
		{"ClusterIP", d.tryClusterIP},
		{"NodePort", d.tryNodePort},
		{"DNS name", d.tryDNS},
	} {
		begin := time.Now()
		text, err := step.run(ctx)
		if err != nil {
			return fmt.Errorf("demo: %s: %w", step.what, err)
		}
		fmt.Fprintf(out, "✓ %-10s %7s  %s\n", step.what, short(time.Since(begin)), text)
	}
	fmt.Fprintf(out, "\nThe demo answers at %s\nNext:\n\n%s", d.nodePortURL(), demoNext)
	return nil
}

const demoNext = `  skiff kubectl -n demo get pods,services,endpointslices -o wide
  skiff kubectl -n demo logs -l app=web --prefix
  skiff kubectl -n demo scale deployment web --replicas=5
  skiff kubectl -n demo exec -it deploy/web -- sh
  skiff kubectl delete namespace demo
`

// apply makes the namespace, Deployment and Service, or brings them back to
// what they should be.
func (d *demo) apply(ctx context.Context) (string, error) {
	opts := metav1.PatchOptions{FieldManager: "skiff-demo", Force: ptr.To(true)}
	docs := strings.Split(strings.ReplaceAll(demoManifest, "$IMAGE", cluster.ImageName()), "---\n")
	if _, err := d.client.CoreV1().Namespaces().Patch(ctx, demoNamespace, types.ApplyPatchType, []byte(docs[0]), opts); err != nil {
		return "", err
	}
	if _, err := d.client.AppsV1().Deployments(demoNamespace).Patch(ctx, demoName, types.ApplyPatchType, []byte(docs[1]), opts); err != nil {
		return "", err
	}
	var err error
	if d.service, err = d.client.CoreV1().Services(demoNamespace).Patch(ctx, demoName, types.ApplyPatchType, []byte(docs[2]), opts); err != nil {
		return "", err
	}
	return fmt.Sprintf("deployment.apps/%s (%d replicas of %s) and service/%s in namespace %s",
		demoName, demoReplicas, cluster.ImageName(), demoName, demoNamespace), nil
}

// waitReady watches the Deployment until all replicas of its newest
// generation are available.
func (d *demo) waitReady(ctx context.Context) (string, error) {
	w, err := d.client.AppsV1().Deployments(demoNamespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", demoName).String(),
	})
	if err != nil {
		return "", err
	}
	defer w.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s; see 'skiff kubectl -n demo describe pods'", last)
		case e, ok := <-w.ResultChan():
			dep, isDep := e.Object.(*appsv1.Deployment)
			if !ok || e.Type == watch.Error || !isDep {
				return "", fmt.Errorf("the watch ended early: %v", e.Object)
			}
			last = fmt.Sprintf("%d of %d replicas available", dep.Status.AvailableReplicas, demoReplicas)
			if dep.Status.ObservedGeneration >= dep.Generation && dep.Status.UpdatedReplicas == demoReplicas &&
				dep.Status.AvailableReplicas == demoReplicas && dep.Status.Replicas == demoReplicas {
				return last, nil
			}
		}
	}
}

func (d *demo) tryClusterIP(ctx context.Context) (string, error) {
	return d.fetchAll(ctx, "http://"+net.JoinHostPort(d.service.Spec.ClusterIP, "80"))
}

func (d *demo) tryNodePort(ctx context.Context) (string, error) {
	nodes, err := d.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP && d.nodeIP == "" {
				d.nodeIP = a.Address
			}
		}
	}
	return d.fetchAll(ctx, d.nodePortURL())
}

func (d *demo) nodePortURL() string {
	return "http://" + net.JoinHostPort(d.nodeIP, strconv.Itoa(int(d.service.Spec.Ports[0].NodePort)))
}

// fetchAll asks until every replica has answered once, at most 100 times; a
// short run of failures is allowed while the first rules reach the kernel.
func (d *demo) fetchAll(ctx context.Context, url string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	seen := map[string]bool{}
	failures := 0
	for n := 1; n <= 100; n++ {
		body, err := get(ctx, client, url)
		if err != nil {
			if failures++; failures > 20 {
				return "", err
			}
			select {
			case <-ctx.Done():
				return "", err
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if seen[firstLine(body)] = true; len(seen) == demoReplicas {
			return fmt.Sprintf("%s answered by %d pods in %d requests", url, len(seen), n), nil
		}
	}
	return "", fmt.Errorf("%s: only %d of %d pods answered", url, len(seen), demoReplicas)
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return string(body), err
}

// tryDNS fetches the Service by name from inside one of its pods, as an
// application would.
func (d *demo) tryDNS(ctx context.Context) (string, error) {
	pods, err := d.client.CoreV1().Pods(demoNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + demoName})
	if err != nil {
		return "", err
	}
	if len(pods.Items) == 0 {
		return "", fmt.Errorf("no pod to ask from")
	}
	url := fmt.Sprintf("http://%s.%s.svc.cluster.local", demoName, demoNamespace)
	out, err := d.exec(ctx, pods.Items[0].Name, "wget", "-q", "-O-", url)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s from pod %s: %q", url, pods.Items[0].Name, firstLine(out)), nil
}

func (d *demo) exec(ctx context.Context, pod string, command ...string) (string, error) {
	req := d.client.CoreV1().RESTClient().Post().Namespace(demoNamespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	ex, err := remotecommand.NewWebSocketExecutor(d.config, http.MethodGet, req.URL().String())
	if err != nil {
		return "", err
	}
	var out, errOut bytes.Buffer
	if err := ex.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

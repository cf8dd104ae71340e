// Package remote is the container runtime of another process: CRI's services
// over gRPC, as the kubelet takes them. It is small on purpose: calls, bounds
// and errors; what a pod needs is decided elsewhere.
package remote

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

// maxMessage is CRI's bound on one message, in bytes.
const maxMessage = 16 << 20

// defaultTimeout bounds a call that does not wait for something of its own.
const defaultTimeout = 2 * time.Minute

// Runtime implements CRI's two services by asking a socket. Safe for
// concurrent use.
type Runtime struct {
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	timeout time.Duration
}

var (
	_ internalapi.RuntimeService      = (*Runtime)(nil)
	_ internalapi.ImageManagerService = (*Runtime)(nil)
)

// Dial prepares the connection to an endpoint, unix:///path or a path; it is
// made when first used, and made again when it breaks. A timeout of 0 is 2 min.
func Dial(endpoint string, timeout time.Duration) (*Runtime, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("container runtime endpoint %q is not a unix socket: give unix:///path", endpoint)
	}
	if timeout == 0 {
		timeout = defaultTimeout
	}
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 3 * time.Second,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("container runtime endpoint %s: %w", endpoint, err)
	}
	return &Runtime{conn: conn, runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn), timeout: timeout}, nil
}

// call sends a request, bounded by d.
func call[Q, A any](ctx context.Context, d time.Duration, f func(context.Context, Q, ...grpc.CallOption) (A, error), q Q) (A, error) {
	if d > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d)
		defer cancel()
	}
	return f(ctx, q)
}

// Close implements both services.
func (r *Runtime) Close(context.Context) error { return r.conn.Close() }

// Version implements internalapi.RuntimeService.
func (r *Runtime) Version(ctx context.Context, version string) (*cri.VersionResponse, error) {
	return call(ctx, r.timeout, r.runtime.Version, &cri.VersionRequest{Version: version})
}

// Status implements internalapi.RuntimeService.
func (r *Runtime) Status(ctx context.Context, verbose bool) (*cri.StatusResponse, error) {
	return call(ctx, r.timeout, r.runtime.Status, &cri.StatusRequest{Verbose: verbose})
}

// RuntimeConfig implements internalapi.RuntimeService.
func (r *Runtime) RuntimeConfig(ctx context.Context) (*cri.RuntimeConfigResponse, error) {
	return call(ctx, r.timeout, r.runtime.RuntimeConfig, &cri.RuntimeConfigRequest{})
}

// UpdateRuntimeConfig implements internalapi.RuntimeService.
func (r *Runtime) UpdateRuntimeConfig(ctx context.Context, c *cri.RuntimeConfig) error {
	_, err := call(ctx, r.timeout, r.runtime.UpdateRuntimeConfig, &cri.UpdateRuntimeConfigRequest{RuntimeConfig: c})
	return err
}

// RunPodSandbox implements internalapi.RuntimeService. Network plug-ins get twice the time.
func (r *Runtime) RunPodSandbox(ctx context.Context, c *cri.PodSandboxConfig, handler string) (string, error) {
	a, err := call(ctx, 2*r.timeout, r.runtime.RunPodSandbox, &cri.RunPodSandboxRequest{Config: c, RuntimeHandler: handler})
	return a.GetPodSandboxId(), err
}

// StopPodSandbox implements internalapi.RuntimeService.
func (r *Runtime) StopPodSandbox(ctx context.Context, id string) error {
	_, err := call(ctx, r.timeout, r.runtime.StopPodSandbox, &cri.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

// RemovePodSandbox implements internalapi.RuntimeService.
func (r *Runtime) RemovePodSandbox(ctx context.Context, id string) error {
	_, err := call(ctx, r.timeout, r.runtime.RemovePodSandbox, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// PodSandboxStatus implements internalapi.RuntimeService.
func (r *Runtime) PodSandboxStatus(ctx context.Context, id string, verbose bool) (*cri.PodSandboxStatusResponse, error) {
	return call(ctx, r.timeout, r.runtime.PodSandboxStatus, &cri.PodSandboxStatusRequest{PodSandboxId: id, Verbose: verbose})
}

// ListPodSandbox implements internalapi.RuntimeService.
func (r *Runtime) ListPodSandbox(ctx context.Context, f *cri.PodSandboxFilter) ([]*cri.PodSandbox, error) {
	a, err := call(ctx, r.timeout, r.runtime.ListPodSandbox, &cri.ListPodSandboxRequest{Filter: f})
	return a.GetItems(), err
}

// UpdatePodSandboxResources implements internalapi.RuntimeService.
func (r *Runtime) UpdatePodSandboxResources(ctx context.Context, q *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	return call(ctx, r.timeout, r.runtime.UpdatePodSandboxResources, q)
}

// CheckpointPod implements internalapi.RuntimeService.
func (r *Runtime) CheckpointPod(ctx context.Context, q *cri.CheckpointPodRequest) error {
	_, err := call(ctx, r.timeout, r.runtime.CheckpointPod, q)
	return err
}

// RestorePod implements internalapi.RuntimeService.
func (r *Runtime) RestorePod(ctx context.Context, q *cri.RestorePodRequest) (*cri.RestorePodResponse, error) {
	return call(ctx, r.timeout, r.runtime.RestorePod, q)
}

// CreateContainer implements internalapi.RuntimeService.
func (r *Runtime) CreateContainer(ctx context.Context, sandbox string, c *cri.ContainerConfig, s *cri.PodSandboxConfig) (string, error) {
	a, err := call(ctx, r.timeout, r.runtime.CreateContainer, &cri.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: s})
	return a.GetContainerId(), err
}

// StartContainer implements internalapi.RuntimeService.
func (r *Runtime) StartContainer(ctx context.Context, id string) error {
	_, err := call(ctx, r.timeout, r.runtime.StartContainer, &cri.StartContainerRequest{ContainerId: id})
	return err
}

// StopContainer implements internalapi.RuntimeService; seconds is the grace the container gets.
func (r *Runtime) StopContainer(ctx context.Context, id string, seconds int64) error {
	_, err := call(ctx, r.timeout+time.Duration(seconds)*time.Second, r.runtime.StopContainer, &cri.StopContainerRequest{ContainerId: id, Timeout: seconds})
	return err
}

// RemoveContainer implements internalapi.RuntimeService.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) error {
	_, err := call(ctx, r.timeout, r.runtime.RemoveContainer, &cri.RemoveContainerRequest{ContainerId: id})
	return err
}

// ListContainers implements internalapi.RuntimeService.
func (r *Runtime) ListContainers(ctx context.Context, f *cri.ContainerFilter) ([]*cri.Container, error) {
	a, err := call(ctx, r.timeout, r.runtime.ListContainers, &cri.ListContainersRequest{Filter: f})
	return a.GetContainers(), err
}

// ContainerStatus implements internalapi.RuntimeService.
func (r *Runtime) ContainerStatus(ctx context.Context, id string, verbose bool) (*cri.ContainerStatusResponse, error) {
	return call(ctx, r.timeout, r.runtime.ContainerStatus, &cri.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
}

// UpdateContainerResources implements internalapi.RuntimeService.
func (r *Runtime) UpdateContainerResources(ctx context.Context, id string, res *cri.ContainerResources) error {
	_, err := call(ctx, r.timeout, r.runtime.UpdateContainerResources, &cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: res.GetLinux()})
	return err
}

// ReopenContainerLog implements internalapi.RuntimeService.
func (r *Runtime) ReopenContainerLog(ctx context.Context, id string) error {
	_, err := call(ctx, r.timeout, r.runtime.ReopenContainerLog, &cri.ReopenContainerLogRequest{ContainerId: id})
	return err
}

// CheckpointContainer implements internalapi.RuntimeService.
func (r *Runtime) CheckpointContainer(ctx context.Context, q *cri.CheckpointContainerRequest) error {
	_, err := call(ctx, r.timeout, r.runtime.CheckpointContainer, q)
	return err
}

// ExecSync implements internalapi.RuntimeService; a non-zero status is a
// utilexec.ExitError. The runtime keeps the timeout; 0 is none.
func (r *Runtime) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, err error) {
	bound := time.Duration(0)
	if timeout > 0 {
		bound = r.timeout + timeout
	}
	a, err := call(ctx, bound, r.runtime.ExecSync, &cri.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: int64((timeout + time.Second - 1) / time.Second)})
	if err != nil {
		return nil, nil, err
	}
	if a.ExitCode != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command '%s' exited with %d: %s", strings.Join(cmd, " "), a.ExitCode, a.Stderr), Code: int(a.ExitCode)}
	}
	return a.Stdout, a.Stderr, err
}

// Exec implements internalapi.RuntimeService.
func (r *Runtime) Exec(ctx context.Context, q *cri.ExecRequest) (*cri.ExecResponse, error) {
	return call(ctx, r.timeout, r.runtime.Exec, q)
}

// Attach implements internalapi.RuntimeService.
func (r *Runtime) Attach(ctx context.Context, q *cri.AttachRequest) (*cri.AttachResponse, error) {
	return call(ctx, r.timeout, r.runtime.Attach, q)
}

// PortForward implements internalapi.RuntimeService.
func (r *Runtime) PortForward(ctx context.Context, q *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return call(ctx, r.timeout, r.runtime.PortForward, q)
}

// GetContainerEvents implements internalapi.RuntimeService: events go to ch
// until the stream breaks or ctx ends.
func (r *Runtime) GetContainerEvents(ctx context.Context, ch chan *cri.ContainerEventResponse, connected func(cri.RuntimeService_GetContainerEventsClient)) error {
	stream, err := r.runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return err
	}
	if connected != nil {
		connected(stream)
	}
	for {
		event, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case ch <- event:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ContainerStats implements internalapi.RuntimeService.
func (r *Runtime) ContainerStats(ctx context.Context, id string) (*cri.ContainerStats, error) {
	a, err := call(ctx, r.timeout, r.runtime.ContainerStats, &cri.ContainerStatsRequest{ContainerId: id})
	return a.GetStats(), err
}

// ListContainerStats implements internalapi.RuntimeService.
func (r *Runtime) ListContainerStats(ctx context.Context, f *cri.ContainerStatsFilter) ([]*cri.ContainerStats, error) {
	a, err := call(ctx, r.timeout, r.runtime.ListContainerStats, &cri.ListContainerStatsRequest{Filter: f})
	return a.GetStats(), err
}

// PodSandboxStats implements internalapi.RuntimeService.
func (r *Runtime) PodSandboxStats(ctx context.Context, id string) (*cri.PodSandboxStats, error) {
	a, err := call(ctx, r.timeout, r.runtime.PodSandboxStats, &cri.PodSandboxStatsRequest{PodSandboxId: id})
	return a.GetStats(), err
}

// ListPodSandboxStats implements internalapi.RuntimeService.
func (r *Runtime) ListPodSandboxStats(ctx context.Context, f *cri.PodSandboxStatsFilter) ([]*cri.PodSandboxStats, error) {
	a, err := call(ctx, r.timeout, r.runtime.ListPodSandboxStats, &cri.ListPodSandboxStatsRequest{Filter: f})
	return a.GetStats(), err
}

// ListMetricDescriptors implements internalapi.RuntimeService.
func (r *Runtime) ListMetricDescriptors(ctx context.Context) ([]*cri.MetricDescriptor, error) {
	a, err := call(ctx, r.timeout, r.runtime.ListMetricDescriptors, &cri.ListMetricDescriptorsRequest{})
	return a.GetDescriptors(), err
}

// ListPodSandboxMetrics implements internalapi.RuntimeService.
func (r *Runtime) ListPodSandboxMetrics(ctx context.Context) ([]*cri.PodSandboxMetrics, error) {
	a, err := call(ctx, r.timeout, r.runtime.ListPodSandboxMetrics, &cri.ListPodSandboxMetricsRequest{})
	return a.GetPodMetrics(), err
}

// ListImages implements internalapi.ImageManagerService.
func (r *Runtime) ListImages(ctx context.Context, f *cri.ImageFilter) ([]*cri.Image, error) {
	a, err := call(ctx, r.timeout, r.images.ListImages, &cri.ListImagesRequest{Filter: f})
	return a.GetImages(), err
}

// ImageStatus implements internalapi.ImageManagerService.
func (r *Runtime) ImageStatus(ctx context.Context, image *cri.ImageSpec, verbose bool) (*cri.ImageStatusResponse, error) {
	return call(ctx, r.timeout, r.images.ImageStatus, &cri.ImageStatusRequest{Image: image, Verbose: verbose})
}

// PullImage implements internalapi.ImageManagerService; it takes as long as ctx allows.
func (r *Runtime) PullImage(ctx context.Context, image *cri.ImageSpec, auth *cri.AuthConfig, s *cri.PodSandboxConfig) (string, error) {
	a, err := call(ctx, 0, r.images.PullImage, &cri.PullImageRequest{Image: image, Auth: auth, SandboxConfig: s})
	return a.GetImageRef(), err
}

// RemoveImage implements internalapi.ImageManagerService.
func (r *Runtime) RemoveImage(ctx context.Context, image *cri.ImageSpec) error {
	_, err := call(ctx, r.timeout, r.images.RemoveImage, &cri.RemoveImageRequest{Image: image})
	return err
}

// ImageFsInfo implements internalapi.ImageManagerService.
func (r *Runtime) ImageFsInfo(ctx context.Context) (*cri.ImageFsInfoResponse, error) {
	return call(ctx, r.timeout, r.images.ImageFsInfo, &cri.ImageFsInfoRequest{})
}

package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

// maxMessage is the CRI client's bound on one message, in bytes.
const maxMessage = 16 << 20

// Serve serves CRI on a unix socket until ctx ends. The socket is 0600 in a 0700
// folder, which is made if missing; an old socket nobody listens on is replaced.
func (r *Runtime) Serve(ctx context.Context, socketPath string) error {
	if err := os.MkdirAll(filepath.Dir(socketPath), 0o700); err != nil {
		return err
	}
	if c, err := net.DialTimeout("unix", socketPath, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("CRI socket %s is served by another process: stop it or choose another path", socketPath)
	}
	if err := os.Remove(socketPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socketPath)
	if err != nil {
		return fmt.Errorf("CRI socket: %w", err)
	}
	if err := os.Chmod(socketPath, 0o600); err != nil {
		l.Close()
		return err
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	cri.RegisterRuntimeServiceServer(s, &runtimeServer{r: r})
	cri.RegisterImageServiceServer(s, &imageServer{r: r})
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return ctx.Err()
}

// runtimeServer is the gRPC face of Runtime. Streaming lists are left out: they are
// behind a feature gate, and clients fall back.
type runtimeServer struct {
	cri.UnimplementedRuntimeServiceServer
	r *Runtime
}

func (s *runtimeServer) Version(ctx context.Context, q *cri.VersionRequest) (*cri.VersionResponse, error) {
	return s.r.Version(ctx, q.GetVersion())
}

func (s *runtimeServer) RunPodSandbox(ctx context.Context, q *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	id, err := s.r.RunPodSandbox(ctx, q.GetConfig(), q.GetRuntimeHandler())
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, err
}

func (s *runtimeServer) StopPodSandbox(ctx context.Context, q *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return &cri.StopPodSandboxResponse{}, s.r.StopPodSandbox(ctx, q.GetPodSandboxId())
}

func (s *runtimeServer) RemovePodSandbox(ctx context.Context, q *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	return &cri.RemovePodSandboxResponse{}, s.r.RemovePodSandbox(ctx, q.GetPodSandboxId())
}

func (s *runtimeServer) PodSandboxStatus(ctx context.Context, q *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return s.r.PodSandboxStatus(ctx, q.GetPodSandboxId(), q.GetVerbose())
}

func (s *runtimeServer) ListPodSandbox(ctx context.Context, q *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	items, err := s.r.ListPodSandbox(ctx, q.GetFilter())
	return &cri.ListPodSandboxResponse{Items: items}, err
}

func (s *runtimeServer) CreateContainer(ctx context.Context, q *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	id, err := s.r.CreateContainer(ctx, q.GetPodSandboxId(), q.GetConfig(), q.GetSandboxConfig())
	return &cri.CreateContainerResponse{ContainerId: id}, err
}

func (s *runtimeServer) StartContainer(ctx context.Context, q *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	return &cri.StartContainerResponse{}, s.r.StartContainer(ctx, q.GetContainerId())
}

func (s *runtimeServer) StopContainer(ctx context.Context, q *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	return &cri.StopContainerResponse{}, s.r.StopContainer(ctx, q.GetContainerId(), q.GetTimeout())
}

func (s *runtimeServer) RemoveContainer(ctx context.Context, q *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	return &cri.RemoveContainerResponse{}, s.r.RemoveContainer(ctx, q.GetContainerId())
}

func (s *runtimeServer) ListContainers(ctx context.Context, q *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	list, err := s.r.ListContainers(ctx, q.GetFilter())
	return &cri.ListContainersResponse{Containers: list}, err
}

func (s *runtimeServer) ContainerStatus(ctx context.Context, q *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return s.r.ContainerStatus(ctx, q.GetContainerId(), q.GetVerbose())
}

func (s *runtimeServer) UpdateContainerResources(ctx context.Context, q *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	return &cri.UpdateContainerResourcesResponse{}, s.r.UpdateContainerResources(ctx, q.GetContainerId(), &cri.ContainerResources{Linux: q.GetLinux()})
}

func (s *runtimeServer) ReopenContainerLog(ctx context.Context, q *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	return &cri.ReopenContainerLogResponse{}, s.r.ReopenContainerLog(ctx, q.GetContainerId())
}

// ExecSync: over the wire a non-zero exit code is an answer, not an error.
func (s *runtimeServer) ExecSync(ctx context.Context, q *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	stdout, stderr, err := s.r.ExecSync(ctx, q.GetContainerId(), q.GetCmd(), time.Duration(q.GetTimeout())*time.Second)
	resp := &cri.ExecSyncResponse{Stdout: stdout, Stderr: stderr}
	var exit utilexec.ExitError
	if errors.As(err, &exit) {
		resp.ExitCode = int32(exit.ExitStatus())
		err = nil
	}
	return resp, err
}

func (s *runtimeServer) Exec(ctx context.Context, q *cri.ExecRequest) (*cri.ExecResponse, error) {
	return s.r.Exec(ctx, q)
}

func (s *runtimeServer) Attach(ctx context.Context, q *cri.AttachRequest) (*cri.AttachResponse, error) {
	return s.r.Attach(ctx, q)
}

func (s *runtimeServer) PortForward(ctx context.Context, q *cri.PortForwardRequest) (*cri.PortForwardResponse, error) {
	return s.r.PortForward(ctx, q)
}

func (s *runtimeServer) ContainerStats(ctx context.Context, q *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	st, err := s.r.ContainerStats(ctx, q.GetContainerId())
	return &cri.ContainerStatsResponse{Stats: st}, err
}

func (s *runtimeServer) ListContainerStats(ctx context.Context, q *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	st, err := s.r.ListContainerStats(ctx, q.GetFilter())
	return &cri.ListContainerStatsResponse{Stats: st}, err
}

func (s *runtimeServer) PodSandboxStats(ctx context.Context, q *cri.PodSandboxStatsRequest) (*cri.PodSandboxStatsResponse, error) {
	st, err := s.r.PodSandboxStats(ctx, q.GetPodSandboxId())
	return &cri.PodSandboxStatsResponse{Stats: st}, err
}

func (s *runtimeServer) ListPodSandboxStats(ctx context.Context, q *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	st, err := s.r.ListPodSandboxStats(ctx, q.GetFilter())
	return &cri.ListPodSandboxStatsResponse{Stats: st}, err
}

func (s *runtimeServer) UpdateRuntimeConfig(ctx context.Context, q *cri.UpdateRuntimeConfigRequest) (*cri.UpdateRuntimeConfigResponse, error) {
	return &cri.UpdateRuntimeConfigResponse{}, s.r.UpdateRuntimeConfig(ctx, q.GetRuntimeConfig())
}

func (s *runtimeServer) Status(ctx context.Context, q *cri.StatusRequest) (*cri.StatusResponse, error) {
	return s.r.Status(ctx, q.GetVerbose())
}

func (s *runtimeServer) CheckpointContainer(ctx context.Context, q *cri.CheckpointContainerRequest) (*cri.CheckpointContainerResponse, error) {
	return nil, s.r.CheckpointContainer(ctx, q)
}

func (s *runtimeServer) RuntimeConfig(ctx context.Context, _ *cri.RuntimeConfigRequest) (*cri.RuntimeConfigResponse, error) {
	return s.r.RuntimeConfig(ctx)
}

func (s *runtimeServer) UpdatePodSandboxResources(ctx context.Context, q *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	return s.r.UpdatePodSandboxResources(ctx, q)
}

func (s *runtimeServer) ListMetricDescriptors(context.Context, *cri.ListMetricDescriptorsRequest) (*cri.ListMetricDescriptorsResponse, error) {
	return &cri.ListMetricDescriptorsResponse{}, nil
}

func (s *runtimeServer) ListPodSandboxMetrics(context.Context, *cri.ListPodSandboxMetricsRequest) (*cri.ListPodSandboxMetricsResponse, error) {
	return &cri.ListPodSandboxMetricsResponse{}, nil
}

func (s *runtimeServer) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	ch := make(chan *cri.ContainerEventResponse)
	sendErr := make(chan error, 1)
	go func() {
		defer cancel()
		for {
			select {
			case e := <-ch:
				if err := stream.Send(e); err != nil {
					sendErr <- err
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	err := s.r.GetContainerEvents(ctx, ch, nil)
	select {
	case err = <-sendErr:
	default:
	}
	if errors.Is(err, context.Canceled) {
		return status.Error(codes.Canceled, err.Error())
	}
	return err
}

type imageServer struct {
	cri.UnimplementedImageServiceServer
	r *Runtime
}

func (s *imageServer) ListImages(ctx context.Context, q *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	list, err := s.r.ListImages(ctx, q.GetFilter())
	return &cri.ListImagesResponse{Images: list}, err
}

func (s *imageServer) ImageStatus(ctx context.Context, q *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	return s.r.ImageStatus(ctx, q.GetImage(), q.GetVerbose())
}

func (s *imageServer) PullImage(ctx context.Context, q *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	ref, err := s.r.PullImage(ctx, q.GetImage(), q.GetAuth(), q.GetSandboxConfig())
	return &cri.PullImageResponse{ImageRef: ref}, err
}

func (s *imageServer) RemoveImage(ctx context.Context, q *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	return &cri.RemoveImageResponse{}, s.r.RemoveImage(ctx, q.GetImage())
}

func (s *imageServer) ImageFsInfo(ctx context.Context, _ *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	return s.r.ImageFsInfo(ctx)
}

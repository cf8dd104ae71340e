package remote

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"
)

// server answers a few calls; the rest is Unimplemented.
type server struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	stopped chan time.Duration // deadlines of StopContainer
}

func (*server) Version(_ context.Context, q *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "test", RuntimeApiVersion: q.Version}, nil
}

func (*server) ListContainers(_ context.Context, q *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: []*cri.Container{{Id: q.GetFilter().GetId()}}}, nil
}

func (*server) ExecSync(_ context.Context, q *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	if q.Timeout != 2 {
		return nil, status.Errorf(codes.InvalidArgument, "timeout %d", q.Timeout)
	}
	return &cri.ExecSyncResponse{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 7}, nil
}

func (s *server) StopContainer(ctx context.Context, _ *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	deadline, _ := ctx.Deadline()
	s.stopped <- time.Until(deadline)
	return &cri.StopContainerResponse{}, nil
}

func (*server) ContainerStatus(context.Context, *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return nil, status.Error(codes.NotFound, "no such container")
}

func (*server) GetContainerEvents(_ *cri.GetEventsRequest, stream grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	for _, id := range []string{"a", "b"} {
		if err := stream.Send(&cri.ContainerEventResponse{ContainerId: id}); err != nil {
			return err
		}
	}
	return nil
}

func (*server) PullImage(ctx context.Context, q *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if _, bounded := ctx.Deadline(); bounded {
		return nil, errors.New("a pull has no deadline of its own")
	}
	return &cri.PullImageResponse{ImageRef: q.Image.Image + "@sha256:0"}, nil
}

func TestCalls(t *testing.T) {
	s := &server{stopped: make(chan time.Duration, 1)}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, s)
	cri.RegisterImageServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	r, err := Dial("unix://"+path, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(t.Context())
	ctx := t.Context()

	if v, err := r.Version(ctx, "v1"); err != nil || v.RuntimeName != "test" || v.RuntimeApiVersion != "v1" {
		t.Errorf("Version: %v, %v", v, err)
	}
	if c, err := r.ListContainers(ctx, &cri.ContainerFilter{Id: "x"}); err != nil || len(c) != 1 || c[0].Id != "x" {
		t.Errorf("ListContainers: %v, %v", c, err)
	}
	stdout, stderr, err := r.ExecSync(ctx, "x", []string{"false"}, 1500*time.Millisecond)
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 7 || string(stdout) != "out" || string(stderr) != "err" {
		t.Errorf("ExecSync: %q, %q, %v", stdout, stderr, err)
	}
	if err := r.StopContainer(ctx, "x", 30); err != nil {
		t.Error(err)
	}
	if left := <-s.stopped; left < 25*time.Second {
		t.Errorf("a stop with 30 s of grace ends after %v", left)
	}
	if _, err := r.ContainerStatus(ctx, "x", false); status.Code(err) != codes.NotFound {
		t.Errorf("ContainerStatus: %v", err)
	}
	if err := r.RemovePodSandbox(ctx, "x"); status.Code(err) != codes.Unimplemented {
		t.Errorf("RemovePodSandbox: %v", err)
	}
	if ref, err := r.PullImage(ctx, &cri.ImageSpec{Image: "i"}, nil, nil); err != nil || ref != "i@sha256:0" {
		t.Errorf("PullImage: %q, %v", ref, err)
	}
	events, connected := make(chan *cri.ContainerEventResponse, 2), false
	err = r.GetContainerEvents(ctx, events, func(cri.RuntimeService_GetContainerEventsClient) { connected = true })
	if err == nil || !connected || len(events) != 2 || (<-events).ContainerId != "a" {
		t.Errorf("GetContainerEvents: %v, connected %v, %d left", err, connected, len(events))
	}
}

func TestNobodyListens(t *testing.T) {
	if _, err := Dial("tcp://127.0.0.1:1", 0); err == nil || !strings.Contains(err.Error(), "is not a unix socket") {
		t.Error(err)
	}
	r, err := Dial(filepath.Join(t.TempDir(), "none"), 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(t.Context())
	if _, err := r.Version(t.Context(), ""); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

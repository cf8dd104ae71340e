package cri

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/skiff-project/skiff/kubelet/logs"
	"github.com/skiff-project/skiff/kubelet/podstate"
)

func typesUID(s string) types.UID { return types.UID(s) }

// Inspector reads pods' state from a runtime.
type Inspector struct {
	Runtime internalapi.RuntimeService
}

// Pod returns what the runtime knows of one pod, newest first. Things removed between listing and
// asking are left out.
func (i Inspector) Pod(ctx context.Context, uid types.UID) (podstate.Runtime, error) {
	var rt podstate.Runtime
	sel := map[string]string{LabelPodUID: string(uid)}
	sandboxes, err := i.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: sel})
	if err != nil {
		return rt, fmt.Errorf("list sandboxes of pod %s: %w", uid, err)
	}
	for _, s := range sandboxes {
		st, err := i.Runtime.PodSandboxStatus(ctx, s.Id, false)
		if crierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return rt, fmt.Errorf("status of sandbox %s: %w", s.Id, err)
		}
		rt.Sandboxes = append(rt.Sandboxes, sandboxOf(st.GetStatus()))
	}
	containers, err := i.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: sel})
	if err != nil {
		return rt, fmt.Errorf("list containers of pod %s: %w", uid, err)
	}
	for _, c := range containers {
		st, err := i.Runtime.ContainerStatus(ctx, c.Id, false)
		if crierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return rt, fmt.Errorf("status of container %s: %w", c.Id, err)
		}
		rt.Containers = append(rt.Containers, containerOf(st.GetStatus(), c.PodSandboxId))
	}
	sort.SliceStable(rt.Sandboxes, func(a, b int) bool { return rt.Sandboxes[a].CreatedAt.After(rt.Sandboxes[b].CreatedAt) })
	sort.SliceStable(rt.Containers, func(a, b int) bool { return newer(&rt.Containers[a], &rt.Containers[b]) })
	return rt, nil
}

func newer(a, b *podstate.Container) bool {
	if a.Name == b.Name && a.RestartCount != b.RestartCount {
		return a.RestartCount > b.RestartCount // clocks may step back
	}
	return a.CreatedAt.After(b.CreatedAt)
}

func sandboxOf(s *runtimeapi.PodSandboxStatus) podstate.Sandbox {
	out := podstate.Sandbox{
		ID: s.GetId(), Ready: s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY,
		Attempt: s.GetMetadata().GetAttempt(), CreatedAt: time.Unix(0, s.GetCreatedAt()),
		HostNetwork: s.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE,
	}
	if n := s.GetNetwork(); n.GetIp() != "" {
		out.IPs = append(out.IPs, n.GetIp())
		for _, a := range n.GetAdditionalIps() {
			out.IPs = append(out.IPs, a.GetIp())
		}
	}
	return out
}

func containerOf(s *runtimeapi.ContainerStatus, sandbox string) podstate.Container {
	ann := s.GetAnnotations()
	hash, _ := strconv.ParseUint(ann[annHash], 16, 64)
	restarts, _ := strconv.Atoi(ann[annRestartCount])
	c := podstate.Container{
		ID: s.GetId(), Name: s.GetLabels()[LabelContainerName], SandboxID: sandbox,
		Image: s.GetImage().GetImage(), ImageRef: s.GetImageRef(), Hash: hash, RestartCount: int32(restarts),
		CreatedAt: time.Unix(0, s.GetCreatedAt()), LogPath: s.GetLogPath(), Resources: resourcesOf(s.GetResources().GetLinux()),
	}
	if u := s.GetImage().GetUserSpecifiedImage(); u != "" {
		c.Image = u
	}
	if l := s.GetUser().GetLinux(); l != nil {
		c.User = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: l.Uid, GID: l.Gid, SupplementalGroups: l.SupplementalGroups}}
	}
	switch s.GetState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		c.State = podstate.Created
		return c
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		c.State = podstate.Running
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		c.State = podstate.Exited
		c.FinishedAt = time.Unix(0, s.GetFinishedAt())
		c.ExitCode, c.Reason, c.Message = s.GetExitCode(), s.GetReason(), s.GetMessage()
		if t := terminationMessage(s); t != "" {
			if c.Message != "" {
				c.Message += ": "
			}
			c.Message += t
		}
	default:
		c.State = podstate.Unknown
	}
	c.StartedAt = time.Unix(0, s.GetStartedAt())
	return c
}

func resourcesOf(r *runtimeapi.LinuxContainerResources) *podstate.Resources {
	if r == nil {
		return nil
	}
	out := &podstate.Resources{}
	set := func(dst **int64, v int64) {
		if v != 0 {
			*dst = &v
		}
	}
	set(&out.CPUShares, r.CpuShares)
	set(&out.CPUQuota, r.CpuQuota)
	set(&out.CPUPeriod, r.CpuPeriod)
	set(&out.MemoryLimit, r.MemoryLimitInBytes)
	return out
}

// terminationMessage reads what the container left in its termination file, or the tail of its log
// if it failed, left nothing and the policy asks for that.
func terminationMessage(s *runtimeapi.ContainerStatus) string {
	ann := s.GetAnnotations()
	fallback := ann[annTermPolicy] == string(v1.TerminationMessageFallbackToLogsOnError) &&
		s.GetExitCode() != 0 && s.GetReason() != "ContainerCannotRun"
	if path := ann[annTermPath]; path != "" {
		for _, m := range s.GetMounts() {
			if m.GetContainerPath() != path {
				continue
			}
			data, err := readLast(m.GetHostPath(), terminationLimit)
			if err == nil && len(data) > 0 {
				return string(data)
			}
			if err != nil && !os.IsNotExist(err) {
				return fmt.Sprintf("Error on reading termination log %s: %v", m.GetHostPath(), err)
			}
			break
		}
	}
	if !fallback || s.GetLogPath() == "" {
		return ""
	}
	text, err := logs.LastLines(s.GetLogPath(), terminationLines, terminationLimit)
	if err != nil {
		return fmt.Sprintf("Error on reading termination message from logs: %v", err)
	}
	return text
}

// readLast reads at most the last n bytes of a file.
func readLast(path string, n int64) ([]byte, error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, n))
}

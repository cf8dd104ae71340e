package cri

import (
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// PodLogDir is the folder of a pod's container logs: <root>/<namespace>_<name>_<uid>.
func PodLogDir(root string, pod *v1.Pod) string {
	return filepath.Join(root, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// LogPath is a container's log file, relative to its pod's log folder.
func LogPath(container string, restarts int32) string {
	return filepath.Join(container, strconv.Itoa(int(restarts))+".log")
}

// SandboxOptions are the parts of a sandbox configuration that do not come from the pod alone.
type SandboxOptions struct {
	Attempt      uint32
	Hostname     string // "" for host network
	LogRoot      string
	DNS          *runtimeapi.DNSConfig
	CgroupParent string
}

// SandboxConfig is the pod's sandbox as the runtime wants it.
func SandboxConfig(pod *v1.Pod, o SandboxOptions) *runtimeapi.PodSandboxConfig {
	sc := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(pod),
		Privileged:       anyPrivileged(pod),
		Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	sc.SupplementalGroups, sc.SupplementalGroupsPolicy = supplemental(pod)
	sysctls := map[string]string{}
	if p := pod.Spec.SecurityContext; p != nil {
		for _, s := range p.Sysctls {
			sysctls[s.Name] = s.Value
		}
		if p.RunAsUser != nil {
			sc.RunAsUser = &runtimeapi.Int64Value{Value: *p.RunAsUser}
		}
		if p.RunAsGroup != nil {
			sc.RunAsGroup = &runtimeapi.Int64Value{Value: *p.RunAsGroup}
		}
		sc.SelinuxOptions = selinux(p.SELinuxOptions)
	}
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: o.Attempt},
		Hostname: o.Hostname, LogDirectory: PodLogDir(o.LogRoot, pod), DnsConfig: o.DNS,
		Labels: podLabels(pod), Annotations: pod.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: o.CgroupParent, SecurityContext: sc, Sysctls: sysctls},
	}
	all := pod.Spec.Containers
	for i := range pod.Spec.InitContainers {
		if podstate.IsSidecar(&pod.Spec.InitContainers[i]) {
			all = append(all[:len(all):len(all)], pod.Spec.InitContainers[i])
		}
	}
	for i := range all {
		for _, p := range all[i].Ports {
			proto, ok := runtimeapi.Protocol_value[string(p.Protocol)]
			if !ok {
				proto = int32(runtimeapi.Protocol_TCP)
			}
			cfg.PortMappings = append(cfg.PortMappings, &runtimeapi.PortMapping{Protocol: runtimeapi.Protocol(proto),
				ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP})
		}
	}
	return cfg
}

func anyPrivileged(pod *v1.Pod) bool {
	is := func(sc *v1.SecurityContext) bool { return sc != nil && sc.Privileged != nil && *sc.Privileged }
	for i := range pod.Spec.Containers {
		if is(pod.Spec.Containers[i].SecurityContext) {
			return true
		}
	}
	for i := range pod.Spec.InitContainers {
		if is(pod.Spec.InitContainers[i].SecurityContext) {
			return true
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if is(pod.Spec.EphemeralContainers[i].SecurityContext) {
			return true
		}
	}
	return false
}

// ContainerOptions are the parts of a container configuration resolved outside this package.
type ContainerOptions struct {
	Restarts    int32
	ImageRef    string // what PullImage or ImageStatus returned
	ImageUID    *int64 // user of the image: number, or name
	ImageUser   string
	Env         []EnvVar
	Command     []string // after expansion
	Args        []string
	Mounts      []*runtimeapi.Mount
	TargetID    string // container whose process namespace an ephemeral container joins
	SeccompRoot string
	MemoryBytes int64 // of the node
}

// EnvVar is one variable of a container's environment.
type EnvVar struct{ Name, Value string }

// ContainerConfig is the container as the runtime wants it. It fails when a security setting is
// not understood or contradicts another.
func ContainerConfig(pod *v1.Pod, c *v1.Container, o ContainerOptions) (*runtimeapi.ContainerConfig, error) {
	if err := VerifyNonRoot(pod, c, o.ImageUID, o.ImageUser); err != nil {
		return nil, err
	}
	sc, err := securityContext(pod, c, &o)
	if err != nil {
		return nil, err
	}
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(o.Restarts)},
		Image:    &runtimeapi.ImageSpec{Image: o.ImageRef, UserSpecifiedImage: c.Image},
		Command:  o.Command, Args: o.Args, WorkingDir: c.WorkingDir, Mounts: o.Mounts,
		Labels: containerLabels(pod, c), Annotations: containerAnnotations(pod, c, o.Restarts),
		LogPath: LogPath(c.Name, o.Restarts), Stdin: c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: ContainerResources(pod, c, o.MemoryBytes), SecurityContext: sc},
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if s, ok := runtimeapi.Signal_value[string(*c.Lifecycle.StopSignal)]; ok {
			cfg.StopSignal = runtimeapi.Signal(s)
		}
	}
	for _, e := range o.Env {
		cfg.Envs = append(cfg.Envs, &runtimeapi.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	return cfg, nil
}

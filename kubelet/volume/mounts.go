package volume

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/kubelet/env"
)

// MountOptions are what container mounts depend on besides the volumes.
type MountOptions struct {
	Vars   map[string]string // for subPathExpr
	Images map[string]string // image volumes: volume name → image reference the runtime resolved
	RRO    bool              // the runtime can make mounts recursively read-only
}

// ContainerMounts are the container's volume mounts for the runtime. Sub-paths are resolved inside
// their volume without following a link out of it, and pinned by a bind mount.
func (p *Pod) ContainerMounts(c *v1.Container, o MountOptions) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for i := range c.VolumeMounts {
		m, err := p.containerMount(c, i, o)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	for _, d := range c.VolumeDevices {
		return nil, fmt.Errorf("volumeDevices (%s): raw block volumes are not supported by this node", d.Name)
	}
	return out, nil
}

func (p *Pod) containerMount(c *v1.Container, i int, o MountOptions) (*runtimeapi.Mount, error) {
	vm := &c.VolumeMounts[i]
	v, ok := p.volumes[vm.Name]
	if !ok {
		return nil, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, c.Name)
	}
	prop, err := propagation(vm.MountPropagation)
	if err != nil {
		return nil, err
	}
	rro, err := recursive(vm, o.RRO)
	if err != nil {
		return nil, fmt.Errorf("failed to resolve recursive read-only mode: %w", err)
	}
	path := vm.MountPath
	if !filepath.IsAbs(path) {
		path = "/" + path
	}
	m := &runtimeapi.Mount{ContainerPath: path, HostPath: v.Path(), Readonly: vm.ReadOnly || v.ReadOnly(),
		Propagation: prop, RecursiveReadOnly: rro}
	sub, err := subPath(vm, c.Name, o.Vars)
	if err != nil {
		return nil, err
	}
	if _, image := v.(*imageVolume); image {
		m.HostPath, m.Image, m.ImageSubPath = "", &runtimeapi.ImageSpec{Image: o.Images[vm.Name]}, sub
		return m, nil
	}
	if sub != "" {
		target := filepath.Join(p.host.PodDir(string(p.pod.UID)), "volume-subpaths", vm.Name, c.Name, strconv.Itoa(i))
		if m.HostPath, err = bindSubPath(v.Path(), sub, target); err != nil {
			// The cause may tell of the node's file system: it is not passed on to the user.
			return nil, &SubPathError{vm.Name, c.Name, err}
		}
	}
	return m, nil
}

// SubPathError hides from the pod's owner why a sub-path could not be used; Unwrap has it.
type SubPathError struct {
	Volume, Container string
	Err               error
}

func (e *SubPathError) Error() string {
	return fmt.Sprintf("failed to prepare subPath for volumeMount %q of container %q", e.Volume, e.Container)
}

// Unwrap gives the cause, for the log.
func (e *SubPathError) Unwrap() error { return e.Err }

func subPath(vm *v1.VolumeMount, container string, vars map[string]string) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		missing := ""
		sub = env.Expand(vm.SubPathExpr, func(name string) (string, bool) {
			v, ok := vars[name]
			if !ok {
				missing = name
			}
			return v, ok
		})
		if missing != "" {
			return "", fmt.Errorf("missing value for %q", missing)
		}
		if sub == "" {
			return "", nil
		}
	}
	if sub == "" {
		return "", nil
	}
	if filepath.IsAbs(sub) {
		return "", fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
	}
	if slices.Contains(strings.Split(sub, "/"), "..") {
		return "", fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
	}
	return sub, nil
}

func propagation(m *v1.MountPropagationMode) (runtimeapi.MountPropagation, error) {
	if m == nil {
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	}
	switch *m {
	case v1.MountPropagationNone:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	case v1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case v1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	}
	return 0, fmt.Errorf("invalid MountPropagation mode: %q", *m)
}

func recursive(vm *v1.VolumeMount, supported bool) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !vm.ReadOnly {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not read-only", vm.Name)
	}
	if vm.MountPropagation != nil && *vm.MountPropagation != v1.MountPropagationNone {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not compatible with propagation %q", vm.Name, *vm.MountPropagation)
	}
	if *vm.RecursiveReadOnly == v1.RecursiveReadOnlyEnabled && !supported {
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not supported by the runtime", vm.Name)
	}
	return supported, nil
}

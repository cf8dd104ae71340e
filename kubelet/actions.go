package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	grpcstatus "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/skiff-project/skiff/kubelet/cri"
	"github.com/skiff-project/skiff/kubelet/env"
	"github.com/skiff-project/skiff/kubelet/objects"
	"github.com/skiff-project/skiff/kubelet/podnet"
	"github.com/skiff-project/skiff/kubelet/podstate"
	"github.com/skiff-project/skiff/kubelet/podworker"
	"github.com/skiff-project/skiff/kubelet/probe"
	"github.com/skiff-project/skiff/kubelet/volume"
)

func failed(err error) podworker.Result {
	if err == nil {
		return podworker.Result{}
	}
	return podworker.Result{Reason: "Error", Message: text(err)}
}

// text is an error without the wrapping of gRPC.
func text(err error) string {
	if s, ok := grpcstatus.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// do executes one action of the machine.
func (w *worker) do(ctx context.Context, a podworker.Action) podworker.Result {
	k := w.k
	switch a.Kind {
	case podworker.Mount:
		return failed(w.mount(ctx))
	case podworker.CreateSandbox:
		return failed(w.createSandbox(ctx, a.Attempt))
	case podworker.StopSandbox:
		err := k.cfg.Runtime.StopPodSandbox(ctx, a.ID)
		if crierrors.IsNotFound(err) {
			err = nil
		}
		if err != nil && ctx.Err() == nil {
			w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "FailedKillPod", Message: "error killing pod: failed to \"KillPodSandbox\" for " +
				strconv.Quote(string(w.uid)) + " with KillPodSandboxError: " + strconv.Quote(text(err))})
		}
		return failed(err)
	case podworker.Start:
		return w.start(ctx, a.Container)
	case podworker.PreStop:
		w.preStop(ctx, a)
		return podworker.Result{}
	case podworker.Stop:
		err := k.cfg.Runtime.StopContainer(ctx, a.ID, a.Grace)
		if crierrors.IsNotFound(err) {
			err = nil
		}
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("cannot stop a container; it is tried again", "container", a.ID, "err", err)
		}
		return failed(err)
	case podworker.Resize:
		return failed(w.resize(ctx))
	case podworker.Cleanup:
		return failed(w.cleanup())
	case podworker.DeletePod:
		return failed(w.deletePod(ctx))
	case podworker.Purge:
		return failed(w.purge(ctx))
	}
	return failed(fmt.Errorf("unknown action %q", a.Kind))
}

func (w *worker) mount(ctx context.Context) error {
	k, pod := w.k, w.current()
	k.objects.Register(w.uid, objects.Refs(pod))
	if err := k.cgroups.Ensure(pod); err != nil {
		w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "FailedCreatePodContainer", Message: "unable to ensure pod container exists: " + err.Error()})
		return err
	}
	dir := k.volumes.PodDir(string(w.uid))
	for _, sub := range []string{"", "volumes", "containers"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o750); err != nil {
			w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "Failed", Message: "error making pod data directories: " + err.Error()})
			return err
		}
	}
	w.volMu.Lock()
	defer w.volMu.Unlock()
	vols, err := k.volumes.Mount(ctx, w.vols, pod, w.podIPs())
	if err != nil {
		if ctx.Err() == nil {
			w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "FailedMount", Message: err.Error()})
		}
		return err
	}
	w.vols = vols
	return nil
}

// hostname is the pod's short name, domain, and the name its kernel gets.
func (k *Kubelet) hostname(pod *v1.Pod) (short, domain, kernel string, err error) {
	if short, domain, err = podnet.Hostname(pod, k.cfg.ClusterDomain); err != nil {
		return
	}
	kernel, err = podnet.KernelHostname(short, domain, pod.Spec.SetHostnameAsFQDN)
	return
}

func (k *Kubelet) sandboxConfig(w *worker, pod *v1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	_, _, kernel, err := k.hostname(pod)
	if err != nil {
		return nil, err
	}
	if pod.Spec.HostNetwork {
		kernel = ""
	}
	r := podnet.Resolver{ClusterDNS: k.cfg.ClusterDNS, ClusterDomain: k.cfg.ClusterDomain, NoHost: *k.cfg.ResolvConf == ""}
	if !r.NoHost {
		if f, err := os.Open(*k.cfg.ResolvConf); err == nil {
			host, perr := podnet.ParseResolvConf(f)
			f.Close()
			if perr != nil {
				return nil, perr
			}
			r.Host.Servers, r.Host.Searches, r.Host.Options = host.Servers, host.Searches, host.Options
		} else if !os.IsNotExist(err) {
			return nil, fmt.Errorf("read the node's resolv.conf: %w", err)
		}
	}
	dns, warnings := r.DNS(pod)
	if w != nil { // told once, when the sandbox is made
		for reason, message := range warnings {
			w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: reason, Message: message})
		}
	}
	return cri.SandboxConfig(pod, cri.SandboxOptions{Attempt: attempt, Hostname: kernel, LogRoot: k.cfg.LogDir, DNS: dns,
		CgroupParent: k.cgroups.Parent(pod)}), nil
}

func (w *worker) createSandbox(ctx context.Context, attempt uint32) error {
	k, pod := w.k, w.current()
	cfg, err := k.sandboxConfig(w, pod, attempt)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.LogDirectory, 0o755); err != nil {
		return err
	}
	handler, err := k.runtimeHandler(ctx, pod)
	if err == nil {
		_, err = k.cfg.Runtime.RunPodSandbox(ctx, cfg, handler)
	}
	if err != nil {
		//lint:ignore ST1005 the text is upstream's
		return fmt.Errorf("Failed to create sandbox for pod %q: %s", podstate.Format(pod), text(err))
	}
	return nil
}

func (k *Kubelet) runtimeHandler(ctx context.Context, pod *v1.Pod) (string, error) {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	rc, err := k.cfg.Client.NodeV1().RuntimeClasses().Get(ctx, *name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", fmt.Errorf("RuntimeClass %q not found: %w", *name, err)
	}
	if err != nil {
		return "", fmt.Errorf("failed to get RuntimeClass %s: %w", *name, err)
	}
	return rc.Handler, nil
}

// startError is a failed step of a start: the waiting reason and its message.
type startError struct{ reason, message string }

func (e *startError) Error() string { return e.message }

func stepError(reason string, err error) error { return &startError{reason, text(err)} }

// start brings one container up: image, configuration, create, start, postStart hook.
func (w *worker) start(ctx context.Context, name string) podworker.Result {
	pod := w.current()
	c := podstate.FindContainer(pod, name)
	if c == nil {
		return podworker.Result{Reason: "CreateContainerConfigError", Message: "no such container in the pod"}
	}
	err := w.startContainer(ctx, pod, c)
	var se *startError
	switch {
	case err == nil:
		return podworker.Result{}
	case errors.As(err, &se):
		return podworker.Result{Reason: se.reason, Message: se.message}
	}
	return podworker.Result{Reason: "CreateContainerError", Message: text(err)}
}

func (w *worker) startContainer(ctx context.Context, pod *v1.Pod, c *v1.Container) error {
	k := w.k
	rt := w.runtime()
	if len(rt.Sandboxes) == 0 {
		return stepError("CreateContainerConfigError", errors.New("the pod has no sandbox"))
	}
	sandbox := rt.Sandboxes[0]
	warn := func(err error) error {
		if ctx.Err() == nil {
			w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "Failed", Message: "Error: " + text(err), Container: c.Name})
		}
		return err
	}
	sandboxCfg, err := k.sandboxConfig(nil, pod, sandbox.Attempt)
	if err != nil {
		return stepError("CreateContainerConfigError", warn(err))
	}
	image, err := k.pulls.ensure(ctx, w, pod, c.Name, c.Image, c.ImagePullPolicy, sandboxCfg)
	if err != nil {
		var se *startError
		if errors.As(err, &se) && ctx.Err() == nil {
			w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "Failed", Message: "Error: " + se.reason, Container: c.Name})
		}
		return err
	}
	cfg, err := w.containerConfig(ctx, pod, c, image, &rt, sandboxCfg)
	if err != nil {
		return stepError("CreateContainerConfigError", warn(err))
	}
	id, err := k.cfg.Runtime.CreateContainer(ctx, sandbox.ID, cfg, sandboxCfg)
	if err != nil {
		return stepError("CreateContainerError", warn(err))
	}
	w.event(podworker.Event{Type: v1.EventTypeNormal, Reason: "Created", Message: "Container created", Container: c.Name})
	if err := k.cfg.Runtime.StartContainer(ctx, id); err != nil {
		return stepError("RunContainerError", warn(err))
	}
	w.event(podworker.Event{Type: v1.EventTypeNormal, Reason: "Started", Message: "Container started", Container: c.Name})
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return nil
	}
	return w.postStart(ctx, pod, c, id)
}

func (w *worker) postStart(ctx context.Context, pod *v1.Pod, c *v1.Container, id string) error {
	w.runtimeChanged()
	msg, err := w.k.prober.Hook(ctx, c.Lifecycle.PostStart, w.target(pod, c, id))
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return stepError("PostStartHookError", err)
	}
	w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "FailedPostStartHook", Message: "PostStartHook failed", Container: c.Name})
	w.event(podworker.Event{Type: v1.EventTypeNormal, Reason: "Killing", Message: "FailedPostStartHook", Container: c.Name})
	grace := int64(2)
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = max(grace, *pod.Spec.TerminationGracePeriodSeconds)
	}
	if err := w.k.cfg.Runtime.StopContainer(ctx, id, grace); err != nil {
		w.k.cfg.Log.Warn("cannot stop a container whose postStart hook failed", "container", id, "err", err)
	}
	return &startError{"PostStartHookError", msg}
}

func (w *worker) target(pod *v1.Pod, c *v1.Container, id string) probe.Target {
	t := probe.Target{Pod: pod, Container: c, ContainerID: id}
	if ips := w.podIPs(); len(ips) > 0 {
		t.PodIP = ips[0]
	}
	return t
}

// containerConfig resolves everything a container's configuration needs.
func (w *worker) containerConfig(ctx context.Context, pod *v1.Pod, c *v1.Container, image image, rt *podstate.Runtime, sandboxCfg *runtimeapi.PodSandboxConfig) (*runtimeapi.ContainerConfig, error) {
	k := w.k
	vars, err := k.environment(w, pod, c)
	if err != nil {
		return nil, err
	}
	byName := env.Map(vars)
	images, err := w.imageVolumes(ctx, pod, c, sandboxCfg)
	if err != nil {
		return nil, err
	}
	w.volMu.Lock()
	vols := w.vols
	var mounts []*runtimeapi.Mount
	if vols == nil {
		err = errors.New("the pod's volumes are not mounted")
	} else {
		mounts, err = vols.ContainerMounts(c, volume.MountOptions{Vars: byName, Images: images, RRO: k.rro.Load()})
	}
	w.volMu.Unlock()
	if err != nil {
		var sp *volume.SubPathError
		if errors.As(err, &sp) {
			k.cfg.Log.Warn("subPath refused", "pod", podstate.Format(pod), "container", c.Name, "err", sp.Err)
		}
		return nil, err
	}
	own, err := w.ownMounts(pod, c)
	if err != nil {
		return nil, err
	}
	o := cri.ContainerOptions{Restarts: w.restarts(pod, c, rt), ImageRef: image.ref, ImageUID: image.uid, ImageUser: image.user,
		Command: env.ExpandAll(c.Command, byName), Args: env.ExpandAll(c.Args, byName), Mounts: append(mounts, own...),
		SeccompRoot: k.cfg.SeccompRoot, MemoryBytes: k.memory}
	for _, v := range vars {
		o.Env = append(o.Env, cri.EnvVar(v))
	}
	if o.TargetID, err = targetContainer(pod, c.Name, rt); err != nil {
		return nil, err
	}
	cfg, err := cri.ContainerConfig(pod, c, o)
	if err != nil {
		return nil, err
	}
	return cfg, os.MkdirAll(filepath.Dir(filepath.Join(sandboxCfg.LogDirectory, cfg.LogPath)), 0o755)
}

// targetContainer is the running container whose processes an ephemeral container shall see.
func targetContainer(pod *v1.Pod, name string, rt *podstate.Runtime) (string, error) {
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		if e.Name != name || e.TargetContainerName == "" {
			continue
		}
		t := rt.Latest(e.TargetContainerName)
		if t == nil || t.State != podstate.Running {
			return "", fmt.Errorf("unable to find target container %s", e.TargetContainerName)
		}
		return t.ID, nil
	}
	return "", nil
}

// restarts is the new container's restart count: one more than the last one's, also when only its
// logs are left of that.
func (w *worker) restarts(pod *v1.Pod, c *v1.Container, rt *podstate.Runtime) int32 {
	if l := rt.Latest(c.Name); l != nil {
		return l.RestartCount + 1
	}
	entries, _ := os.ReadDir(filepath.Join(cri.PodLogDir(w.k.cfg.LogDir, pod), c.Name))
	count := int32(0)
	for _, e := range entries {
		n, _, _ := strings.Cut(e.Name(), ".")
		if i, err := strconv.Atoi(n); err == nil && int32(i)+1 > count {
			count = int32(i) + 1
		}
	}
	return count
}

func (k *Kubelet) environment(w *worker, pod *v1.Pod, c *v1.Container) ([]env.Var, error) {
	if !podstate.IsStatic(pod) && !k.services.HasSynced() {
		return nil, errors.New("services have not yet been read at least once, cannot construct envvars")
	}
	services, err := k.serviceLists.Services(pod.Namespace).List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("failed to list services when setting up env vars: %w", err)
	}
	if s, err := k.serviceLists.Services(metav1.NamespaceDefault).Get("kubernetes"); err == nil && pod.Namespace != metav1.NamespaceDefault {
		services = append(services, s)
	}
	return env.Make(pod, c, env.Sources{ConfigMap: k.objects.ConfigMap, Secret: k.objects.Secret, Services: services,
		PodIPs: w.podIPs(), Node: k.envNode(), File: w.envFile})
}

// ownMounts are the files the kubelet itself gives a container: /etc/hosts and the termination log.
func (w *worker) ownMounts(pod *v1.Pod, c *v1.Container) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	hosts := true
	for _, m := range c.VolumeMounts {
		hosts = hosts && filepath.Clean(m.MountPath) != "/etc/hosts"
	}
	ips := w.podIPs()
	if hosts && len(ips) > 0 {
		path, err := w.hostsFile(pod, ips)
		if err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: path})
	}
	if c.TerminationMessagePath != "" {
		dir := filepath.Join(w.k.volumes.PodDir(string(w.uid)), "containers", c.Name)
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, err
		}
		f, err := os.CreateTemp(dir, "")
		if err != nil {
			return nil, fmt.Errorf("make termination log: %w", err)
		}
		f.Close()
		if err := os.Chmod(f.Name(), 0o666); err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{ContainerPath: c.TerminationMessagePath, HostPath: f.Name()})
	}
	return out, nil
}

func (w *worker) hostsFile(pod *v1.Pod, ips []string) (string, error) {
	short, domain, _, err := w.k.hostname(pod)
	if err != nil {
		return "", err
	}
	var nodeHosts []byte
	if pod.Spec.HostNetwork {
		if nodeHosts, err = os.ReadFile("/etc/hosts"); err != nil && !os.IsNotExist(err) {
			return "", err
		}
	}
	path := filepath.Join(w.k.volumes.PodDir(string(w.uid)), "etc-hosts")
	// In place, as containers have this very file mounted.
	if err := os.WriteFile(path, podnet.Hosts(pod, ips, short, domain, nodeHosts), 0o644); err != nil {
		return "", fmt.Errorf("write hosts file: %w", err)
	}
	return path, os.Chmod(path, 0o644)
}

func (w *worker) preStop(ctx context.Context, a podworker.Action) {
	pod := w.current()
	c := podstate.FindContainer(pod, a.Container)
	if c == nil || c.Lifecycle == nil || c.Lifecycle.PreStop == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(a.Grace)*time.Second)
	defer cancel()
	if _, err := w.k.prober.Hook(ctx, c.Lifecycle.PreStop, w.target(pod, c, a.ID)); err != nil {
		w.event(podworker.Event{Type: v1.EventTypeWarning, Reason: "FailedPreStopHook", Message: "PreStopHook failed", Container: c.Name})
	}
}

func (w *worker) cleanup() error {
	w.volMu.Lock()
	w.vols = nil
	w.volMu.Unlock()
	if err := w.k.volumes.Remove(string(w.uid)); err != nil {
		w.k.cfg.Log.Warn("cannot remove a pod's volumes; it is tried again", "err", err)
		return err
	}
	if err := w.k.cgroups.Remove(w.uid); err != nil {
		w.k.cfg.Log.Warn("cannot remove a pod's cgroup; it is tried again", "err", err)
		return err
	}
	return nil
}

// deletePod publishes the last status and then ends the API object's life.
func (w *worker) deletePod(ctx context.Context) error {
	pod := w.current()
	if err := w.k.statuses.flush(ctx, pod.UID); err != nil {
		return err
	}
	zero := int64(0)
	err := w.k.cfg.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero,
		Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		err = nil // it is gone, or its name belongs to a new pod
	}
	if err != nil && ctx.Err() == nil {
		w.k.cfg.Log.Warn("cannot delete a pod that has ended; it is tried again", "pod", podstate.Format(pod), "err", err)
	}
	return err
}

// purge removes every trace of the pod from the node.
func (w *worker) purge(ctx context.Context) error {
	k, pod := w.k, w.current()
	rt := w.runtime()
	for _, c := range rt.Containers {
		if err := k.cfg.Runtime.RemoveContainer(ctx, c.ID); err != nil && !crierrors.IsNotFound(err) {
			return fmt.Errorf("remove container %s: %w", c.ID, err)
		}
	}
	for _, s := range rt.Sandboxes {
		if err := k.cfg.Runtime.RemovePodSandbox(ctx, s.ID); err != nil && !crierrors.IsNotFound(err) {
			return fmt.Errorf("remove sandbox %s: %w", s.ID, err)
		}
	}
	if err := os.RemoveAll(cri.PodLogDir(k.cfg.LogDir, pod)); err != nil {
		return err
	}
	return k.volumes.RemoveDir(string(w.uid))
}

func (k *Kubelet) execSync(ctx context.Context, id string, cmd []string, timeout time.Duration) ([]byte, error) {
	out, errOut, err := k.cfg.Runtime.ExecSync(ctx, id, cmd, timeout)
	return append(out, errOut...), err
}

// containerPID asks the runtime for a container's first process; 0 if it does not tell.
func (k *Kubelet) containerPID(ctx context.Context, id string) int {
	resp, err := k.cfg.Runtime.ContainerStatus(ctx, id, true)
	if err != nil {
		return 0
	}
	var info struct {
		PID int `json:"pid"`
	}
	if json.Unmarshal([]byte(resp.GetInfo()["info"]), &info) != nil {
		return 0
	}
	return info.PID
}

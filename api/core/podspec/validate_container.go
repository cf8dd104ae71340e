package podspec

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

// podScope is what the checks of one container need to know of its pod.
type podScope struct {
	spec    *corev1.PodSpec
	volumes map[string]*corev1.VolumeSource
	claims  sets.Set[string]
	isPod   bool // a pod itself, no template
}

func (s *podScope) hostUsers() bool { return s.spec.HostUsers == nil || *s.spec.HostUsers }

// check checks what containers of every sort have in common.
func (s *podScope) check(l *check.List, p *field.Path, c *corev1.Container) {
	if c.Name == "" {
		l.Required(p.Child("name"), "")
	} else {
		l.Label(p.Child("name"), c.Name)
	}
	if c.Image == "" {
		l.Required(p.Child("image"), "")
	}
	check.Choice(l, p.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)
	checkContainerPorts(l, p.Child("ports"), c.Ports)
	checkEnv(l, p.Child("env"), c.Env)
	checkEnvFrom(l, p.Child("envFrom"), c.EnvFrom)
	s.checkMounts(l, p.Child("volumeMounts"), c)
	s.checkDevices(l, p.Child("volumeDevices"), c)
	check.Choice(l, p.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	checkRequirements(l, p.Child("resources"), &c.Resources, CheckContainerResourceName, s.claims)
	checkResizePolicy(l, p.Child("resizePolicy"), c.ResizePolicy, s.spec.RestartPolicy)
	checkSecurityContext(l, p.Child("securityContext"), c.SecurityContext, s.hostUsers())
}

func (s *podScope) checkContainers(l *check.List, p *field.Path) {
	containers := s.spec.Containers
	if len(containers) == 0 {
		l.Required(p, "")
		return
	}
	names := sets.Set[string]{}
	for i := range containers {
		c, at := &containers[i], p.Index(i)
		s.check(l, at, c)
		if names.Has(c.Name) {
			l.Duplicate(at.Child("name"), c.Name)
		}
		names.Insert(c.Name)
		s.checkRunning(l, at, c)
		checkRestartRules(l, at, c)
	}
	checkHostPorts(l, p, containers)
}

// checkRunning checks the hooks and probes of a container that keeps running.
func (s *podScope) checkRunning(l *check.List, p *field.Path, c *corev1.Container) {
	grace := s.spec.TerminationGracePeriodSeconds
	if h := c.Lifecycle; h != nil {
		at := p.Child("lifecycle")
		if h.PostStart != nil {
			checkHandler(l, at.Child("postStart"), handler{h.PostStart.Exec, h.PostStart.HTTPGet, h.PostStart.TCPSocket, nil, h.PostStart.Sleep}, grace)
		}
		if h.PreStop != nil {
			checkHandler(l, at.Child("preStop"), handler{h.PreStop.Exec, h.PreStop.HTTPGet, h.PreStop.TCPSocket, nil, h.PreStop.Sleep}, grace)
		}
	}
	checkProbe(l, p.Child("livenessProbe"), c.LivenessProbe, grace)
	checkProbe(l, p.Child("readinessProbe"), c.ReadinessProbe, grace)
	checkProbe(l, p.Child("startupProbe"), c.StartupProbe, grace)
}

func (s *podScope) checkInitContainers(l *check.List, p *field.Path) {
	names := sets.Set[string]{}
	for _, c := range s.spec.Containers {
		names.Insert(c.Name)
	}
	for i := range s.spec.InitContainers {
		c, at := &s.spec.InitContainers[i], p.Index(i)
		s.check(l, at, c)
		checkRestartRules(l, at, c)
		if names.Has(c.Name) {
			l.Duplicate(at.Child("name"), c.Name)
		} else if c.Name != "" {
			names.Insert(c.Name)
		}
		checkHostPorts(l, p, s.spec.InitContainers[i:i+1])
		if IsSidecar(c) {
			s.checkRunning(l, at, c)
			continue
		}
		const only = "may not be set for init containers without restartPolicy=Always"
		l.ForbidIf(at.Child("lifecycle"), c.Lifecycle != nil, only)
		l.ForbidIf(at.Child("livenessProbe"), c.LivenessProbe != nil, only)
		l.ForbidIf(at.Child("readinessProbe"), c.ReadinessProbe != nil, only)
		l.ForbidIf(at.Child("startupProbe"), c.StartupProbe != nil, only)
		for j, r := range c.ResizePolicy {
			if r.RestartPolicy == corev1.RestartContainer {
				l.Invalid(at.Child("resizePolicy").Index(j).Child("restartPolicy"), r.RestartPolicy, "must not be set to 'RestartContainer' for non-sidecar initContainers")
			}
		}
	}
}

// ephemeralFields are the fields a debugging container may have.
var ephemeralFields = sets.New("Name", "Image", "Command", "Args", "WorkingDir", "EnvFrom", "Env", "VolumeMounts",
	"VolumeDevices", "TerminationMessagePath", "TerminationMessagePolicy", "ImagePullPolicy", "SecurityContext",
	"Stdin", "StdinOnce", "TTY")

func (s *podScope) checkEphemeralContainers(l *check.List, p *field.Path) {
	others := sets.Set[string]{}
	for _, list := range [][]corev1.Container{s.spec.Containers, s.spec.InitContainers} {
		for _, c := range list {
			others.Insert(c.Name)
		}
	}
	names := others.Clone()
	const not = "cannot be set for an Ephemeral Container"
	for i := range s.spec.EphemeralContainers {
		e, at := &s.spec.EphemeralContainers[i], p.Index(i)
		c := (*corev1.Container)(&e.EphemeralContainerCommon)
		s.check(l, at, c)
		CheckImageSpace(l, at, c)
		if names.Has(e.Name) {
			l.Duplicate(at.Child("name"), e.Name)
		}
		names.Insert(e.Name)
		if e.TargetContainerName != "" && !others.Has(e.TargetContainerName) {
			l.NotFound(at.Child("targetContainerName"), e.TargetContainerName)
		}
		checkAllowed(l, at, e.EphemeralContainerCommon, ephemeralFields, not)
		for j, m := range e.VolumeMounts {
			l.ForbidIf(at.Child("volumeMounts").Index(j).Child("subPath"), m.SubPath != "", not)
			l.ForbidIf(at.Child("volumeMounts").Index(j).Child("subPathExpr"), m.SubPathExpr != "", not)
		}
	}
}

// checkAllowed forbids every set field of a struct that is not allowed.
func checkAllowed(l *check.List, p *field.Path, value any, allowed sets.Set[string], detail string) {
	v := reflect.ValueOf(value)
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; !allowed.Has(name) && !v.Field(i).IsZero() {
			l.Forbidden(p.Child(string(unicode.ToLower(rune(name[0])))+name[1:]), detail)
		}
	}
}

// CheckImageSpace refuses an image with space around its name.
func CheckImageSpace(l *check.List, p *field.Path, c *corev1.Container) {
	if c.Image != strings.TrimSpace(c.Image) {
		l.Invalid(p.Child("image"), c.Image, "must not have leading or trailing whitespace")
	}
}

func checkRestartRules(l *check.List, p *field.Path, c *corev1.Container) {
	switch {
	case c.RestartPolicy != nil:
		check.OneOf(l, p.Child("restartPolicy"), *c.RestartPolicy, corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)
	case len(c.RestartPolicyRules) > 0:
		l.Required(p.Child("restartPolicy"), "must specify restartPolicy when restart rules are used")
	}
	rules := p.Child("restartPolicyRules")
	if n := len(c.RestartPolicyRules); n > 20 {
		l.TooMany(rules, n, 20)
	}
	for i, r := range c.RestartPolicyRules {
		at := rules.Index(i)
		check.OneOf(l, at.Child("action"), r.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)
		if r.ExitCodes == nil {
			l.Required(at.Child("exitCodes"), "must be specified")
			continue
		}
		check.OneOf(l, at.Child("exitCodes", "operator"), r.ExitCodes.Operator, corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)
		if n := len(r.ExitCodes.Values); n > 255 {
			l.TooMany(at.Child("exitCodes", "values"), n, 255)
		}
	}
}

func checkContainerPorts(l *check.List, p *field.Path, ports []corev1.ContainerPort) {
	names := sets.Set[string]{}
	for i, port := range ports {
		at := p.Index(i)
		if port.Name != "" {
			msgs := validation.IsValidPortName(port.Name)
			l.Messages(at.Child("name"), port.Name, msgs)
			if len(msgs) == 0 {
				if names.Has(port.Name) {
					l.Duplicate(at.Child("name"), port.Name)
				}
				names.Insert(port.Name)
			}
		}
		if port.ContainerPort == 0 {
			l.Required(at.Child("containerPort"), "")
		} else {
			l.Port(at.Child("containerPort"), port.ContainerPort)
		}
		if port.HostPort != 0 {
			l.Port(at.Child("hostPort"), port.HostPort)
		}
		check.Choice(l, at.Child("protocol"), port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
	}
}

func checkHostPorts(l *check.List, p *field.Path, containers []corev1.Container) {
	seen := sets.Set[string]{}
	for i := range containers {
		for j, port := range containers[i].Ports {
			if port.HostPort == 0 {
				continue
			}
			key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
			if seen.Has(key) {
				l.Duplicate(p.Index(i).Child("ports").Index(j).Child("hostPort"), key)
			}
			seen.Insert(key)
		}
	}
}

func (s *podScope) checkMounts(l *check.List, p *field.Path, c *corev1.Container) {
	paths, devices := sets.Set[string]{}, map[string]string{}
	for _, d := range c.VolumeDevices {
		devices[d.Name] = d.DevicePath
	}
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], p.Index(i)
		if m.Name == "" {
			l.Required(at.Child("name"), "")
		}
		if s.volumes[m.Name] == nil {
			l.NotFound(at.Child("name"), m.Name)
		}
		if m.MountPath == "" {
			l.Required(at.Child("mountPath"), "")
		}
		if paths.Has(m.MountPath) {
			l.Invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		paths.Insert(m.MountPath)
		if _, ok := devices[m.Name]; ok {
			l.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		for _, d := range devices {
			if d == m.MountPath {
				l.Invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
				break
			}
		}
		if m.SubPath != "" {
			checkDescending(l, p.Child("subPath"), m.SubPath)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				l.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			checkDescending(l, p.Child("subPathExpr"), m.SubPathExpr)
		}
		checkPropagation(l, p, m, c)
	}
}

func checkPropagation(l *check.List, p *field.Path, m *corev1.VolumeMount, c *corev1.Container) {
	if mode := m.MountPropagation; mode != nil {
		at := p.Child("mountPropagation")
		check.OneOf(l, at, *mode, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
		privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
		if *mode == corev1.MountPropagationBidirectional && !privileged {
			l.Forbidden(at, "Bidirectional mount propagation is available only to privileged containers")
		}
	}
	if m.RecursiveReadOnly == nil {
		return
	}
	at := p.Child("recursiveReadOnly")
	if !check.OneOf(l, at, *m.RecursiveReadOnly, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible) || *m.RecursiveReadOnly == corev1.RecursiveReadOnlyDisabled {
		return
	}
	l.ForbidIf(at, !m.ReadOnly, "may only be specified when readOnly is true")
	l.ForbidIf(at, m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone, "may only be specified when mountPropagation is None or not specified")
}

func (s *podScope) checkDevices(l *check.List, p *field.Path, c *corev1.Container) {
	paths, names := sets.Set[string]{}, sets.Set[string]{}
	for i, d := range c.VolumeDevices {
		at := p.Index(i)
		if d.Name == "" {
			l.Required(at.Child("name"), "")
		}
		if names.Has(d.Name) {
			l.Invalid(at.Child("name"), d.Name, "must be unique")
		}
		switch v := s.volumes[d.Name]; {
		case v == nil:
			l.NotFound(at.Child("name"), d.Name)
		case v.PersistentVolumeClaim == nil && v.Ephemeral == nil:
			l.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
		}
		if d.DevicePath == "" {
			l.Required(at.Child("devicePath"), "")
		}
		if paths.Has(d.DevicePath) {
			l.Invalid(at.Child("devicePath"), d.DevicePath, "must be unique")
		}
		if slices.Contains(strings.Split(d.DevicePath, "/"), "..") {
			l.Invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')")
		}
		for _, m := range c.VolumeMounts {
			if m.Name == d.Name {
				l.Invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts")
			}
			if m.MountPath == d.DevicePath {
				l.Invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts")
			}
		}
		paths.Insert(d.DevicePath)
		names.Insert(d.Name)
	}
}

// checkDescending checks a relative path that stays below where it starts.
func checkDescending(l *check.List, p *field.Path, s string) {
	if path.IsAbs(s) {
		l.Invalid(p, s, "must be a relative path")
	}
	l.NoBacksteps(p, s)
}

// checkLocalPath checks the path of a file projected into a volume.
func checkLocalPath(l *check.List, p *field.Path, s string) {
	checkDescending(l, p, s)
	if strings.HasPrefix(s, "..") && !strings.HasPrefix(s, "../") {
		l.Invalid(p, s, "must not start with '..'")
	}
}

func checkProbe(l *check.List, p *field.Path, probe *corev1.Probe, grace *int64) {
	if probe == nil {
		return
	}
	checkHandler(l, p, handler{probe.Exec, probe.HTTPGet, probe.TCPSocket, probe.GRPC, nil}, grace)
	l.Nonnegative(p.Child("initialDelaySeconds"), int64(probe.InitialDelaySeconds))
	l.Nonnegative(p.Child("timeoutSeconds"), int64(probe.TimeoutSeconds))
	l.Nonnegative(p.Child("periodSeconds"), int64(probe.PeriodSeconds))
	l.Nonnegative(p.Child("successThreshold"), int64(probe.SuccessThreshold))
	l.Nonnegative(p.Child("failureThreshold"), int64(probe.FailureThreshold))
	if t := probe.TerminationGracePeriodSeconds; t != nil && *t <= 0 {
		l.Invalid(p.Child("terminationGracePeriodSeconds"), *t, "must be greater than 0")
	}
	if strings.HasSuffix(p.String(), "readinessProbe") {
		if t := probe.TerminationGracePeriodSeconds; t != nil {
			l.Invalid(p.Child("terminationGracePeriodSeconds"), t, "must not be set for readinessProbes")
		}
	} else if probe.SuccessThreshold != 1 {
		l.Invalid(p.Child("successThreshold"), probe.SuccessThreshold, "must be 1")
	}
}

// handler is what probes and lifecycle hooks can do.
type handler struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func checkHandler(l *check.List, p *field.Path, h handler, grace *int64) {
	n := 0
	one := func(name string, set bool, f func(*field.Path)) {
		if !set {
			return
		}
		if n++; n > 1 {
			l.Forbidden(p.Child(name), "may not specify more than 1 handler type")
			return
		}
		f(p.Child(name))
	}
	one("exec", h.exec != nil, func(p *field.Path) {
		if len(h.exec.Command) == 0 {
			l.Required(p.Child("command"), "")
		}
	})
	one("httpGet", h.http != nil, func(p *field.Path) { checkHTTPGet(l, p, h.http) })
	one("tcpSocket", h.tcp != nil, func(p *field.Path) { l.PortNumOrName(p.Child("port"), h.tcp.Port) })
	one("grpc", h.grpc != nil, func(p *field.Path) { l.PortNumOrName(p.Child("port"), intstr.FromInt32(h.grpc.Port)) })
	one("sleep", h.sleep != nil, func(p *field.Path) {
		if grace != nil && (h.sleep.Seconds < 0 || h.sleep.Seconds > *grace) {
			l.Invalid(p, h.sleep.Seconds, fmt.Sprintf("must be non-negative and less than terminationGracePeriodSeconds (%d)", *grace))
		}
	})
	if n == 0 {
		l.Required(p, "must specify a handler type")
	}
}

func checkHTTPGet(l *check.List, p *field.Path, h *corev1.HTTPGetAction) {
	if h.Path == "" {
		l.Required(p.Child("path"), "")
	}
	l.PortNumOrName(p.Child("port"), h.Port)
	check.OneOf(l, p.Child("scheme"), h.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)
	for _, header := range h.HTTPHeaders {
		l.Messages(p.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name))
	}
}

func checkResizePolicy(l *check.List, p *field.Path, list []corev1.ContainerResizePolicy, restart corev1.RestartPolicy) {
	seen := map[corev1.ResourceName]bool{}
	for i, r := range list {
		if seen[r.ResourceName] {
			l.Duplicate(p.Index(i), r.ResourceName)
		}
		seen[r.ResourceName] = true
		check.Choice(l, p, r.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)
		check.Choice(l, p, r.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)
		if restart == corev1.RestartPolicyNever && r.RestartPolicy != corev1.NotRequired {
			l.Invalid(p, r.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
		}
	}
}

// IsSidecar tells whether an init container keeps running beside the others.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

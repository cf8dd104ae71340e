package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/runtime/seccomp"
	"github.com/skiff-project/skiff/runtime/wire"
)

// processSpec is a container's process as resolved at creation; execs inherit it.
type processSpec struct {
	Args, Env  []string
	Cwd        string
	UID, GID   uint32
	Groups     []int
	Caps       uint64
	Ambient    uint64
	NoNewPrivs bool
	// Seccomp is unconfined, default, or the text of a Localhost profile: kept, because
	// the file may change while the container runs.
	Seccomp    string
	StopSignal int
	OOMAdj     int
	SetOOM     bool

	home string // only while it is resolved
}

const (
	seccompUnconfined = "unconfined"
	seccompDefault    = "default"

	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// defaultCaps is containerd's set.
var defaultCaps = []string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
	"SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}

func resolveProcess(s *sandbox, c *container, conf *ocispec.Image) (processSpec, error) {
	p := processSpec{Cwd: c.cfg.GetWorkingDir()}
	if p.Cwd == "" {
		p.Cwd = conf.Config.WorkingDir
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !filepath.IsAbs(p.Cwd) {
		return p, status.Errorf(codes.InvalidArgument, "working directory %q must be absolute", p.Cwd)
	}
	p.Cwd = filepath.Clean(p.Cwd)
	var err error
	if p.Args, err = commandLine(c.cfg, conf); err != nil {
		return p, err
	}
	sec := c.security()
	if err := p.setUser(c.root, conf.Config.User, sec); err != nil {
		return p, status.Error(codes.InvalidArgument, err.Error())
	}
	p.Env = environment(s, c, conf)
	if !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		p.Env = append(p.Env, "HOME="+p.home)
	}
	if p.Caps, p.Ambient, err = capabilities(sec); err != nil {
		return p, status.Error(codes.InvalidArgument, err.Error())
	}
	p.NoNewPrivs = sec.GetNoNewPrivs()
	if p.StopSignal, err = stopSignal(c.cfg, conf); err != nil {
		return p, err
	}
	if res := c.cfg.GetLinux().GetResources(); res != nil {
		p.OOMAdj, p.SetOOM = int(res.OomScoreAdj), true
	}
	return p, nil
}

// commandLine: a command replaces entrypoint and cmd, arguments replace cmd.
func commandLine(cfg *runtimeapi.ContainerConfig, conf *ocispec.Image) ([]string, error) {
	command, args := cfg.GetCommand(), cfg.GetArgs()
	if len(command) == 0 {
		command = conf.Config.Entrypoint
		if len(args) == 0 {
			args = conf.Config.Cmd
		}
	}
	out := append(slices.Clone(command), args...)
	if len(out) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no command specified")
	}
	return out, nil
}

// environment puts the pod's values over the image's, each name once.
func environment(s *sandbox, c *container, conf *ocispec.Image) []string {
	out := []string{defaultPath}
	at := map[string]int{"PATH": 0}
	set := func(kv string) {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			out[i] = kv
			return
		}
		at[k] = len(out)
		out = append(out, kv)
	}
	hostname := s.cfg.GetHostname()
	if hostname == "" {
		hostname, _ = os.Hostname()
	}
	set("HOSTNAME=" + hostname)
	if c.cfg.GetTty() {
		set("TERM=xterm")
	}
	for _, kv := range conf.Config.Env {
		set(kv)
	}
	for _, kv := range c.cfg.GetEnvs() {
		set(kv.Key + "=" + string(kv.Value))
	}
	return out
}

func stopSignal(cfg *runtimeapi.ContainerConfig, conf *ocispec.Image) (int, error) {
	name := conf.Config.StopSignal
	if sig := cfg.GetStopSignal(); sig != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		name = strings.TrimPrefix(sig.String(), "SIGNAL_")
	}
	if name == "" {
		return int(unix.SIGTERM), nil
	}
	n := 0
	if _, err := fmt.Sscanf(name, "%d", &n); err == nil && n > 0 && n < 65 {
		return n, nil
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if base, rest, ok := strings.Cut(name, "RTMIN"); ok && base == "SIG" {
		rest = strings.TrimLeft(strings.Replace(rest, "PLUS", "+", 1), "+")
		n = 0
		if rest != "" {
			if _, err := fmt.Sscanf(rest, "%d", &n); err != nil {
				return 0, status.Errorf(codes.InvalidArgument, "unknown stop signal %q", name)
			}
		}
		return 34 + n, nil
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return int(sig), nil
	}
	return 0, status.Errorf(codes.InvalidArgument, "unknown stop signal %q", name)
}

func stopSignalName(n int) runtimeapi.Signal {
	name := unix.SignalName(unix.Signal(n))
	if v, ok := runtimeapi.Signal_value["SIGNAL_"+name]; ok {
		return runtimeapi.Signal(v)
	}
	return runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT
}

// capabilities computes the bounding and the ambient set. Nothing else is ever
// inheritable.
func capabilities(sec *runtimeapi.LinuxContainerSecurityContext) (caps, ambient uint64, err error) {
	var all uint64
	known := map[string]uint64{}
	for _, c := range capability.ListKnown() {
		known[strings.ToUpper(c.String())] = 1 << uint(c)
	}
	if list, err := capability.ListSupported(); err == nil {
		for _, c := range list {
			all |= 1 << uint(c)
		}
	}
	// What this process may not use it cannot give.
	all &= ownBounding()
	if sec.GetPrivileged() {
		return all, 0, nil
	}
	bit := func(name string) (uint64, error) {
		b := known[strings.TrimPrefix(strings.ToUpper(name), "CAP_")]
		if b == 0 {
			return 0, fmt.Errorf("unknown capability %q", name)
		}
		return b, nil
	}
	for _, n := range defaultCaps {
		caps |= known[n]
	}
	for _, step := range []struct {
		names []string
		apply func(uint64)
	}{
		{sec.GetCapabilities().GetAddCapabilities(), func(b uint64) { caps |= b }},
		{sec.GetCapabilities().GetDropCapabilities(), func(b uint64) { caps &^= b }},
		{sec.GetCapabilities().GetAddAmbientCapabilities(), func(b uint64) { caps |= b; ambient |= b }},
	} {
		// ALL first: "drop ALL, add NET_BIND_SERVICE" leaves one, in either order.
		for _, n := range step.names {
			if strings.EqualFold(n, "ALL") {
				step.apply(all)
			}
		}
	}
	add := sec.GetCapabilities()
	for _, n := range add.GetAddCapabilities() {
		if err := each(n, bit, func(b uint64) { caps |= b }); err != nil {
			return 0, 0, err
		}
	}
	for _, n := range add.GetAddAmbientCapabilities() {
		if err := each(n, bit, func(b uint64) { caps |= b; ambient |= b }); err != nil {
			return 0, 0, err
		}
	}
	for _, n := range add.GetDropCapabilities() {
		if err := each(n, bit, func(b uint64) { caps &^= b; ambient &^= b }); err != nil {
			return 0, 0, err
		}
	}
	return caps & all, ambient & all, nil
}

func each(name string, bit func(string) (uint64, error), apply func(uint64)) error {
	if strings.EqualFold(name, "ALL") {
		return nil
	}
	b, err := bit(name)
	if err == nil {
		apply(b)
	}
	return err
}

// ownBounding is this process's bounding set.
func ownBounding() uint64 {
	var out uint64
	for c := range 64 {
		if v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0); err == nil && v == 1 {
			out |= 1 << c
		}
	}
	return out
}

// seccompProfile names the profile of a container; anything not understood fails.
func (r *Runtime) seccompProfile(sec *runtimeapi.LinuxContainerSecurityContext) (string, error) {
	if sec.GetPrivileged() || sec.GetSeccomp() == nil {
		return seccompUnconfined, nil
	}
	switch sec.Seccomp.ProfileType {
	case runtimeapi.SecurityProfile_Unconfined:
		return seccompUnconfined, nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return seccompDefault, nil
	case runtimeapi.SecurityProfile_Localhost:
	default:
		return "", status.Errorf(codes.InvalidArgument, "unknown seccomp profile type %s", sec.Seccomp.ProfileType)
	}
	ref := sec.Seccomp.LocalhostRef
	if ref == "" {
		return "", status.Error(codes.InvalidArgument, "seccomp profile of type Localhost names no file") // CVE-2023-2431
	}
	if !filepath.IsAbs(ref) {
		return "", status.Errorf(codes.InvalidArgument, "seccomp profile %q must be an absolute path", ref)
	}
	b, err := os.ReadFile(ref)
	if err != nil {
		return "", status.Errorf(codes.InvalidArgument, "seccomp profile: %v", err)
	}
	return string(b), nil
}

// filterCache keeps assembled filters: a node's containers share a handful.
type filterCache struct {
	mu sync.Mutex
	m  map[filterKey]filter
}

type filterKey struct {
	profile string
	caps    uint64
}

type filter struct {
	prog  []byte
	flags uint32
}

// maxFilters bounds the cache; past it, it starts anew.
const maxFilters = 64

func (r *Runtime) seccompFor(p processSpec) (filter, error) {
	if p.Seccomp == seccompUnconfined || p.Seccomp == "" {
		return filter{}, nil
	}
	key := filterKey{p.Seccomp, 0}
	if p.Seccomp == seccompDefault {
		key.caps = p.Caps
	}
	r.filters.mu.Lock()
	defer r.filters.mu.Unlock()
	if f, ok := r.filters.m[key]; ok {
		return f, nil
	}
	profile := seccomp.Default(p.Caps)
	if p.Seccomp != seccompDefault {
		var err error
		if profile, err = seccomp.Parse([]byte(p.Seccomp)); err != nil {
			return filter{}, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	return r.assemble(key, profile)
}

// assemble fills the cache; the caller holds its lock.
func (r *Runtime) assemble(key filterKey, profile *specs.LinuxSeccomp) (filter, error) {
	prog, flags, err := seccomp.Assemble(profile)
	if err != nil {
		return filter{}, status.Error(codes.InvalidArgument, err.Error())
	}
	if len(r.filters.m) >= maxFilters || r.filters.m == nil {
		r.filters.m = map[filterKey]filter{}
	}
	r.filters.m[key] = filter{prog, flags}
	return r.filters.m[key], nil
}

// init fills the part of the helper's specification that containers and execs share.
func (r *Runtime) initOf(p processSpec) (wire.Init, error) {
	f, err := r.seccompFor(p)
	if err != nil {
		return wire.Init{}, err
	}
	return wire.Init{Args: p.Args, Env: p.Env, Cwd: p.Cwd, UID: p.UID, GID: p.GID, Groups: p.Groups,
		Bounding: p.Caps | p.Ambient, Caps: p.Caps, Ambient: p.Ambient, NoNewPrivs: p.NoNewPrivs,
		Seccomp: f.prog, SeccompFlags: f.flags, SetOOM: p.SetOOM, OOMAdj: p.OOMAdj, RootFD: -1,
		// systemd's and containerd's limits: enough to raise, low enough for old programs
		// that close every possible descriptor.
		Rlimits: []wire.Rlimit{{Kind: unix.RLIMIT_NOFILE, Soft: 1024, Hard: 524288}}}, nil
}

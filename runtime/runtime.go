// Package runtime is Skiff's embedded container runtime: images, sandboxes and
// containers behind the Container Runtime Interface, in pure Go, without runc, CNI
// programs or a daemon.
//
// Process model. A pod has one monitor, a tiny static helper that parents its
// containers and outlives the agent (package runtime/shim). The agent, this package,
// prepares everything as descriptors — the root file system as a detached overlay
// mount, volumes as detached bind mounts, namespaces, control group files — and hands
// them to the monitor over a unix socket. The monitor forks a second helper from a
// sealed memfd, which sets up the container and becomes its command. Nothing of a
// container appears in the host's mount table.
//
// On disk, below Config.Root:
//
//	images/                       the image store (package runtime/image)
//	bin/skiff-shim-<hash>         the helper the monitors run
//	sandboxes/<id>/record.json    what RunPodSandbox was asked
//	sandboxes/<id>/{hosts,hostname,resolv.conf}
//	containers/<id>/record.json   what CreateContainer was asked, and how it ended
//	containers/<id>/{started,exited}  the monitor's records
//	containers/<id>/{upper,work}  the writable layer
//
// and below Config.StateDir, which need not survive a reboot:
//
//	<sandbox id>/{net,ipc,uts}    namespaces, pinned by bind mounts
//	<sandbox id>/shm              the pod's /dev/shm
//	<sandbox id>/m.sock           the monitor's socket
package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/runtime/cgroup"
	"github.com/skiff-project/skiff/runtime/embedded"
	"github.com/skiff-project/skiff/runtime/image"
)

// Config is what New needs.
type Config struct {
	// Root is the persistent folder; required. It becomes 0700.
	Root string
	// StateDir holds what a reboot may take away. Default: Root/run.
	StateDir string
	// CgroupParent is the control group for pods that name none, and for the monitors.
	// Default: /skiff-<hash of Root>, so that two clusters on a host do not meet.
	CgroupParent string
	// Network gives pods their addresses. Default: pods have loopback only.
	Network Network
	// Log. Default: discard.
	Log *slog.Logger
	// Clock. Default: the real one.
	Clock clock.Clock
	// HelperPath is a helper binary to use instead of the embedded one, for tests.
	HelperPath string
	// ExecSyncLimit bounds each output stream of ExecSync, in bytes. Default: 16 MiB
	// (CRI's own bound).
	ExecSyncLimit int
	// OnPodCIDR is told the node's pod range when the kubelet learns it. Default: none.
	OnPodCIDR func(cidr string)
	// Registries is a file that names mirrors of registries, in k3s' form. Default: none.
	Registries string
	// Version is reported to the kubelet. Default: "dev".
	Version string
}

// Runtime implements the CRI's RuntimeService and ImageManagerService. Create it with
// New. Safe for concurrent use.
type Runtime struct {
	cfg    Config
	log    *slog.Logger
	tree   cgroup.Tree
	images *image.Store
	// helper is the sealed memfd every container is entered from; monitorPath the file
	// monitors run.
	helper      int
	monitorPath string

	// mu guards the maps and every state field in them. It is never held over I/O.
	mu         sync.RWMutex
	sandboxes  map[string]*sandbox
	containers map[string]*container
	execs      map[string]*execProc

	events   *broadcaster
	stream   streaming.Server
	streamer *http.Server
	listener net.Listener
	closed   atomic.Bool
	filters  filterCache
	usage    usageCache
}

// New opens the runtime below cfg.Root and adopts the pods an earlier one left
// running.
func New(cfg Config) (*Runtime, error) {
	if cfg.Root == "" {
		return nil, errors.New("runtime: Root is required")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("runtime: containers need root: run as root")
	}
	if err := defaults(&cfg); err != nil {
		return nil, err
	}
	r := &Runtime{cfg: cfg, log: cfg.Log, helper: -1, sandboxes: map[string]*sandbox{},
		containers: map[string]*container{}, execs: map[string]*execProc{}, events: newBroadcaster()}
	var err error
	if r.tree, err = cgroup.Detect(); err != nil {
		return nil, err
	}
	for _, d := range []string{cfg.Root, cfg.StateDir, r.path("sandboxes"), r.path("containers"), r.path("bin")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(d, 0o700); err != nil {
			return nil, err
		}
	}
	r.images, err = image.New(image.Config{Root: r.path("images"), Log: cfg.Log, LayersInUse: r.layersInUse, Mirrors: cfg.Registries})
	if err != nil {
		return nil, err
	}
	if err := r.openHelper(); err != nil {
		return nil, err
	}
	if err := r.startStreaming(); err != nil {
		return nil, err
	}
	if err := r.reconcile(); err != nil {
		r.Close(context.Background())
		return nil, err
	}
	return r, nil
}

func defaults(cfg *Config) error {
	var err error
	if cfg.Root, err = filepath.Abs(cfg.Root); err != nil {
		return err
	}
	if cfg.StateDir == "" {
		cfg.StateDir = filepath.Join(cfg.Root, "run")
	}
	if cfg.CgroupParent == "" {
		cfg.CgroupParent = "/skiff-" + image.Digest([]byte(cfg.Root))[7:15]
	}
	if cfg.Network == nil {
		cfg.Network = noNetwork{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	if cfg.ExecSyncLimit == 0 {
		cfg.ExecSyncLimit = 16 << 20
	}
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	return nil
}

func (r *Runtime) path(parts ...string) string {
	return filepath.Join(append([]string{r.cfg.Root}, parts...)...)
}

// openHelper puts the helper where monitors run it from, one file for all, and into
// a sealed memfd for everything that enters a container: a container that reaches its
// first process's executable finds nothing it can change (CVE-2019-5736).
func (r *Runtime) openHelper() error {
	var b []byte
	var err error
	if r.cfg.HelperPath != "" {
		b, err = os.ReadFile(r.cfg.HelperPath)
	} else {
		b, err = embedded.Shim()
	}
	if err != nil {
		return err
	}
	r.monitorPath = r.path("bin", "skiff-shim-"+image.Digest(b)[7:19])
	if st, err := os.Stat(r.monitorPath); err != nil || st.Size() != int64(len(b)) {
		if err := replaceFile(r.monitorPath, b, 0o700); err != nil {
			return err
		}
	}
	fd, err := unix.MemfdCreate("skiff-shim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 all are executable
		fd, err = unix.MemfdCreate("skiff-shim", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return fmt.Errorf("memfd for the helper: %w (vm.memfd_noexec=2 forbids it: set it to 1)", err)
	}
	r.helper = fd
	for off := 0; off < len(b); {
		n, err := unix.Pwrite(fd, b[off:], int64(off))
		if err != nil {
			return fmt.Errorf("fill memfd: %w", err)
		}
		off += n
	}
	if err := unix.Fchmod(fd, 0o500); err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	return err
}

// replaceFile writes beside, syncs, renames.
func replaceFile(path string, b []byte, mode os.FileMode) error {
	return replace(path, b, mode, true)
}

// replaceRecord writes the record of something that runs, beside and renamed but not
// synced: every sync would delay a pod's start, and only a power failure, which ends
// what runs, can tear it. New removes a torn record and what belongs to it.
func replaceRecord(path string, b []byte) error {
	return replace(path, b, 0o600, false)
}

func replace(path string, b []byte, mode os.FileMode, sync bool) error {
	tmp := path + ".tmp-" + newID()[:8]
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Run blocks until ctx ends, then closes the runtime. Containers stay.
func (r *Runtime) Run(ctx context.Context) error {
	<-ctx.Done()
	return r.Close(context.WithoutCancel(ctx))
}

// Close stops serving streams and lets go of the monitors. Containers stay.
func (r *Runtime) Close(context.Context) error {
	if !r.closed.CompareAndSwap(false, true) {
		return nil
	}
	r.stopStreaming()
	r.events.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		if s.mon != nil {
			s.mon.close()
		}
	}
	for _, c := range r.containers {
		c.closeFDs()
	}
	if r.helper >= 0 {
		unix.Close(r.helper)
		r.helper = -1
	}
	return nil
}

// Images is the store behind the image service, for commands that load images.
func (r *Runtime) Images() *image.Store { return r.images }

// Version implements CRI.
func (r *Runtime) Version(context.Context, string) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "skiff", RuntimeVersion: r.cfg.Version, RuntimeApiVersion: "v1"}, nil
}

// Status implements CRI.
func (r *Runtime) Status(_ context.Context, verbose bool) (*runtimeapi.StatusResponse, error) {
	netOK := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := r.cfg.Network.Ready(); err != nil {
		netOK.Status, netOK.Reason, netOK.Message = false, "NetworkPluginNotReady", err.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: !r.closed.Load()}, netOK}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{
			{Name: "", Features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	if verbose {
		resp.Info = map[string]string{"config": fmt.Sprintf(`{"root":%q,"cgroupV2":%v}`, r.cfg.Root, r.tree.V2)}
	}
	return resp, nil
}

// UpdateRuntimeConfig implements CRI: the kubelet tells the node's pod range.
func (r *Runtime) UpdateRuntimeConfig(_ context.Context, c *runtimeapi.RuntimeConfig) error {
	if cidr := c.GetNetworkConfig().GetPodCidr(); cidr != "" && r.cfg.OnPodCIDR != nil {
		r.cfg.OnPodCIDR(cidr)
	}
	return nil
}

// RuntimeConfig implements CRI.
func (r *Runtime) RuntimeConfig(context.Context) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{
		CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %q not found", kind, id)
}

// unsupported is the one clear error for what this runtime does not do.
func unsupported(what string) error {
	return status.Errorf(codes.Unimplemented, "skiff's embedded runtime does not support %s", what)
}

// checkHandler: there is one runtime, under the empty name.
func checkHandler(name string) error {
	if name != "" {
		return status.Errorf(codes.InvalidArgument, "no runtime for %q is configured", name)
	}
	return nil
}

func (r *Runtime) now() int64 { return r.cfg.Clock.Now().UnixNano() }

// matches tells whether labels hold all of want.
func matches(labels, want map[string]string) bool {
	for k, v := range want {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// byPrefix finds an id or its unique prefix, as crictl users type it.
func byPrefix[T any](m map[string]T, id string) (T, bool) {
	if v, ok := m[id]; ok {
		return v, true
	}
	var found T
	n := 0
	if len(id) >= 4 {
		for k, v := range m {
			if strings.HasPrefix(k, id) {
				found = v
				n++
			}
		}
	}
	if n != 1 {
		var none T
		return none, false
	}
	return found, true
}

// waitTimeout waits for ch; false means that time or ctx ran out first.
func (r *Runtime) waitTimeout(ctx context.Context, ch <-chan struct{}, d time.Duration) bool {
	select {
	case <-ch:
		return true
	default:
	}
	t := r.cfg.Clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-ch:
		return true
	case <-t.C():
	case <-ctx.Done():
	}
	return false
}

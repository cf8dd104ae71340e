package kubelet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	listersv1 "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-project/skiff/kubelet/cgroup"
	"github.com/skiff-project/skiff/kubelet/cri"
	"github.com/skiff-project/skiff/kubelet/env"
	"github.com/skiff-project/skiff/kubelet/node"
	"github.com/skiff-project/skiff/kubelet/objects"
	"github.com/skiff-project/skiff/kubelet/podcert"
	"github.com/skiff-project/skiff/kubelet/probe"
	"github.com/skiff-project/skiff/kubelet/volume"
)

// Kubelet is one node's agent. Make it with New, then Run it once.
type Kubelet struct {
	cfg       Config
	inspector cri.Inspector
	cgroups   *cgroup.Tree
	volumes   *volume.Host
	objects   *objects.Cache
	certs     *podcert.Issuer
	prober    *probe.Runner
	statuses  *statusWriter
	recorder  record.EventRecorder
	pulls     *puller

	pods         cache.SharedIndexInformer
	services     cache.SharedIndexInformer
	nodes        cache.SharedIndexInformer
	serviceLists listersv1.ServiceLister

	runtimeName string      // prefix of container ids
	memory      int64       // bytes, of the node
	rro         atomic.Bool // the runtime can make mounts recursively read-only
	node        atomic.Pointer[v1.Node]
	ready       atomic.Pointer[string] // why not ready; nil = ready
	events      atomic.Bool            // the runtime delivers container events

	mu      sync.Mutex
	workers map[types.UID]*worker
	static  map[types.UID]*v1.Pod // static pods wanted, by their own UID
	read    bool                  // the static pods have been read once
	closing bool
	wg      sync.WaitGroup
	ctx     context.Context
	kick    chan struct{} // look at the node's status now
}

// New checks the configuration and prepares a kubelet; nothing runs before Run.
func New(cfg Config) (*Kubelet, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	k := &Kubelet{cfg: cfg, inspector: cri.Inspector{Runtime: cfg.Runtime},
		workers: map[types.UID]*worker{}, static: map[types.UID]*v1.Pod{}, kick: make(chan struct{}, 1)}
	k.prober = &probe.Runner{Exec: k.execSync, Version: minor(cfg.Version), PID: k.containerPID}
	k.pulls = &puller{k: k}
	k.statuses = newStatusWriter(k)
	k.watchers()
	return k, nil
}

// minor turns v1.37.2 into 1.37.
func minor(version string) string {
	dots, end := 0, len(version)
	for i, r := range version {
		if r == '.' {
			if dots++; dots == 2 {
				end = i
				break
			}
		}
	}
	if end > 0 && version[0] == 'v' {
		return version[1:end]
	}
	return version[:end]
}

// watchers sets up the informers: shared ones, or ones narrowed to this node.
func (k *Kubelet) watchers() {
	if f := k.cfg.Informers; f != nil {
		k.pods, k.services = f.Core().V1().Pods().Informer(), f.Core().V1().Services().Informer()
		k.nodes, k.serviceLists = f.Core().V1().Nodes().Informer(), f.Core().V1().Services().Lister()
		return
	}
	narrow := func(field string) informers.SharedInformerFactory {
		return informers.NewSharedInformerFactoryWithOptions(k.cfg.Client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(field, k.cfg.NodeName).String()
		}))
	}
	k.pods = narrow("spec.nodeName").Core().V1().Pods().Informer()
	k.nodes = narrow("metadata.name").Core().V1().Nodes().Informer()
	all := informers.NewSharedInformerFactory(k.cfg.Client, 0)
	k.services, k.serviceLists = all.Core().V1().Services().Informer(), all.Core().V1().Services().Lister()
}

// Run serves the node until ctx ends, then returns leaving every container running.
func (k *Kubelet) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := k.prepare(ctx); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	stopEvents := k.startEvents(ctx)
	defer stopEvents()
	if err := k.handlers(); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	serve, err := k.newServer()
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	k.recorder.Event(k.nodeRef(), v1.EventTypeNormal, "Starting", "Starting kubelet.")
	if err := k.cgroups.Problem(); err != nil {
		k.cfg.Log.Warn("pods run without cgroups of their own", "err", err)
	}
	fail := make(chan error, 1)
	k.spawn(func() {
		if err := serve(ctx); err != nil && ctx.Err() == nil {
			fail <- err
		}
	})
	for _, f := range []func(context.Context){k.watchRuntime, k.runNode, k.runLease, k.housekeep, k.runStatic, k.enforceDisk} {
		k.spawn(func() { f(ctx) })
	}
	if f := k.cfg.Informers; f != nil {
		f.Start(ctx.Done())
	} else {
		for _, i := range []cache.SharedIndexInformer{k.pods, k.services, k.nodes} {
			k.spawn(func() { i.Run(ctx.Done()) })
		}
	}
	select {
	case <-ctx.Done():
	case err = <-fail:
		err = fmt.Errorf("kubelet: serve the node API: %w", err)
	}
	cancel()
	k.mu.Lock()
	k.closing = true
	k.mu.Unlock()
	k.wg.Wait()
	return err
}

// spawn runs f in a goroutine Run waits for; nothing is started any more once Run is ending.
func (k *Kubelet) spawn(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return
	}
	k.wg.Add(1)
	go func() {
		defer k.wg.Done()
		f()
	}()
}

func (k *Kubelet) prepare(ctx context.Context) error {
	k.ctx = ctx
	pods := filepath.Join(k.cfg.RootDir, "pods")
	for dir, mode := range map[string]os.FileMode{k.cfg.RootDir: 0o700, pods: 0o750, k.cfg.LogDir: 0o755} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	facts, err := node.Read(k.cfg.RootDir)
	if err != nil {
		return err
	}
	k.memory = facts.MemoryBytes
	k.cgroups = cgroup.None()
	if !k.cfg.NoCgroups {
		k.cgroups = cgroup.New(k.cfg.CgroupRoot)
	}
	k.runtimeName = "unknown"
	if v, err := k.cfg.Runtime.Version(ctx, ""); err == nil {
		k.runtimeName = v.RuntimeName
	} else {
		k.cfg.Log.Warn("the container runtime does not answer yet", "err", err)
	}
	k.objects = objects.New(ctx, k.cfg.Client, k.cfg.Log, k.objectsChanged)
	k.certs = podcert.New(ctx, podcert.Config{Client: k.cfg.Client, NodeName: k.cfg.NodeName, NodeUID: k.nodeUID, Clock: k.cfg.Clock, Log: k.cfg.Log,
		Spawn: k.spawn, Changed: func(uid types.UID) { k.objectsChanged([]types.UID{uid}) },
		Event: func(pod *v1.Pod, reason, message string) {
			k.recorder.Event(pod, v1.EventTypeWarning, reason, message)
		}})
	k.volumes = &volume.Host{PodsDir: pods, Client: k.cfg.Client, ConfigMap: k.objects.ConfigMap, Secret: k.objects.Secret,
		NodeIPs: k.cfg.NodeIPs, NodeName: k.cfg.NodeName, Node: k.envNode, Now: k.cfg.Clock.Now,
		Certificates: k.certs}
	return nil
}

func (k *Kubelet) startEvents(ctx context.Context) func() {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: k.cfg.Client.CoreV1().Events("")})
	k.recorder = b.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: k.cfg.NodeName})
	return b.Shutdown
}

func (k *Kubelet) nodeRef() *v1.ObjectReference {
	ref := &v1.ObjectReference{Kind: "Node", Name: k.cfg.NodeName, UID: types.UID(k.cfg.NodeName), APIVersion: "v1"}
	if n := k.node.Load(); n != nil && n.UID != "" {
		ref.UID = n.UID
	}
	return ref
}

// nodeUID is the UID of this Node at the API, "" while it is not known.
func (k *Kubelet) nodeUID() types.UID {
	if n := k.node.Load(); n != nil {
		return n.UID
	}
	return ""
}

// envNode is the node as the downward API sees it.
func (k *Kubelet) envNode() env.Node {
	n := env.Node{IPs: k.cfg.NodeIPs}
	if obj := k.node.Load(); obj != nil {
		n.Allocatable = obj.Status.Allocatable
	}
	return n
}

// objectsChanged renews the volumes of pods whose ConfigMap or Secret changed, and lets those that
// wait for one try again.
func (k *Kubelet) objectsChanged(uids []types.UID) {
	for _, uid := range uids {
		if w := k.worker(uid); w != nil {
			w.renewVolumes()
		}
	}
}

func (k *Kubelet) worker(uid types.UID) *worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.workers[uid]
}

func (k *Kubelet) allWorkers() []*worker {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]*worker, 0, len(k.workers))
	for _, w := range k.workers {
		out = append(out, w)
	}
	return out
}

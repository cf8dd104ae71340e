// Package volume makes a pod's volumes available on the node. Each kind is a Volume; a Pod holds
// those of one pod under <pods>/<uid>/volumes/<plugin>/<name> (upstream's layout). Clean-up works
// from disk and the mount table alone, so it also works after a restart.
//
// The conformance suite of the interface is volumetest in this package's tests.
package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/storage/ephemeral"

	"github.com/skiff-project/skiff/kubelet/env"
)

// Volume is one volume of one pod.
//
// SetUp makes it ready and is idempotent: calling it again brings its content up to date and
// never disturbs what containers hold open. Path is where its root is on the node, valid after the
// first successful SetUp. ReadOnly volumes must be mounted read-only whatever the container
// asks. Refresh is when its content should be renewed although nothing changed (zero: never).
// Removal is not the volume's business: see Host.Remove.
type Volume interface {
	SetUp(ctx context.Context) error
	Path() string
	ReadOnly() bool
	Refresh() time.Time
}

// Host is what volumes need of the node.
type Host struct {
	PodsDir   string // <root>/pods
	Client    kubernetes.Interface
	ConfigMap func(namespace, name string) (*v1.ConfigMap, error)
	Secret    func(namespace, name string) (*v1.Secret, error)
	NodeIPs   []string
	NodeName  string
	Node      func() env.Node
	Now       func() time.Time
	// Certificates gives pods their certificates; nil: there are none here.
	Certificates Certificates
	tokens       tokenCache
}

// Certificates is podcert.Issuer: Bundle returns the key and the chain of a projected volume's source
// in PEM, or why there are none yet; Forget drops what is held for a pod.
type Certificates interface {
	Bundle(pod *v1.Pod, volume string, source int, spec *v1.PodCertificateProjection) (key, chain []byte, err error)
	Forget(pod types.UID)
}

// MountError says which volume failed.
type MountError struct {
	Volume string
	Err    error
}

// Error is the text of the FailedMount event.
func (e *MountError) Error() string {
	return fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
}

// Unwrap gives the cause.
func (e *MountError) Unwrap() error { return e.Err }

// Pod is the volumes of one pod.
type Pod struct {
	host    *Host
	pod     *v1.Pod
	podIPs  []string
	volumes map[string]Volume
}

// PodDir is the pod's folder.
func (h *Host) PodDir(uid string) string { return filepath.Join(h.PodsDir, uid) }

// Mount sets up every volume of the pod; the error is a *MountError. It may be called again to
// bring volumes up to date with a newer pod.
func (h *Host) Mount(ctx context.Context, p *Pod, pod *v1.Pod, podIPs []string) (*Pod, error) {
	if p == nil {
		p = &Pod{host: h, volumes: map[string]Volume{}}
	}
	p.pod, p.podIPs = pod, podIPs
	for i := range pod.Spec.Volumes {
		spec := &pod.Spec.Volumes[i]
		v := p.volumes[spec.Name]
		var err error
		if v == nil {
			if v, err = p.make(ctx, spec); err != nil {
				return p, &MountError{spec.Name, err}
			}
		}
		if err := v.SetUp(ctx); err != nil {
			return p, &MountError{spec.Name, err}
		}
		p.volumes[spec.Name] = v
	}
	return p, nil
}

// Renew refreshes the volumes whose content follows other objects or the pod's own metadata.
func (p *Pod) Renew(ctx context.Context, pod *v1.Pod, podIPs []string) error {
	p.pod, p.podIPs = pod, podIPs
	for name, v := range p.volumes {
		if _, ok := v.(*content); ok {
			if err := v.SetUp(ctx); err != nil {
				return &MountError{name, err}
			}
		}
	}
	return nil
}

// NextRefresh is the earliest time a volume wants to be renewed; zero if none does.
func (p *Pod) NextRefresh() time.Time {
	var t time.Time
	for _, v := range p.volumes {
		if r := v.Refresh(); !r.IsZero() && (t.IsZero() || r.Before(t)) {
			t = r
		}
	}
	return t
}

// Get returns a volume that is set up.
func (p *Pod) Get(name string) (Volume, bool) {
	v, ok := p.volumes[name]
	return v, ok
}

func (p *Pod) dir(plugin, name string) string {
	return filepath.Join(p.host.PodDir(string(p.pod.UID)), "volumes", plugin, name)
}

// make chooses the implementation of a volume; there is one line per kind, and a kind that is not
// here says so by name.
func (p *Pod) make(ctx context.Context, s *v1.Volume) (Volume, error) {
	src := &s.VolumeSource
	switch {
	case src.EmptyDir != nil:
		return &emptyDir{pod: p, src: src.EmptyDir, dir: p.dir("kubernetes.io~empty-dir", s.Name)}, nil
	case src.HostPath != nil:
		return &hostPath{path: src.HostPath.Path, typ: src.HostPath.Type}, nil
	case src.ConfigMap != nil:
		return p.content(s.Name, "kubernetes.io~configmap", src.ConfigMap.DefaultMode, lasting(func(c *content) (map[string]File, error) {
			return c.configMap(src.ConfigMap.Name, src.ConfigMap.Items, src.ConfigMap.Optional)
		})), nil
	case src.Secret != nil:
		c := p.content(s.Name, "kubernetes.io~secret", src.Secret.DefaultMode, lasting(func(c *content) (map[string]File, error) {
			return c.secret(src.Secret.SecretName, src.Secret.Items, src.Secret.Optional)
		}))
		c.memory = true
		return c, nil
	case src.DownwardAPI != nil:
		return p.content(s.Name, "kubernetes.io~downward-api", src.DownwardAPI.DefaultMode, lasting(func(c *content) (map[string]File, error) {
			return c.downward(src.DownwardAPI.Items)
		})), nil
	case src.Projected != nil:
		c := p.content(s.Name, "kubernetes.io~projected", src.Projected.DefaultMode, projectedPayload(src.Projected))
		c.memory = true
		return c, nil
	case src.PersistentVolumeClaim != nil:
		return p.claim(ctx, src.PersistentVolumeClaim.ClaimName, src.PersistentVolumeClaim.ReadOnly, false)
	case src.Ephemeral != nil:
		return p.claim(ctx, ephemeral.VolumeClaimName(p.pod, s), false, true)
	case src.Image != nil:
		return &imageVolume{}, nil
	}
	return nil, fmt.Errorf("volumes of kind %s are not supported by this node", Kind(s))
}

// Kind names the kind of a volume as its field is called in the API.
func Kind(s *v1.Volume) string {
	src := &s.VolumeSource
	for name, set := range map[string]bool{
		"awsElasticBlockStore": src.AWSElasticBlockStore != nil, "azureDisk": src.AzureDisk != nil,
		"azureFile": src.AzureFile != nil, "cephfs": src.CephFS != nil, "cinder": src.Cinder != nil,
		"csi": src.CSI != nil, "ephemeral": src.Ephemeral != nil, "fc": src.FC != nil,
		"flexVolume": src.FlexVolume != nil, "flocker": src.Flocker != nil,
		"gcePersistentDisk": src.GCEPersistentDisk != nil, "gitRepo": src.GitRepo != nil,
		"glusterfs": src.Glusterfs != nil, "iscsi": src.ISCSI != nil, "nfs": src.NFS != nil,
		"photonPersistentDisk": src.PhotonPersistentDisk != nil, "portworxVolume": src.PortworxVolume != nil,
		"quobyte": src.Quobyte != nil, "rbd": src.RBD != nil, "scaleIO": src.ScaleIO != nil,
		"storageos": src.StorageOS != nil, "vsphereVolume": src.VsphereVolume != nil,
	} {
		if set {
			return name
		}
	}
	return "unknown"
}

// imageVolume is mounted by the runtime; there is nothing to prepare.
type imageVolume struct{}

func (*imageVolume) SetUp(context.Context) error { return nil }
func (*imageVolume) Path() string                { return "" }
func (*imageVolume) ReadOnly() bool              { return true }
func (*imageVolume) Refresh() time.Time          { return time.Time{} }

// fsGroup is the group volumes are given to, or nil.
func fsGroup(pod *v1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

func mkdir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

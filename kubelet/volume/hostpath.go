package volume

import (
	"context"
	"fmt"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/ephemeral"
)

// hostPath exposes a path of the node, after checking (or making) what the type asks for.
type hostPath struct {
	path string
	typ  *v1.HostPathType
	ro   bool
}

func (h *hostPath) Path() string       { return h.path }
func (h *hostPath) ReadOnly() bool     { return h.ro }
func (h *hostPath) Refresh() time.Time { return time.Time{} }

func (h *hostPath) SetUp(context.Context) error {
	typ := v1.HostPathUnset
	if h.typ != nil {
		typ = *h.typ
	}
	switch typ {
	case v1.HostPathUnset:
		return nil
	case v1.HostPathDirectoryOrCreate:
		if _, err := os.Lstat(h.path); os.IsNotExist(err) {
			if err := os.MkdirAll(h.path, 0o755); err != nil {
				return err
			}
		}
		return h.check(os.ModeDir, "directory")
	case v1.HostPathDirectory:
		return h.check(os.ModeDir, "directory")
	case v1.HostPathFileOrCreate:
		if _, err := os.Lstat(h.path); os.IsNotExist(err) {
			f, err := os.OpenFile(h.path, os.O_CREATE|os.O_EXCL, 0o644)
			if err != nil {
				return err
			}
			f.Close()
		}
		return h.check(0, "file")
	case v1.HostPathFile:
		return h.check(0, "file")
	case v1.HostPathSocket:
		return h.check(os.ModeSocket, "socket file")
	case v1.HostPathCharDev:
		return h.check(os.ModeDevice|os.ModeCharDevice, "character device")
	case v1.HostPathBlockDev:
		return h.check(os.ModeDevice, "block device")
	}
	return fmt.Errorf("%s is an invalid volume type", typ)
}

func (h *hostPath) check(want os.FileMode, name string) error {
	fi, err := os.Stat(h.path)
	if err != nil || fi.Mode()&os.ModeType != want {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.path, name)
	}
	return nil
}

// claim resolves a persistent volume claim to a volume this node can use: a PersistentVolume of
// kind hostPath or local. A claim of an ephemeral volume must be the pod's own.
func (p *Pod) claim(ctx context.Context, name string, readOnly, own bool) (Volume, error) {
	c := p.host.Client.CoreV1()
	pvc, err := c.PersistentVolumeClaims(p.pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if own {
		if err := ephemeral.VolumeIsForPod(p.pod, pvc); err != nil {
			return nil, err
		}
	}
	if pvc.Status.Phase != v1.ClaimBound || pvc.Spec.VolumeName == "" {
		return nil, fmt.Errorf("PVC %s/%s is not bound", pvc.Namespace, pvc.Name)
	}
	pv, err := c.PersistentVolumes().Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != pvc.UID {
		return nil, fmt.Errorf("PersistentVolume %s is not bound to claim %s/%s", pv.Name, pvc.Namespace, pvc.Name)
	}
	switch {
	case pv.Spec.HostPath != nil:
		return &hostPath{path: pv.Spec.HostPath.Path, typ: pv.Spec.HostPath.Type, ro: readOnly}, nil
	case pv.Spec.Local != nil:
		dir := v1.HostPathDirectory
		return &hostPath{path: pv.Spec.Local.Path, typ: &dir, ro: readOnly}, nil
	}
	return nil, fmt.Errorf("PersistentVolume %s is neither hostPath nor local: not supported by this node", pv.Name)
}

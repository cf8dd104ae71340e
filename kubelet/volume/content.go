package volume

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/skiff-project/skiff/kubelet/env"
	"github.com/skiff-project/skiff/kubelet/podstate"
)

// File is one file of a volume's content.
type File struct {
	Data []byte
	Mode int32
	UID  *int64 // owner, nil = root
}

// payload computes the content of a volume; refresh is when it must be computed again at the
// latest (zero: only when something changes).
type payload func(ctx context.Context, c *content) (files map[string]File, refresh time.Time, err error)

// content is a volume whose files the kubelet writes: configMap, secret, downwardAPI, projected.
type content struct {
	pod     *Pod
	dir     string
	mode    int32
	memory  bool // keep off the disk
	compute payload
	next    time.Time
}

func (p *Pod) content(name, plugin string, mode *int32, f payload) *content {
	c := &content{pod: p, dir: p.dir(plugin, name), mode: 0o644, compute: f}
	if mode != nil {
		c.mode = *mode
	}
	return c
}

func (c *content) Path() string       { return c.dir }
func (c *content) ReadOnly() bool     { return true }
func (c *content) Refresh() time.Time { return c.next }

// tmpfsForContent bounds the memory of a volume that holds secrets.
const tmpfsForContent = 64 << 20

func (c *content) SetUp(ctx context.Context) error {
	files, next, err := c.compute(ctx, c)
	if err != nil {
		return err
	}
	if err := mkdir(c.dir, 0o777); err != nil {
		return err
	}
	if c.memory {
		if err := mountTmpfs(c.dir, tmpfsForContent); err != nil {
			return err
		}
		if err := mkdir(c.dir, 0o777); err != nil {
			return err
		}
	}
	group := fsGroup(c.pod.pod)
	if err := writeAtomic(c.dir, files, func(dir string) error { return own(dir, group, true) }); err != nil {
		return err
	}
	c.next = next
	return nil
}

func optional(b *bool) bool { return b != nil && *b }

func pick(m *int32, def int32) int32 {
	if m != nil {
		return *m
	}
	return def
}

// items selects keys of a map of data: all of them, or those listed under the paths given.
func items(data map[string][]byte, list []v1.KeyToPath, mode int32, isOptional bool, missing func(key string) error) (map[string]File, error) {
	out := map[string]File{}
	if len(list) == 0 {
		for k, v := range data {
			out[k] = File{Data: v, Mode: mode}
		}
		return out, nil
	}
	for _, it := range list {
		v, ok := data[it.Key]
		if !ok {
			if isOptional {
				continue
			}
			return nil, missing(it.Key)
		}
		out[it.Path] = File{Data: v, Mode: pick(it.Mode, mode)}
	}
	return out, nil
}

func (c *content) configMap(name string, list []v1.KeyToPath, opt *bool) (map[string]File, error) {
	cm, err := c.pod.host.ConfigMap(c.pod.pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional(opt) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data := map[string][]byte{}
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return items(data, list, c.mode, optional(opt), func(k string) error {
		return fmt.Errorf("configmap references non-existent config key: %s", k)
	})
}

func (c *content) secret(name string, list []v1.KeyToPath, opt *bool) (map[string]File, error) {
	s, err := c.pod.host.Secret(c.pod.pod.Namespace, name)
	if apierrors.IsNotFound(err) && optional(opt) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return items(s.Data, list, c.mode, optional(opt), func(k string) error {
		return fmt.Errorf("references non-existent secret key: %s", k)
	})
}

// lasting is the payload of files that change only when what they are made of does.
func lasting(files func(c *content) (map[string]File, error)) payload {
	return func(_ context.Context, c *content) (map[string]File, time.Time, error) {
		f, err := files(c)
		return f, time.Time{}, err
	}
}

func (c *content) downward(list []v1.DownwardAPIVolumeFile) (map[string]File, error) {
	out := map[string]File{}
	node := c.pod.host.Node()
	for i := range list {
		it := &list[i]
		var value string
		var err error
		switch {
		case it.FieldRef != nil:
			value, err = env.Field(c.pod.pod, it.FieldRef.FieldPath, c.pod.podIPs, node)
		case it.ResourceFieldRef != nil:
			value, err = env.Resource(c.pod.pod, podstate.FindContainer(c.pod.pod, it.ResourceFieldRef.ContainerName), it.ResourceFieldRef, node)
		}
		if err != nil {
			return nil, err
		}
		out[path.Clean(it.Path)] = File{Data: []byte(value), Mode: pick(it.Mode, c.mode)}
	}
	return out, nil
}

func projectedPayload(src *v1.ProjectedVolumeSource) payload {
	return func(ctx context.Context, c *content) (map[string]File, time.Time, error) {
		out := map[string]File{}
		var next time.Time
		var errs []error
		for i := range src.Sources {
			files, refresh, err := projectOne(ctx, c, i, &src.Sources[i])
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for k, f := range files {
				out[k] = f
			}
			if !refresh.IsZero() && (next.IsZero() || refresh.Before(next)) {
				next = refresh
			}
		}
		return out, next, errors.Join(errs...)
	}
}

// trustBundleRecheck is how often projected trust bundles, which are not watched, are read again.
const trustBundleRecheck = time.Minute

func projectOne(ctx context.Context, c *content, i int, s *v1.VolumeProjection) (map[string]File, time.Time, error) {
	var none time.Time
	switch {
	case s.Secret != nil:
		f, err := c.secret(s.Secret.Name, s.Secret.Items, s.Secret.Optional)
		return f, none, err
	case s.ConfigMap != nil:
		f, err := c.configMap(s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
		return f, none, err
	case s.DownwardAPI != nil:
		f, err := c.downward(s.DownwardAPI.Items)
		return f, none, err
	case s.ServiceAccountToken != nil:
		return tokenFile(ctx, c, s.ServiceAccountToken)
	case s.ClusterTrustBundle != nil:
		f, err := trustBundle(ctx, c, s.ClusterTrustBundle)
		return f, c.pod.host.Now().Add(trustBundleRecheck), err
	case s.PodCertificate != nil:
		f, err := certificateFiles(c, i, s.PodCertificate)
		return f, none, err
	}
	return nil, none, fmt.Errorf("projected volume source is empty or not supported by this node")
}

// singleUser is the one user all containers of the pod run as, or nil.
func singleUser(pod *v1.Pod) *int64 {
	var uid *int64
	all := append(append([]v1.Container{}, pod.Spec.InitContainers...), pod.Spec.Containers...)
	for i := range all {
		u := (*int64)(nil)
		if p := pod.Spec.SecurityContext; p != nil {
			u = p.RunAsUser
		}
		if sc := all[i].SecurityContext; sc != nil && sc.RunAsUser != nil {
			u = sc.RunAsUser
		}
		if u == nil || uid != nil && *uid != *u {
			return nil
		}
		uid = u
	}
	return uid
}

// validName refuses paths that would leave the volume or collide with its bookkeeping.
func validName(name string) error {
	if name == "" || path.IsAbs(name) || len(name) > 4096 || strings.HasPrefix(name, "..") {
		return fmt.Errorf("invalid file path %q in volume content", name)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." || len(part) > 255 {
			return fmt.Errorf("invalid file path %q in volume content", name)
		}
	}
	return nil
}

package enginetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
)

// Metadata is a metadata client over objects in memory, with the API server's deletion semantics:
// finalizers, propagation policies, preconditions and resource versions. It cannot watch.
type Metadata struct {
	mu      sync.Mutex
	objects map[string]*metav1.PartialObjectMetadata // "resource.group/namespace/name"
	serial  int
	log     []string
}

var _ metadata.Interface = (*Metadata)(nil)

// NewMetadata returns an empty one.
func NewMetadata() *Metadata { return &Metadata{objects: map[string]*metav1.PartialObjectMetadata{}} }

// Add stores o as an object of gvr; its UID is its name unless set.
func (m *Metadata) Add(gvr schema.GroupVersionResource, o *metav1.PartialObjectMetadata) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o.UID == "" {
		o.UID = types.UID(o.Name)
	}
	m.put(key(gvr, o.Namespace, o.Name), o)
}

// Names lists what is left of gvr, sorted; objects being deleted have a "-" in front.
func (m *Metadata) Names(gvr schema.GroupVersionResource) []string {
	var out []string
	for _, o := range m.List(gvr) {
		name := o.Name
		if o.DeletionTimestamp != nil {
			name = "-" + name
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// List returns copies of what is left of gvr.
func (m *Metadata) List(gvr schema.GroupVersionResource) []*metav1.PartialObjectMetadata {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*metav1.PartialObjectMetadata
	for k, o := range m.objects {
		if strings.HasPrefix(k, gvr.GroupResource().String()+"/") {
			out = append(out, o.DeepCopy())
		}
	}
	slices.SortFunc(out, func(a, b *metav1.PartialObjectMetadata) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Writes returns and clears the transcript: "delete pods/ns/name Background".
func (m *Metadata) Writes() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.log
	m.log = nil
	return out
}

// Resource implements metadata.Interface.
func (m *Metadata) Resource(gvr schema.GroupVersionResource) metadata.Getter {
	return &resourceClient{m: m, gvr: gvr}
}

func key(gvr schema.GroupVersionResource, ns, name string) string {
	return gvr.GroupResource().String() + "/" + ns + "/" + name
}

func (m *Metadata) put(k string, o *metav1.PartialObjectMetadata) {
	m.serial++
	o.ResourceVersion = fmt.Sprint(m.serial)
	if o.DeletionTimestamp != nil && len(o.Finalizers) == 0 {
		delete(m.objects, k)
		return
	}
	m.objects[k] = o
}

type resourceClient struct {
	m   *Metadata
	gvr schema.GroupVersionResource
	ns  string
}

func (c *resourceClient) Namespace(ns string) metadata.ResourceInterface {
	return &resourceClient{m: c.m, gvr: c.gvr, ns: ns}
}

func (c *resourceClient) find(name string) (*metav1.PartialObjectMetadata, error) {
	o := c.m.objects[key(c.gvr, c.ns, name)]
	if o == nil {
		return nil, apierrors.NewNotFound(c.gvr.GroupResource(), name)
	}
	return o, nil
}

func (c *resourceClient) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*metav1.PartialObjectMetadata, error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	o, err := c.find(name)
	if err != nil {
		return nil, err
	}
	return o.DeepCopy(), nil
}

func (c *resourceClient) List(context.Context, metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	list := &metav1.PartialObjectMetadataList{}
	for _, o := range c.m.List(c.gvr) {
		if c.ns == "" || o.Namespace == c.ns {
			list.Items = append(list.Items, *o)
		}
	}
	return list, nil
}

func (c *resourceClient) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return nil, errors.New("enginetest.Metadata cannot watch")
}

func (c *resourceClient) Delete(_ context.Context, name string, o metav1.DeleteOptions, _ ...string) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	obj, err := c.find(name)
	if err != nil {
		return err
	}
	if p := o.Preconditions; p != nil && (p.UID != nil && *p.UID != obj.UID || p.ResourceVersion != nil && *p.ResourceVersion != obj.ResourceVersion) {
		return apierrors.NewConflict(c.gvr.GroupResource(), name, errors.New("precondition failed"))
	}
	policy := metav1.DeletePropagationBackground
	if o.PropagationPolicy != nil {
		policy = *o.PropagationPolicy
	}
	c.m.log = append(c.m.log, fmt.Sprintf("delete %s %s", key(c.gvr, c.ns, name), policy))
	obj = obj.DeepCopy()
	if obj.DeletionTimestamp == nil {
		obj.DeletionTimestamp = new(metav1.NewTime(Epoch))
	}
	obj.Finalizers = slices.DeleteFunc(obj.Finalizers, func(f string) bool {
		return f == metav1.FinalizerDeleteDependents || f == metav1.FinalizerOrphanDependents
	})
	switch policy {
	case metav1.DeletePropagationForeground:
		obj.Finalizers = append(obj.Finalizers, metav1.FinalizerDeleteDependents)
	case metav1.DeletePropagationOrphan:
		obj.Finalizers = append(obj.Finalizers, metav1.FinalizerOrphanDependents)
	}
	c.m.put(key(c.gvr, c.ns, name), obj)
	return nil
}

func (c *resourceClient) DeleteCollection(ctx context.Context, o metav1.DeleteOptions, l metav1.ListOptions) error {
	list, err := c.List(ctx, l)
	if err != nil {
		return err
	}
	for _, item := range list.Items {
		if err := c.Delete(ctx, item.Name, o); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// Patch takes JSON merge patches of owner references and finalizers.
func (c *resourceClient) Patch(_ context.Context, name string, pt types.PatchType, data []byte, _ metav1.PatchOptions, _ ...string) (*metav1.PartialObjectMetadata, error) {
	if pt != types.MergePatchType {
		return nil, fmt.Errorf("enginetest.Metadata does not take %s", pt)
	}
	var p struct {
		Metadata struct {
			UID             types.UID
			ResourceVersion string
			OwnerReferences *[]metav1.OwnerReference
			Finalizers      *[]string
		}
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	obj, err := c.find(name)
	if err != nil {
		return nil, err
	}
	if p.Metadata.UID != "" && p.Metadata.UID != obj.UID || p.Metadata.ResourceVersion != "" && p.Metadata.ResourceVersion != obj.ResourceVersion {
		return nil, apierrors.NewConflict(c.gvr.GroupResource(), name, errors.New("changed"))
	}
	c.m.log = append(c.m.log, fmt.Sprintf("patch %s", key(c.gvr, c.ns, name)))
	obj = obj.DeepCopy()
	if p.Metadata.OwnerReferences != nil {
		obj.OwnerReferences = *p.Metadata.OwnerReferences
	}
	if p.Metadata.Finalizers != nil {
		obj.Finalizers = *p.Metadata.Finalizers
	}
	c.m.put(key(c.gvr, c.ns, name), obj)
	return obj.DeepCopy(), nil
}

package garbagecollector

import (
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// identity names an object in full.
type identity struct {
	gvr        schema.GroupVersionResource
	apiVersion string
	kind       string
	namespace  string
	name       string
	uid        types.UID
}

func (id identity) String() string {
	return fmt.Sprintf("[%s/%s, namespace: %s, name: %s, uid: %s]", id.apiVersion, id.kind, id.namespace, id.name, id.uid)
}

// node is what the collector remembers of an object.
type node struct {
	identity
	owners       []metav1.OwnerReference
	beingDeleted bool
	foreground   bool // being deleted, waiting for its dependents to be deleted
	orphan       bool // being deleted, waiting for its dependents to be orphaned
}

// graph is who owns whom. Dependents are filed under the owner's UID whether or not the owner is
// known, so an owner that was never seen, or is gone, needs no stand-in. Safe for concurrent use.
type graph struct {
	mu         sync.Mutex
	nodes      map[types.UID]*node
	dependents map[types.UID]map[types.UID]*node // by owner
}

// wake lists what a change makes worth another look: now, or soon for objects whose owner is not
// known (yet): its own arrival is likely under way.
type wake struct {
	now, soon []types.UID
}

func newGraph() *graph {
	return &graph{nodes: map[types.UID]*node{}, dependents: map[types.UID]map[types.UID]*node{}}
}

// observe records an object as it is.
func (g *graph) observe(id identity, m metav1.Object) wake {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := &node{identity: id, owners: m.GetOwnerReferences(), beingDeleted: m.GetDeletionTimestamp() != nil}
	n.foreground = n.beingDeleted && slices.Contains(m.GetFinalizers(), metav1.FinalizerDeleteDependents)
	n.orphan = n.beingDeleted && slices.Contains(m.GetFinalizers(), metav1.FinalizerOrphanDependents)
	was := g.nodes[id.uid]
	if was != nil {
		g.unlink(was)
	}
	g.nodes[id.uid] = n
	for _, ref := range n.owners {
		if g.dependents[ref.UID] == nil {
			g.dependents[ref.UID] = map[types.UID]*node{}
		}
		g.dependents[ref.UID][n.uid] = n
	}
	return g.woken(was, n)
}

func (g *graph) woken(was, n *node) wake {
	var w wake
	if n.orphan && (was == nil || !was.orphan) {
		w.now = append(w.now, n.uid)
	}
	if n.foreground && (was == nil || !was.foreground) {
		w.now = append(w.now, n.uid)
		for uid := range g.dependents[n.uid] {
			w.now = append(w.now, uid)
		}
	}
	if was != nil {
		for _, ref := range was.owners {
			if o := g.nodes[ref.UID]; o != nil && o.foreground && blocks(was, ref.UID) && !blocks(n, ref.UID) {
				w.now = append(w.now, ref.UID)
			}
		}
	}
	if was == nil || !slices.EqualFunc(was.owners, n.owners, sameRef) {
		switch g.standing(n) {
		case unknown:
			w.soon = append(w.soon, n.uid)
		case doomed:
			w.now = append(w.now, n.uid)
		}
	}
	return w
}

func sameRef(a, b metav1.OwnerReference) bool {
	return a.UID == b.UID && a.Name == b.Name && a.Kind == b.Kind && a.APIVersion == b.APIVersion
}

// forget records that the object is gone.
func (g *graph) forget(uid types.UID) wake {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.nodes[uid]
	if n == nil {
		return wake{}
	}
	g.unlink(n)
	delete(g.nodes, uid)
	var w wake
	for dep := range g.dependents[uid] {
		w.now = append(w.now, dep)
	}
	for _, ref := range n.owners {
		if o := g.nodes[ref.UID]; o != nil && o.foreground {
			w.now = append(w.now, ref.UID)
		}
	}
	return w
}

// unlink takes n out of its owners' dependents.
func (g *graph) unlink(n *node) {
	for _, ref := range n.owners {
		delete(g.dependents[ref.UID], n.uid)
		if len(g.dependents[ref.UID]) == 0 {
			delete(g.dependents, ref.UID)
		}
	}
}

// of lists the UIDs of all known objects of one resource.
func (g *graph) of(gvr schema.GroupVersionResource) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []types.UID
	for uid, n := range g.nodes {
		if n.gvr == gvr {
			out = append(out, uid)
		}
	}
	return out
}

// get returns a node and its dependents; nodes are never changed once in the graph.
func (g *graph) get(uid types.UID) (n *node, dependents []*node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.dependents[uid] {
		dependents = append(dependents, d)
	}
	return g.nodes[uid], dependents
}

// standing of an object by what the graph knows of its owners.
type standing int

const (
	sound   standing = iota // every owner is there and stays
	unknown                 // an owner is not known, or not as the reference says
	doomed                  // an owner waits for this object to go
)

func (g *graph) stands(n *node) standing {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.standing(n)
}

func (g *graph) standing(n *node) standing {
	s := sound
	for _, ref := range n.owners {
		o := g.nodes[ref.UID]
		switch {
		case o == nil || !matches(o.identity, ref, n.namespace):
			s = max(s, unknown)
		case o.foreground:
			s = doomed
		}
	}
	return s
}

// matches reports whether ref, on an object in namespace, truly means id.
func matches(id identity, ref metav1.OwnerReference, namespace string) bool {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil || id.uid != ref.UID || id.name != ref.Name || id.kind != ref.Kind || gv.Group != id.gvr.Group {
		return false
	}
	return id.namespace == "" || id.namespace == namespace
}

// blocks reports whether n keeps the owner with this UID from finishing a foreground deletion.
func blocks(n *node, owner types.UID) bool {
	return slices.ContainsFunc(n.owners, func(r metav1.OwnerReference) bool {
		return r.UID == owner && r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
	})
}

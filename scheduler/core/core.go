// Package core decides where a pod goes. It is pure: Decide looks at a Cluster
// and a Request and returns a Decision, changing nothing; it has no goroutine,
// clock, API or randomness but the tie-breaker it is given.
//
// # Columns
//
// A Cluster keeps its nodes as columns: row i of every column is node i. A
// filter is a loop over one or two columns that drops rows from the list of
// survivors; a score is a loop that adds to one number for each survivor. What
// pods select by (labels, taints) is interned: a label key is a column of value
// numbers, a node's taints are one number, and a selector is evaluated once for
// each distinct value, not for each node.
//
// Pods of one template share a class (class.go): what single nodes mean for
// them is kept, and looked at again only for the nodes that change.
//
// # Plugins
//
// One file for each of upstream's plugins, in upstream's order (filters.go).
// A node's reason is that of the first filter that drops it. Names, texts,
// weights and formulas are those of Kubernetes v1.37. Unlike upstream, which
// samples large clusters, every node is filtered and scored.
package core

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Cluster is what the scheduler knows of nodes and the pods on them. One
// goroutine at a time may use it.
type Cluster struct {
	index map[string]int32 // node name → row
	nodes []*v1.Node       // nil: the node is unknown, but pods are on it

	// One entry for each row.
	cpu, memory, ephemeral resourceColumn
	podSlots               resourceColumn // used counts pods
	nonzeroCPU             []int64        // used, with defaults for containers that ask for nothing
	nonzeroMemory          []int64
	unschedulable          []bool
	taints                 []int32 // number of the taint set
	pods                   [][]*Pod
	ports                  [][]hostPort

	scalars map[v1.ResourceName]*resourceColumn // other resources, by name
	labels  map[string]*labelColumn             // label keys that were selected by
	taintNo map[string]int32                    // taint set as text → number
	sets    [][]v1.Taint                        // taint sets by number; 0 is empty
	images  map[string]*image

	byUID      map[types.UID]*Pod
	byNS       map[string]map[*Pod]struct{} // pods by namespace
	anti       map[*Pod]struct{}            // pods with required anti-affinity
	affine     map[*Pod]struct{}            // pods with any (anti-)affinity that scores others
	namespaces map[string]labels.Set
	counters   map[string]*counter // pods by selector and node
	classes    map[string]*class   // of the templates that were asked for
	journal    journal             // rows that changed, for the classes
	tick       int64               // age of counters and classes
	scratch    scratch
}

// resourceColumn is one resource of all nodes.
type resourceColumn struct{ total, used []int64 }

// NewCluster returns a cluster without nodes.
func NewCluster() *Cluster {
	return &Cluster{
		index:      map[string]int32{},
		scalars:    map[v1.ResourceName]*resourceColumn{},
		labels:     map[string]*labelColumn{},
		taintNo:    map[string]int32{"": 0},
		sets:       [][]v1.Taint{nil},
		images:     map[string]*image{},
		byUID:      map[types.UID]*Pod{},
		byNS:       map[string]map[*Pod]struct{}{},
		anti:       map[*Pod]struct{}{},
		affine:     map[*Pod]struct{}{},
		namespaces: map[string]labels.Set{},
		counters:   map[string]*counter{},
		classes:    map[string]*class{},
	}
}

// Nodes is the number of known nodes.
func (c *Cluster) Nodes() int {
	n := 0
	for _, node := range c.nodes {
		if node != nil {
			n++
		}
	}
	return n
}

// Node returns a known node, or nil.
func (c *Cluster) Node(name string) *v1.Node {
	if row, ok := c.index[name]; ok {
		return c.nodes[row]
	}
	return nil
}

// PodsOn returns the pods on a node. The slice is the cluster's.
func (c *Cluster) PodsOn(name string) []*Pod {
	if row, ok := c.index[name]; ok {
		return c.pods[row]
	}
	return nil
}

// Pod returns the pod with an UID that is on a node, or nil.
func (c *Cluster) Pod(uid types.UID) *Pod { return c.byUID[uid] }

// SetNamespace tells the labels of a namespace; nil forgets it.
func (c *Cluster) SetNamespace(name string, set map[string]string) {
	if set == nil {
		delete(c.namespaces, name)
		return
	}
	c.namespaces[name] = set
}

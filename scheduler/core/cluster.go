package core

import (
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// row returns the row of a node, made if need be.
func (c *Cluster) row(name string) int32 {
	if row, ok := c.index[name]; ok {
		return row
	}
	row := int32(len(c.nodes))
	clear(c.classes)
	c.index[name] = row
	c.nodes = append(c.nodes, nil)
	for _, col := range c.resources() {
		col.total = append(col.total, 0)
		col.used = append(col.used, 0)
	}
	c.nonzeroCPU = append(c.nonzeroCPU, 0)
	c.nonzeroMemory = append(c.nonzeroMemory, 0)
	c.unschedulable = append(c.unschedulable, false)
	c.taints = append(c.taints, 0)
	c.pods = append(c.pods, nil)
	c.ports = append(c.ports, nil)
	for _, col := range c.labels {
		col.values = append(col.values, 0)
	}
	for _, cnt := range c.counters {
		cnt.byRow = append(cnt.byRow, 0)
	}
	return row
}

// resources lists every resource column.
func (c *Cluster) resources() []*resourceColumn {
	return append([]*resourceColumn{&c.cpu, &c.memory, &c.ephemeral, &c.podSlots}, slices.Collect(maps.Values(c.scalars))...)
}

// scalar returns the column of any other resource, made if need be.
func (c *Cluster) scalar(name v1.ResourceName) *resourceColumn {
	col := c.scalars[name]
	if col == nil {
		col = &resourceColumn{total: make([]int64, len(c.nodes)), used: make([]int64, len(c.nodes))}
		c.scalars[name] = col
	}
	return col
}

// SetNode adds a node or replaces what is known of it.
func (c *Cluster) SetNode(node *v1.Node) {
	row := c.row(node.Name)
	if old := c.nodes[row]; old != nil && sameImages(old, node) {
		c.touch(row)
	} else {
		clear(c.classes) // what an image is worth depends on how many nodes have it
		c.dropImages(row)
	}
	c.nodes[row] = node
	alloc := node.Status.Allocatable
	c.cpu.total[row] = alloc.Cpu().MilliValue()
	c.memory.total[row] = alloc.Memory().Value()
	c.ephemeral.total[row] = alloc.StorageEphemeral().Value()
	c.podSlots.total[row] = alloc.Pods().Value()
	for _, col := range c.scalars {
		col.total[row] = 0
	}
	for name, q := range alloc {
		if isScalar(name) {
			c.scalar(name).total[row] = q.Value()
		}
	}
	c.unschedulable[row] = node.Spec.Unschedulable
	c.taints[row] = c.taintSet(node.Spec.Taints)
	for key, col := range c.labels {
		col.set(row, node.Labels, key)
	}
	c.addImages(row)
}

// isScalar reports whether a resource has no column of its own.
func isScalar(name v1.ResourceName) bool {
	switch name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, v1.ResourcePods:
		return false
	}
	return true
}

// taintSet interns a node's taints.
func (c *Cluster) taintSet(taints []v1.Taint) int32 {
	var b strings.Builder
	for _, t := range taints {
		b.WriteString(t.Key + "=" + t.Value + ":" + string(t.Effect) + "\x00")
	}
	no, ok := c.taintNo[b.String()]
	if !ok {
		no = int32(len(c.sets))
		c.taintNo[b.String()] = no
		c.sets = append(c.sets, taints)
	}
	return no
}

// RemoveNode forgets a node. Its row stays while pods are on it.
func (c *Cluster) RemoveNode(name string) {
	row, ok := c.index[name]
	if !ok {
		return
	}
	clear(c.classes)
	c.dropImages(row)
	c.nodes[row] = nil
	c.shrink(row)
}

// shrink removes a row that has neither node nor pods: the last row takes its
// place.
func (c *Cluster) shrink(row int32) {
	if c.nodes[row] != nil || len(c.pods[row]) > 0 {
		return
	}
	for name, r := range c.index {
		if r == row {
			delete(c.index, name)
			break
		}
	}
	clear(c.classes)
	last := int32(len(c.nodes) - 1)
	if row != last {
		if c.nodes[last] != nil {
			c.index[c.nodes[last].Name] = row
		} else {
			c.index[c.pods[last][0].Node] = row
		}
		c.moveImages(last, row)
	}
	c.nodes = swapOut(c.nodes, row)
	for _, col := range c.resources() {
		col.total = swapOut(col.total, row)
		col.used = swapOut(col.used, row)
	}
	c.nonzeroCPU = swapOut(c.nonzeroCPU, row)
	c.nonzeroMemory = swapOut(c.nonzeroMemory, row)
	c.unschedulable = swapOut(c.unschedulable, row)
	c.taints = swapOut(c.taints, row)
	c.pods = swapOut(c.pods, row)
	c.ports = swapOut(c.ports, row)
	for _, col := range c.labels {
		col.values = swapOut(col.values, row)
	}
	for _, cnt := range c.counters {
		cnt.byRow = swapOut(cnt.byRow, row)
	}
}

// swapOut removes element i by putting the last in its place.
func swapOut[T any](s []T, i int32) []T {
	last := len(s) - 1
	s[i] = s[last]
	var zero T
	s[last] = zero
	return s[:last]
}

// AddPod puts a pod on node; a pod with its UID that is there already is
// replaced.
func (c *Cluster) AddPod(p *Pod, node string) {
	c.RemovePod(p)
	p.Node = node
	row := c.row(node)
	c.pods[row] = append(c.pods[row], p)
	c.byUID[p.UID] = p
	if c.byNS[p.Namespace] == nil {
		c.byNS[p.Namespace] = map[*Pod]struct{}{}
	}
	c.byNS[p.Namespace][p] = struct{}{}
	if len(p.affinity.requiredAnti) > 0 {
		c.anti[p] = struct{}{}
	}
	if p.affinity.scoresOthers() {
		c.affine[p] = struct{}{}
	}
	c.ports[row] = append(c.ports[row], p.ports...)
	c.account(p, row, 1)
}

// RemovePod takes the pod with p's UID off its node, if it is on one.
func (c *Cluster) RemovePod(p *Pod) {
	old := c.byUID[p.UID]
	if old == nil {
		return
	}
	row := c.index[old.Node]
	c.pods[row] = slices.DeleteFunc(c.pods[row], func(o *Pod) bool { return o == old })
	delete(c.byUID, old.UID)
	delete(c.byNS[old.Namespace], old)
	if len(c.byNS[old.Namespace]) == 0 {
		delete(c.byNS, old.Namespace)
	}
	delete(c.anti, old)
	delete(c.affine, old)
	if len(old.ports) > 0 {
		c.ports[row] = nil
		for _, o := range c.pods[row] {
			c.ports[row] = append(c.ports[row], o.ports...)
		}
	}
	c.account(old, row, -1)
	c.shrink(row)
}

// account adds sign times a pod's requests to a row.
func (c *Cluster) account(p *Pod, row int32, sign int64) {
	c.touch(row)
	c.cpu.used[row] += sign * p.req.cpu
	c.memory.used[row] += sign * p.req.memory
	c.ephemeral.used[row] += sign * p.req.ephemeral
	c.podSlots.used[row] += sign
	c.nonzeroCPU[row] += sign * p.nonzero.cpu
	c.nonzeroMemory[row] += sign * p.nonzero.memory
	for name, n := range p.req.scalars {
		c.scalar(name).used[row] += sign * n
	}
	for _, cnt := range c.counters {
		if cnt.matches(p) {
			cnt.byRow[row] += int32(sign)
		}
	}
}

// labelColumn is the values of one label key: a number for each row, 0 where
// the label is missing. Values are never forgotten while the column lives.
type labelColumn struct {
	values []int32
	number map[string]int32
	names  []string // by number
}

func (col *labelColumn) set(row int32, labels map[string]string, key string) {
	value, ok := labels[key]
	if !ok {
		col.values[row] = 0
		return
	}
	no, ok := col.number[value]
	if !ok {
		no = int32(len(col.names))
		col.number[value] = no
		col.names = append(col.names, value)
	}
	col.values[row] = no
}

// maxColumns bounds the label keys that have a column; pods invent keys.
const maxColumns = 256

// label returns the column of a label key, made if need be.
func (c *Cluster) label(key string) *labelColumn {
	if col := c.labels[key]; col != nil {
		return col
	}
	if len(c.labels) >= maxColumns {
		clear(c.labels)
	}
	col := &labelColumn{values: make([]int32, len(c.nodes)), number: map[string]int32{}, names: []string{""}}
	for row, node := range c.nodes {
		if node != nil {
			col.set(int32(row), node.Labels, key)
		}
	}
	c.labels[key] = col
	return col
}

// milli is a quantity in thousandths.
func milli(q resource.Quantity) int64 { return q.MilliValue() }

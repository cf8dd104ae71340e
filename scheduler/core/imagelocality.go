package core

import (
	"iter"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// image is a container image and the nodes that have it.
type image struct {
	size int64
	on   bitset
	n    int // nodes
}

// bitset is a set of rows.
type bitset []uint64

func (b bitset) has(row int32) bool {
	return int(row/64) < len(b) && b[row/64]>>(row%64)&1 == 1
}

func (b *bitset) put(row int32, in bool) {
	for int(row/64) >= len(*b) {
		*b = append(*b, 0)
	}
	if in {
		(*b)[row/64] |= 1 << (row % 64)
	} else {
		(*b)[row/64] &^= 1 << (row % 64)
	}
}

func (c *Cluster) addImages(row int32) {
	for _, im := range c.nodes[row].Status.Images {
		for _, name := range im.Names {
			known := c.images[name]
			if known == nil {
				known = &image{size: im.SizeBytes}
				c.images[name] = known
			}
			if !known.on.has(row) {
				known.on.put(row, true)
				known.n++
			}
		}
	}
}

func (c *Cluster) dropImages(row int32) {
	if c.nodes[row] == nil {
		return
	}
	for _, im := range c.nodes[row].Status.Images {
		for _, name := range im.Names {
			known := c.images[name]
			if known == nil || !known.on.has(row) {
				continue
			}
			known.on.put(row, false)
			if known.n--; known.n == 0 {
				delete(c.images, name)
			}
		}
	}
}

// moveImages renames a row.
func (c *Cluster) moveImages(from, to int32) {
	if c.nodes[from] == nil {
		return
	}
	for _, im := range c.nodes[from].Status.Images {
		for _, name := range im.Names {
			if known := c.images[name]; known != nil && known.on.has(from) {
				known.on.put(from, false)
				known.on.put(to, true)
			}
		}
	}
}

// Bounds between which the size of images counts. Bytes.
const (
	minImageBytes = 23 << 20
	maxImageBytes = 1000 << 20 // for each image
)

// scoreImages prefers nodes that have the pod's images, weighing down those
// that few nodes have.
func (s *search) scoreImages() {
	var found []*image
	count := 0
	for name := range s.pod.images() {
		count++
		if im := s.c.images[normalImage(name)]; im != nil {
			found = append(found, im)
		}
	}
	if len(found) == 0 {
		return
	}
	total := float64(s.c.Nodes())
	limit := int64(maxImageBytes * count)
	for i, row := range s.rows {
		var sum int64
		for _, im := range found {
			if im.on.has(row) {
				sum += int64(float64(im.size) * (float64(im.n) / total))
			}
		}
		sum = min(max(sum, minImageBytes), limit)
		s.scores[i] += weightImages * (maxScore * (sum - minImageBytes) / (limit - minImageBytes))
	}
}

// images are the images that a pod names.
func (p *Pod) images() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				if !yield(list[i].Image) {
					return
				}
			}
		}
		for i := range p.Spec.Volumes {
			if v := p.Spec.Volumes[i].Image; v != nil && !yield(v.Reference) {
				return
			}
		}
	}
}

// sameImages reports whether a node has what it had.
func sameImages(old, now *v1.Node) bool {
	return slices.EqualFunc(old.Status.Images, now.Status.Images, func(a, b v1.ContainerImage) bool {
		return a.SizeBytes == b.SizeBytes && slices.Equal(a.Names, b.Names)
	})
}

// normalImage gives an image name the tag it has by default.
func normalImage(name string) string {
	if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		return name + ":latest"
	}
	return name
}

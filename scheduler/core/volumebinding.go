package core

import v1 "k8s.io/api/core/v1"

// Volumes is what is known of a pod's claims.
type Volumes struct {
	// Refused says why the pod cannot go anywhere yet, "" if it can.
	Refused string
	// Affinities are the node affinities of the volumes its claims are bound
	// to.
	Affinities []*v1.NodeSelector
	// Missing: a claim is bound to a volume that does not exist.
	Missing bool
	// Late, if any claim gets its volume only when the pod's node is known,
	// reports whether all of those can get one on a node.
	Late func(*v1.Node) bool
}

var (
	volumeElsewhere = &status{plugin: VolumeBinding, reasons: []string{"node(s) didn't match PersistentVolume's node affinity"}, unresolvable: true}
	volumeNowhere   = &status{plugin: VolumeBinding, reasons: []string{"node(s) didn't find available persistent volumes to bind"}, unresolvable: true}
	volumeMissing   = &status{plugin: VolumeBinding, reasons: []string{"node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"}, unresolvable: true}
)

func (s *search) prepareVolumes() {
	if s.req.Volumes.Refused != "" {
		s.refuseAll(VolumeBinding, s.req.Volumes.Refused)
	}
}

// filterVolumes keeps the nodes from which the pod's bound volumes can be
// reached, and on which its other claims can get theirs.
func (s *search) filterVolumes() {
	if s.req.Volumes.Missing {
		s.keep(func(int32) *status { return volumeMissing })
		return
	}
	for _, sel := range s.req.Volumes.Affinities {
		var terms [][]requirement
		for i := range sel.NodeSelectorTerms {
			if t := &sel.NodeSelectorTerms[i]; len(t.MatchExpressions)+len(t.MatchFields) > 0 {
				terms = append(terms, s.c.term(t))
			}
		}
		s.keep(func(row int32) *status {
			for _, t := range terms {
				if holdAll(s.c, t, row) {
					return nil
				}
			}
			return volumeElsewhere
		})
	}
	if late := s.req.Volumes.Late; late != nil {
		s.keep(func(row int32) *status {
			if late(s.c.nodes[row]) {
				return nil
			}
			return volumeNowhere
		})
	}
}

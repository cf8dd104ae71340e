package core

var wrongName = &status{plugin: NodeName, reasons: []string{"node(s) didn't match the requested node name"}, unresolvable: true}

// filterNodeName keeps the node the pod names, if it names one.
func (s *search) filterNodeName() {
	want := s.pod.Spec.NodeName
	if want == "" {
		return
	}
	s.keep(func(row int32) *status {
		if s.c.nodes[row].Name != want {
			return wrongName
		}
		return nil
	})
}

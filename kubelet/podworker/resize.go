package podworker

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/kubelet/podstate"
)

// resize asks for the spec's cpu and memory to be applied to a running container when they differ
// from those last applied (in-place resize, KEP-1287).
func (m *Machine) resize(in *Input, o *Output, c *v1.Container, st *podstate.Container) {
	want := fingerprint(c.Resources)
	have, known := m.resized[st.ID]
	if !known {
		have = want
		for i := range m.old.ContainerStatuses {
			s := &m.old.ContainerStatuses[i]
			if s.Name == c.Name && s.Resources != nil && s.State.Running != nil {
				have = fingerprint(*s.Resources)
			}
		}
		if len(m.resized) > 256 {
			clear(m.resized)
		}
		m.resized[st.ID] = have
	}
	a := Action{Kind: Resize, Container: c.Name, ID: st.ID}
	if have == want || m.inFlight(Resize) || !m.may(a.Key(), in.Now, o) {
		return
	}
	if restartOnResize(c, have, want) {
		m.kill(in, o, st, killWhy{grace: podGrace(in.Pod), message: fmt.Sprintf("Container %s resize requires restart", c.Name)})
		return
	}
	m.resized[st.ID] = want
	m.do(o, a)
}

func fingerprint(r v1.ResourceRequirements) string {
	var parts []string
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		req, lim := r.Requests[name], r.Limits[name]
		parts = append(parts, fmt.Sprintf("%s=%s/%s", name, req.String(), lim.String()))
	}
	return strings.Join(parts, " ")
}

func restartOnResize(c *v1.Container, have, want string) bool {
	h, w := strings.Fields(have), strings.Fields(want)
	for _, p := range c.ResizePolicy {
		if p.RestartPolicy != v1.RestartContainer {
			continue
		}
		i := slices.Index([]v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}, p.ResourceName)
		if i >= 0 && h[i] != w[i] {
			return true
		}
	}
	return false
}

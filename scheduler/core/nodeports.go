package core

import v1 "k8s.io/api/core/v1"

var portsTaken = &status{plugin: NodePorts, reasons: []string{"node(s) didn't have free ports for the requested pod ports"}}

// hostPort is a port a pod takes on its node.
type hostPort struct {
	ip       string // "0.0.0.0" for every address
	protocol v1.Protocol
	port     int32
}

func (p hostPort) conflicts(o hostPort) bool {
	return p.port == o.port && p.protocol == o.protocol && (p.ip == o.ip || p.ip == anyAddress || o.ip == anyAddress)
}

const anyAddress = "0.0.0.0"

// hostPorts lists the host ports of a pod's containers and sidecars.
func hostPorts(pod *v1.Pod) []hostPort {
	var out []hostPort
	add := func(ctr *v1.Container) {
		for _, p := range ctr.Ports {
			if p.HostPort <= 0 {
				continue
			}
			hp := hostPort{ip: p.HostIP, protocol: p.Protocol, port: p.HostPort}
			if hp.ip == "" {
				hp.ip = anyAddress
			}
			if hp.protocol == "" {
				hp.protocol = v1.ProtocolTCP
			}
			out = append(out, hp)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		ctr := &pod.Spec.InitContainers[i]
		if ctr.RestartPolicy != nil && *ctr.RestartPolicy == v1.ContainerRestartPolicyAlways {
			add(ctr)
		}
	}
	return out
}

// filterPorts keeps the nodes on which the pod's host ports are free.
func (s *search) filterPorts() {
	if len(s.pod.ports) == 0 {
		return
	}
	s.keep(func(row int32) *status {
		for _, taken := range s.c.ports[row] {
			for _, want := range s.pod.ports {
				if want.conflicts(taken) {
					return portsTaken
				}
			}
		}
		return nil
	})
}

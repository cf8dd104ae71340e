package runtime

import (
	"context"
	"net/netip"
)

// Network connects sandboxes. The pod's network namespace exists before Setup and
// after Teardown; a sandbox on the host's network is never passed.
type Network interface {
	// Setup connects the namespace at s.NetnsPath and returns the pod's addresses, the
	// primary one first. After an error the runtime calls Teardown.
	Setup(ctx context.Context, s Sandbox) ([]netip.Addr, error)
	// Teardown takes everything of Setup away. It is idempotent, and NetnsPath may name
	// a namespace that is gone (after a reboot).
	Teardown(ctx context.Context, s Sandbox) error
	// Ready is nil when Setup can work; its error is shown on the node.
	Ready() error
}

// Sandbox is what a Network knows of a pod.
type Sandbox struct {
	ID, Namespace, Name, UID string
	// NetnsPath is a file that names the network namespace.
	NetnsPath    string
	PortMappings []PortMapping
	Labels       map[string]string
	Annotations  map[string]string
}

// PortMapping is one hostPort.
type PortMapping struct {
	Protocol      string // TCP, UDP or SCTP
	ContainerPort int32
	HostPort      int32
	HostIP        string // empty: all addresses
}

// noNetwork leaves pods with loopback only.
type noNetwork struct{}

func (noNetwork) Setup(context.Context, Sandbox) ([]netip.Addr, error) { return nil, nil }
func (noNetwork) Teardown(context.Context, Sandbox) error              { return nil }
func (noNetwork) Ready() error                                         { return nil }

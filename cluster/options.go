package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/internal/atomicfile"
)

// Version is Skiff's own version, set when the binary is linked.
var Version = "dev"

// KubernetesVersion is the upstream release whose behaviour Skiff implements;
// servers and nodes report it with Skiff's own version as build metadata.
const KubernetesVersion = "v1.37.2"

// DefaultDataDir is where a cluster lives unless told otherwise.
const DefaultDataDir = "/var/lib/skiff"

// Options says how a cluster on this machine is made. The zero value is a
// good cluster; what a fresh cluster settles on is kept in cluster.json, so
// that a resumed one keeps its addresses whatever has changed around it.
type Options struct {
	// DataDir holds everything of the cluster. Default /var/lib/skiff.
	DataDir string `json:"-"`
	// NodeName is this machine's node. Default: the host name, lower case.
	NodeName string `json:"nodeName"`
	// NodeIP is the node's address. Default: that of the interface with the
	// default route, else the first global one, else the pod bridge's.
	NodeIP netip.Addr `json:"nodeIP"`
	// APIPort serves the API on every address. Default 6443.
	APIPort int `json:"apiPort"`
	// KubeletPort serves the node's API. Default 10250.
	KubeletPort int `json:"kubeletPort"`
	// EtcdPort serves etcd's API on 127.0.0.1. Default 2379.
	EtcdPort int `json:"etcdPort"`
	// API is how the API server is set, in this run.
	API APISettings `json:"-"`
	// PodCIDR is cut into a /24 per node. Default 10.244.0.0/16, or the next
	// lower /16 that nothing on this machine uses.
	PodCIDR netip.Prefix `json:"podCIDR"`
	// ServiceCIDR holds ClusterIPs. Default 10.96.0.0/12, or the next /12 that
	// nothing on this machine uses.
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	// Domain is the cluster's DNS domain. Default cluster.local.
	Domain string `json:"domain"`
	// Suffix tells this cluster's bridge and nftables tables from another's on
	// the same host. Default: empty for the default folder, else four hex
	// digits made of the folder's path.
	Suffix string `json:"suffix"`
	// Nodes is how many nodes this machine plays, each but the first in a
	// network namespace of its own. Default 1. It may grow from start to start.
	Nodes int `json:"nodes,omitempty"`
	// NodeCIDR holds the further nodes' addresses; its first is this
	// machine's. Default 10.95.0.0/24, or the next lower /24 that nothing on
	// this machine uses, once there is more than one node.
	NodeCIDR netip.Prefix `json:"nodeCIDR,omitzero"`
	// Applets are the program names Skiff's own image answers to besides
	// kubectl and etcdctl. Default: none.
	Applets []string `json:"-"`
}

// Paths below the data folder.
func (o Options) path(elem ...string) string {
	return filepath.Join(append([]string{o.DataDir}, elem...)...)
}

// AdminConfig is the administrator's kubeconfig.
func (o Options) AdminConfig() string { return o.path("admin.conf") }

// ControlSocket is where the live process answers skiff's own commands.
func (o Options) ControlSocket() string { return o.path("skiff.sock") }

// LogFile is the process's own log.
func (o Options) LogFile() string { return o.path("log", "skiff.log") }

// Bridge is the node's pod bridge.
func (o Options) Bridge() string { return "skiff0" + o.Suffix }

// Table names an nftables table of this cluster.
func (o Options) Table(purpose string) string {
	if o.Suffix == "" {
		return "skiff-" + purpose
	}
	return "skiff-" + purpose + "-" + o.Suffix
}

// CgroupRoot is the cgroup all pods of this cluster live under.
func (o Options) CgroupRoot() string {
	if o.Suffix == "" {
		return "/kubepods"
	}
	return "/kubepods-" + o.Suffix
}

// serviceIP returns the n-th address of the service range.
func (o Options) serviceIP(n int) netip.Addr {
	a := o.ServiceCIDR.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// resolve fills what the caller left open: first from cluster.json, then
// from the machine. It reads the machine but changes nothing, but that c takes
// the ranges chosen; nil takes none.
func (o Options) resolve(c *claims) (Options, error) {
	if o.DataDir == "" {
		o.DataDir = DefaultDataDir
	}
	abs, err := filepath.Abs(o.DataDir)
	if err != nil {
		return o, err
	}
	o.DataDir = abs
	kept, err := loadOptions(o.path("cluster.json"))
	if err != nil {
		return o, err
	}
	if o.Nodes != 0 && o.Nodes < kept.Nodes {
		return o, Problem{
			What: fmt.Sprintf("the cluster in %s has %d nodes and cannot be resumed with %d", o.DataDir, kept.Nodes, o.Nodes),
			Fix:  fmt.Sprintf("leave out --nodes, or make the cluster anew: skiff down --purge --data-dir %s", o.DataDir),
		}
	}
	o = o.over(kept)
	if o.Nodes > 1 && !o.NodeCIDR.IsValid() {
		o.NodeCIDR = c.free(nodeRanges)
	}
	if !o.PodCIDR.IsValid() {
		o.PodCIDR = c.free(podRanges)
	}
	if !o.ServiceCIDR.IsValid() {
		o.ServiceCIDR = c.free(serviceRanges)
	}
	o = o.over(defaults(o.DataDir))
	if o.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return o, err
		}
		o.NodeName = strings.ToLower(name)
	}
	if errs := validation.IsDNS1123Subdomain(o.NodeName); len(errs) > 0 {
		return o, Problem{
			What: fmt.Sprintf("node name %q is not valid: %s", o.NodeName, strings.Join(errs, "; ")),
			Fix:  "give one with --node-name",
		}
	}
	if !o.NodeIP.IsValid() || !localAddress(o.NodeIP) {
		o.NodeIP = findNodeIP(o.PodCIDR)
	}
	return o, o.validate()
}

func defaults(dataDir string) Options {
	o := Options{
		APIPort: 6443, KubeletPort: 10250, EtcdPort: 2379, Nodes: 1,
		Domain: "cluster.local",
	}
	if dataDir != DefaultDataDir {
		h := fnv.New32a()
		h.Write([]byte(dataDir))
		o.Suffix = fmt.Sprintf("%04x", h.Sum32()&0xffff)
	}
	return o
}

// over returns o with its unset fields taken from base.
func (o Options) over(base Options) Options {
	api.SetIfEmpty(&o.NodeName, base.NodeName)
	api.SetIfEmpty(&o.NodeIP, base.NodeIP)
	api.SetIfEmpty(&o.APIPort, base.APIPort)
	api.SetIfEmpty(&o.KubeletPort, base.KubeletPort)
	api.SetIfEmpty(&o.EtcdPort, base.EtcdPort)
	api.SetIfEmpty(&o.PodCIDR, base.PodCIDR)
	api.SetIfEmpty(&o.ServiceCIDR, base.ServiceCIDR)
	api.SetIfEmpty(&o.Domain, base.Domain)
	api.SetIfEmpty(&o.Suffix, base.Suffix)
	api.SetIfEmpty(&o.Nodes, base.Nodes)
	api.SetIfEmpty(&o.NodeCIDR, base.NodeCIDR)
	return o
}

// maxNodes is how many a machine may play: more than that is hollow nodes' work.
const maxNodes = 64

func (o Options) validate() error {
	if o.Nodes < 0 || o.Nodes > maxNodes {
		return Problem{
			What: fmt.Sprintf("%d nodes on one machine", o.Nodes),
			Fix:  fmt.Sprintf("give 1 to %d with --nodes; 'skiff sim' adds simulated ones by the thousand", maxNodes),
		}
	}
	if room := 1 << max(0, 24-o.PodCIDR.Bits()); o.Nodes > room {
		return Problem{
			What: fmt.Sprintf("pod CIDR %s has room for %d nodes, not %d: each takes a /24", o.PodCIDR, room, o.Nodes),
			Fix:  "give a larger range with --pod-cidr",
		}
	}
	if o.PodCIDR.Bits() > 24 || !o.PodCIDR.Addr().Is4() {
		return Problem{
			What: fmt.Sprintf("pod CIDR %s cannot be cut into a /24 per node", o.PodCIDR),
			Fix:  "give an IPv4 range of /24 or larger with --pod-cidr",
		}
	}
	if o.ServiceCIDR.Bits() > 28 || !o.ServiceCIDR.Addr().Is4() {
		return Problem{
			What: fmt.Sprintf("service CIDR %s is too small", o.ServiceCIDR),
			Fix:  "give an IPv4 range of /28 or larger with --service-cidr",
		}
	}
	if o.PodCIDR.Overlaps(o.ServiceCIDR) {
		return Problem{
			What: fmt.Sprintf("pod CIDR %s and service CIDR %s overlap", o.PodCIDR, o.ServiceCIDR),
			Fix:  "choose others with --pod-cidr and --service-cidr",
		}
	}
	return nil
}

func loadOptions(path string) (Options, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Options{}, nil
	}
	if err != nil {
		return Options{}, err
	}
	var o Options
	if err := json.Unmarshal(data, &o); err != nil {
		return Options{}, Problem{
			What: fmt.Sprintf("%s is damaged: %v", path, err),
			Fix:  "restore it, or remove it to let skiff choose addresses anew",
		}
	}
	return o, nil
}

func (o Options) save() error {
	data, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(o.path("cluster.json"), append(data, '\n'), 0o600)
}

// findNodeIP picks the address others can reach this machine by. Without any
// interface but loopback it is the address the pod bridge will have.
func findNodeIP(podCIDR netip.Prefix) netip.Addr {
	if a := defaultRouteIP(); a.IsValid() {
		return a
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() && !podCIDR.Contains(p.Addr()) {
			return p.Addr()
		}
	}
	return podCIDR.Masked().Addr().Next()
}

// defaultRouteIP is the source address of the default route, if there is one.
// Connecting a UDP socket sends nothing.
func defaultRouteIP() netip.Addr {
	conn, err := net.Dial("udp4", "198.51.100.1:9")
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}

func localAddress(ip netip.Addr) bool {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == ip {
			return true
		}
	}
	return false
}

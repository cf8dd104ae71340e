package alloc

import (
	"context"
	"math"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/store"
)

// Counters count allocations. A nil one does not.
type Counters struct {
	ips, failedIPs, ports, failedPorts *prometheus.CounterVec
}

// NewCounters returns counters that have counted nothing.
func NewCounters() *Counters {
	count := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kube_apiserver_" + name, Help: help}, append(labels, "scope"))
	}
	return &Counters{
		ips:         count("clusterip_allocator_allocation_total", "Number of Cluster IPs allocations", "cidr"),
		failedIPs:   count("clusterip_allocator_allocation_errors_total", "Number of errors trying to allocate Cluster IPs", "cidr"),
		ports:       count("nodeport_allocator_allocation_total", "Number of NodePort allocations"),
		failedPorts: count("nodeport_allocator_allocation_errors_total", "Number of errors trying to allocate NodePort"),
	}
}

func scope(asked bool) string {
	if asked {
		return "static"
	}
	return "dynamic"
}

// address counts an address given by the first range that can have had it.
func (c *Counters) address(ranges []netip.Prefix, ip netip.Addr, v4, asked bool, err error) {
	if c == nil {
		return
	}
	for _, p := range ranges {
		if ip.IsValid() && !p.Contains(ip) || p.Addr().Is4() != v4 {
			continue
		}
		vec := c.ips
		if err != nil {
			vec = c.failedIPs
		}
		vec.WithLabelValues(p.Masked().String(), scope(asked)).Inc()
		return
	}
}

func (c *Counters) claimed(claims []*claim, err error) {
	if c == nil {
		return
	}
	vec := c.ports
	if err != nil {
		vec = c.failedPorts
	}
	for _, claim := range claims {
		vec.WithLabelValues(scope(claim.port != 0)).Inc()
	}
}

var (
	cidrLabel      = []string{"cidr"}
	allocatedIPs   = prometheus.NewDesc("kube_apiserver_clusterip_allocator_allocated_ips", "Gauge measuring the number of allocated IPs for Services", cidrLabel, nil)
	availableIPs   = prometheus.NewDesc("kube_apiserver_clusterip_allocator_available_ips", "Gauge measuring the number of available IPs for Services", cidrLabel, nil)
	allocatedPorts = prometheus.NewDesc("kube_apiserver_nodeport_allocator_allocated_ports", "Gauge measuring the number of allocated NodePorts for Services", nil, nil)
	availablePorts = prometheus.NewDesc("kube_apiserver_nodeport_allocator_available_ports", "Gauge measuring the number of available NodePorts for Services", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *Services) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{allocatedIPs, availableIPs, allocatedPorts, availablePorts} {
		out <- d
	}
	if c := s.Counters; c != nil {
		for _, v := range []*prometheus.CounterVec{c.ips, c.failedIPs, c.ports, c.failedPorts} {
			v.Describe(out)
		}
	}
}

// Collect implements prometheus.Collector: what is allocated is what the store says.
func (s *Services) Collect(out chan<- prometheus.Metric) {
	if c := s.Counters; c != nil {
		for _, v := range []*prometheus.CounterVec{c.ips, c.failedIPs, c.ports, c.failedPorts} {
			v.Collect(out)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if o, ok := s.Addresses.(*Objects); ok {
		for p, n := range o.taken(ctx) {
			if sub, err := newSubnet(p); err == nil {
				gauge(allocatedIPs, float64(n), p.Masked().String())
				gauge(availableIPs, float64(min(sub.size, math.MaxInt64))-float64(n), p.Masked().String())
			}
		}
	}
	if s.Ports == nil {
		return
	}
	if k, err := s.Ports.read(ctx); err == nil && k.broken == nil {
		n := 0
		for port := s.Ports.r.First; port <= s.Ports.r.Last; port++ {
			n += int(k.taken.Bit(port))
		}
		gauge(allocatedPorts, float64(n))
		gauge(availablePorts, float64(s.Ports.r.Last-s.Ports.r.First+1-n))
	}
}

// taken is how many addresses of each range are.
func (o *Objects) taken(ctx context.Context) map[netip.Prefix]int {
	count := map[netip.Prefix]int{}
	for _, p := range o.Ranges() {
		count[p] = 0
	}
	snap, err := o.Registry.Store.Snapshot(ctx, store.Local)
	if err != nil {
		return nil
	}
	for name := range o.Registry.Names(snap) {
		ip, err := netip.ParseAddr(name)
		for p := range count {
			if err == nil && p.Contains(ip) {
				count[p]++
			}
		}
	}
	return count
}

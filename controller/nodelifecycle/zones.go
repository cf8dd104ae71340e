package nodelifecycle

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// zone counts nodes that share a failure domain and paces how fast they may be emptied.
type zone struct {
	ready, notReady int
	next            time.Time // no further node before this
}

// zoneKey names a node's failure domain.
func zoneKey(n *corev1.Node) string {
	region, z := n.Labels[corev1.LabelTopologyRegion], n.Labels[corev1.LabelTopologyZone]
	if region == "" && z == "" {
		return ""
	}
	return region + ":\x00:" + z
}

// rate returns how many nodes of the zone may be emptied per second: with most of it down, the
// fault is likely in the network, and emptying the rest would make it worse.
func (z *zone) rate(cfg Config) float64 {
	total := z.ready + z.notReady
	switch {
	case z.ready == 0: // wholly down while other zones live: its Pods are wanted there
		return cfg.EvictionRate
	case z.notReady > 2 && float64(z.notReady)/float64(total) >= cfg.UnhealthyZoneThreshold:
		if total > cfg.LargeClusterThreshold {
			return cfg.SecondaryEvictionRate
		}
		return 0
	}
	return cfg.EvictionRate
}

// allow reports whether a node may be emptied now, and takes the turn; else wait is when to ask
// again.
func (z *zone) allow(cfg Config, now time.Time) (ok bool, wait time.Duration) {
	r := z.rate(cfg)
	if r <= 0 {
		return false, 10 * time.Second
	}
	if now.Before(z.next) {
		return false, z.next.Sub(now)
	}
	z.next = now.Add(time.Duration(float64(time.Second) / r))
	return true, 0
}

package admit

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/node/util/sysctl"
)

// safeSysctls are those of a pod's own that touch no other pod. Kernels Skiff runs on have them all.
var safeSysctls = map[string]sysctl.Namespace{
	"kernel.shm_rmid_forced":              sysctl.IPCNamespace,
	"net.ipv4.ip_local_port_range":        sysctl.NetNamespace,
	"net.ipv4.tcp_syncookies":             sysctl.NetNamespace,
	"net.ipv4.ping_group_range":           sysctl.NetNamespace,
	"net.ipv4.ip_unprivileged_port_start": sysctl.NetNamespace,
	"net.ipv4.ip_local_reserved_ports":    sysctl.NetNamespace,
	"net.ipv4.tcp_keepalive_time":         sysctl.NetNamespace,
	"net.ipv4.tcp_fin_timeout":            sysctl.NetNamespace,
	"net.ipv4.tcp_keepalive_intvl":        sysctl.NetNamespace,
	"net.ipv4.tcp_keepalive_probes":       sysctl.NetNamespace,
	"net.ipv4.tcp_rmem":                   sysctl.NetNamespace,
	"net.ipv4.tcp_wmem":                   sysctl.NetNamespace,
	"net.ipv4.tcp_slow_start_after_idle":  sysctl.NetNamespace,
	"net.ipv4.tcp_notsent_lowat":          sysctl.NetNamespace,
}

// sysctls refuses those that could harm others on the node.
func sysctls(pod *v1.Pod) *Rejection {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := sysctl.NormalizeName(s.Name)
		ns, safe := safeSysctls[name]
		var why string
		switch {
		case !safe:
			why = fmt.Sprintf("%q not allowlisted", name)
		case ns == sysctl.IPCNamespace && pod.Spec.HostIPC, ns == sysctl.NetNamespace && pod.Spec.HostNetwork:
			why = fmt.Sprintf("%q not allowed with host %s enabled", name, ns)
		default:
			continue
		}
		return &Rejection{"SysctlForbidden", "forbidden sysctl: " + why}
	}
	return nil
}

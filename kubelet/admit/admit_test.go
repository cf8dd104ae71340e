package admit

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node() *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a"}},
		Spec:   v1.NodeSpec{Taints: []v1.Taint{{Key: "k", Value: "v", Effect: v1.TaintEffectNoExecute}, {Key: "x", Effect: v1.TaintEffectNoSchedule}}},
		Status: v1.NodeStatus{Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("3")}}}
}

func pod(change func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{NodeName: "n", Tolerations: []v1.Toleration{{Key: "k", Operator: v1.TolerationOpEqual, Value: "v"}},
		Containers: []v1.Container{{Name: "c"}}}}
	if change != nil {
		change(p)
	}
	return p
}

func ask(name v1.ResourceName, q string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{name: resource.MustParse(q)}
	}
}

func hostPort(ip string, proto v1.Protocol, n int32) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostIP: ip, Protocol: proto, HostPort: n}}
	}
}

func sets(name string, host bool) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: name, Value: "1"}}}
		p.Spec.HostNetwork = host
	}
}

func TestCheck(t *testing.T) {
	strict := v1.SupplementalGroupsPolicyStrict
	for name, c := range map[string]struct {
		pod    *v1.Pod
		others []*v1.Pod
		want   string
	}{
		"fits":          {pod(ask(v1.ResourceCPU, "2")), nil, ""},
		"cpu":           {pod(ask(v1.ResourceCPU, "1500m")), []*v1.Pod{pod(ask(v1.ResourceCPU, "1"))}, "OutOfcpu Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"},
		"memory":        {pod(ask(v1.ResourceMemory, "2Gi")), nil, "OutOfmemory Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824"},
		"pods":          {pod(nil), []*v1.Pod{pod(nil), pod(nil), pod(nil)}, "OutOfpods Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"},
		"cluster's own": {pod(ask("example.com/x", "1")), nil, ""},
		"selector":      {pod(func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} }), nil, "NodeAffinity Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
		"taint":         {pod(func(p *v1.Pod) { p.Spec.Tolerations = nil }), nil, "TaintToleration Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"},
		"static, taint": {pod(func(p *v1.Pod) {
			p.Spec.Tolerations = nil
			p.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
		}), nil, ""},
		"port":            {pod(hostPort("", "TCP", 80)), []*v1.Pod{pod(hostPort("127.0.0.1", "", 80))}, "NodePorts Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"},
		"other protocol":  {pod(hostPort("", "UDP", 80)), []*v1.Pod{pod(hostPort("", "TCP", 80))}, ""},
		"other address":   {pod(hostPort("127.0.0.1", "TCP", 80)), []*v1.Pod{pod(hostPort("127.0.0.2", "TCP", 80))}, ""},
		"windows":         {pod(func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: v1.Windows} }), nil, "PodOSNotSupported Failed to admit pod as the OS field doesn't match node OS"},
		"groups policy":   {pod(func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: &strict} }), nil, "SupplementalGroupsPolicyNotSupported SupplementalGroupsPolicy=Strict is not supported in this node"},
		"safe sysctl":     {pod(sets("kernel/shm_rmid_forced", false)), nil, ""},
		"unsafe sysctl":   {pod(sets("kernel.msgmax", false)), nil, `SysctlForbidden forbidden sysctl: "kernel.msgmax" not allowlisted`},
		"the host's, too": {pod(sets("net.ipv4.tcp_syncookies", true)), nil, `SysctlForbidden forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host Net enabled`},
	} {
		got := ""
		if r := Check(c.pod, node(), c.others); r != nil {
			got = r.Reason + " " + r.Message
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

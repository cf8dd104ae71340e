package admission

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api"
)

func quotaOf(name string, scopes []corev1.ResourceQuotaScope, pairs ...string) *corev1.ResourceQuota {
	q := &corev1.ResourceQuota{ObjectMeta: meta("a", name), Spec: corev1.ResourceQuotaSpec{Scopes: scopes, Hard: corev1.ResourceList{}}}
	for i := 0; i < len(pairs); i += 2 {
		q.Spec.Hard[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return q
}

func sized(name, cpu string) *corev1.Pod {
	return pod(func(p *corev1.Pod) {
		p.Name = name
		if cpu != "" {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse(cpu)}
		}
	})
}

func TestResourceQuota(t *testing.T) {
	done := sized("done", "10")
	done.Status.Phase = corev1.PodSucceeded
	service := func(kind corev1.ServiceType, ports int) *corev1.Service {
		return &corev1.Service{ObjectMeta: meta("a", "s"), Spec: corev1.ServiceSpec{Type: kind, Ports: make([]corev1.ServicePort, ports)}}
	}
	claim := func(class, size string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: meta("a", "d"), Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse(size)}}}}
	}
	deadline := sized("job", "1")
	deadline.Spec.ActiveDeadlineSeconds = ptr.To[int64](60)
	has := func(objs ...api.Object) []api.Object { return objs }
	for _, c := range []struct {
		name  string
		quota *corev1.ResourceQuota
		pods  []api.Object
		r     *Request
		want  string
	}{
		{"room left", quotaOf("q", nil, "pods", "2"), has(sized("x", "")), create("pods", sized("web", "")), ""},
		{"full", quotaOf("q", nil, "pods", "1"), has(sized("x", "")), create("pods", sized("web", "")), `pods "web" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1`},
		{"ended pods do not count", quotaOf("q", nil, "pods", "1", "cpu", "2"), has(done), create("pods", sized("web", "1")), ""},
		{"but as objects", quotaOf("q", nil, "count/pods", "1"), has(done), create("pods", sized("web", "1")), `pods "web" is forbidden: exceeded quota: q, requested: count/pods=1, used: count/pods=1, limited: count/pods=1`},
		{"cpu", quotaOf("q", nil, "requests.cpu", "1", "pods", "5"), has(sized("x", "700m")), create("pods", sized("web", "400m")), `pods "web" is forbidden: exceeded quota: q, requested: requests.cpu=400m, used: requests.cpu=700m, limited: requests.cpu=1`},
		{"cpu not said", quotaOf("q", nil, "cpu", "1", "limits.memory", "1Gi"), nil, create("pods", sized("web", "")), `pods "web" is forbidden: failed quota: q: must specify cpu for: c; limits.memory for: c`},
		{"another scope", quotaOf("q", []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}, "pods", "0"), nil, create("pods", sized("web", "1")), ""},
		{"in scope", quotaOf("q", []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}, "pods", "0"), nil, create("pods", deadline), `pods "job" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0`},
		{"best effort", quotaOf("q", []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeBestEffort}, "pods", "0"), nil, create("pods", sized("web", "")), `pods "web" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0`},
		{"config maps", quotaOf("q", nil, "configmaps", "0"), nil, create("configmaps", &corev1.ConfigMap{ObjectMeta: meta("a", "m")}), `configmaps "m" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=0, limited: configmaps=0`},
		{"any object", quotaOf("q", nil, "count/leases.coordination.k8s.io", "0"), nil, create("coordination.k8s.io/leases", &corev1.ConfigMap{ObjectMeta: meta("a", "m")}), `leases.coordination.k8s.io "m" is forbidden: exceeded quota: q, requested: count/leases.coordination.k8s.io=1, used: count/leases.coordination.k8s.io=0, limited: count/leases.coordination.k8s.io=0`},
		{"node ports", quotaOf("q", nil, "services.nodeports", "1"), nil, create("services", service(corev1.ServiceTypeNodePort, 2)), `services "s" is forbidden: exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1`},
		{"a service becomes a load balancer", quotaOf("q", nil, "services", "0", "services.loadbalancers", "0"), nil, update("services", service(corev1.ServiceTypeLoadBalancer, 1), service(corev1.ServiceTypeClusterIP, 1)), `services "s" is forbidden: exceeded quota: q, requested: services.loadbalancers=1, used: services.loadbalancers=0, limited: services.loadbalancers=0`},
		{"storage of a class", quotaOf("q", nil, "gold.storageclass.storage.k8s.io/requests.storage", "1Gi"), nil, create("persistentvolumeclaims", claim("gold", "2Gi")), `persistentvolumeclaims "d" is forbidden: exceeded quota: q, requested: gold.storageclass.storage.k8s.io/requests.storage=2Gi, used: gold.storageclass.storage.k8s.io/requests.storage=0, limited: gold.storageclass.storage.k8s.io/requests.storage=1Gi`},
		{"storage of another class", quotaOf("q", nil, "gold.storageclass.storage.k8s.io/requests.storage", "1Gi"), nil, create("persistentvolumeclaims", claim("tin", "2Gi")), ""},
		{"an update uses nothing more", quotaOf("q", nil, "services", "0"), nil, update("services", service(corev1.ServiceTypeClusterIP, 2), service(corev1.ServiceTypeClusterIP, 1)), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w["resourcequotas"] = []api.Object{c.quota}
			w["pods"] = c.pods
			if got := admit(w, c.r, &resourceQuota{read: reader{w}, clock: clocktesting.NewFakePassiveClock(time.Now())}); got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

// Requests side by side must not each take the last place: what was admitted
// counts before it is stored, for a while, and once only after.
func TestQuotaCountsWhatWasJustAdmitted(t *testing.T) {
	w := newWorld()
	w["resourcequotas"] = []api.Object{quotaOf("q", nil, "pods", "2")}
	clock := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	q := &resourceQuota{read: reader{w}, clock: clock}
	try := func(name string, want bool) {
		t.Helper()
		if got := admit(w, create("pods", sized(name, "")), q); (got == "") != want {
			t.Fatalf("%s: %q", name, got)
		}
	}
	try("one", true)
	w["pods"] = []api.Object{sized("one", "")}
	try("two", true)
	try("two", true) // the same again, as after a conflict
	try("three", false)
	clock.SetTime(clock.Now().Add(reserveFor))
	try("three", true) // two was never stored
	dry := create("pods", sized("four", ""))
	dry.DryRun = true
	clock.SetTime(clock.Now().Add(reserveFor))
	if got := admit(w, dry, q); got != "" {
		t.Fatal(got)
	}
	try("five", true) // a dry run takes no place
}

func BenchmarkPodAdmission(b *testing.B) {
	w := newWorld()
	for i := range 20 {
		w["serviceaccounts"] = append(w["serviceaccounts"], &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprint("s", i)}})
	}
	plugins := New(Config{Reader: w})
	for b.Loop() {
		if got := admit(w, create("pods", pod()), plugins...); got != "" {
			b.Fatal(got)
		}
	}
}

package apiserver_test

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/store"
)

func service(name string, edit func(*corev1.ServiceSpec)) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
	if edit != nil {
		edit(&svc.Spec)
	}
	return svc
}

func TestAddressesAreObjects(t *testing.T) {
	s := newServer(t, nil)
	c, ctx := typed(t, s), t.Context()
	svcs, ips := c.CoreV1().Services("default"), c.NetworkingV1().IPAddresses()
	own, err := ips.Get(ctx, "10.96.0.1", metav1.GetOptions{})
	if err != nil || own.Spec.ParentRef.Name != "kubernetes" {
		t.Errorf("the address of default/kubernetes: %+v %v", own, err)
	}
	cidr, err := c.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || cidr.Spec.CIDRs[0] != "10.96.0.0/12" || !meta.IsStatusConditionTrue(cidr.Status.Conditions, "Ready") {
		t.Errorf("the configured range: %+v %v", cidr, err)
	}
	a, err := svcs.Create(ctx, service("a", nil), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ip, err := ips.Get(ctx, a.Spec.ClusterIP, metav1.GetOptions{})
	if err != nil || *ip.Spec.ParentRef != (networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "a"}) ||
		ip.Labels["ipaddress.kubernetes.io/managed-by"] != "ipallocator.k8s.io" || ip.Labels["ipaddress.kubernetes.io/ip-family"] != "IPv4" {
		t.Errorf("the Service's address: %+v %v", ip, err)
	}
	// A create that fails, and a dry run, leave nothing behind.
	if _, err := svcs.Create(ctx, service("a", func(sp *corev1.ServiceSpec) { sp.ClusterIP = "10.96.0.77" }), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	if _, err := svcs.Create(ctx, service("dry", func(sp *corev1.ServiceSpec) { sp.ClusterIP = "10.96.0.77" }), metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
		t.Errorf("dry run: %v", err)
	}
	if list, err := ips.List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 2 {
		t.Errorf("addresses: %+v %v", list.Items, err)
	}
	// Somebody else's address is respected.
	theirs := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.96.0.88"}, Spec: networkingv1.IPAddressSpec{
		ParentRef: &networkingv1.ParentReference{Group: "gateway.networking.k8s.io", Resource: "gateways", Namespace: "default", Name: "g"},
	}}
	if _, err := ips.Create(ctx, theirs, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = svcs.Create(ctx, service("b", func(sp *corev1.ServiceSpec) { sp.ClusterIP = "10.96.0.88" }), metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "failed to allocate IP 10.96.0.88: provided IP is already allocated") {
		t.Errorf("a gateway's address: %v", err)
	}
	if err := svcs.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ips.Get(ctx, a.Spec.ClusterIP, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the address of a deleted Service: %v", err)
	}
}

// Two servers on one store give no node port twice, whoever asks for it and
// however: what one takes or gives back the other knows.
func TestServersShareNodePorts(t *testing.T) {
	var st store.Store
	a := newServer(t, func(c *apiserver.Config) { st, c.SharedStore = c.Store, true })
	b := newServer(t, func(c *apiserver.Config) { c.Store, c.SharedStore = st, true })
	ctx, dry := t.Context(), []string{"All"}
	servers := map[string]typedcorev1.ServiceInterface{"a": typed(t, a).CoreV1().Services("default"), "b": typed(t, b).CoreV1().Services("default")}
	create := func(server, name string, port int32, dryRun ...string) (*corev1.Service, error) {
		return servers[server].Create(ctx, service(name, func(sp *corev1.ServiceSpec) {
			sp.Type, sp.Ports[0].NodePort = corev1.ServiceTypeNodePort, port
		}), metav1.CreateOptions{DryRun: dryRun})
	}
	must := func(svc *corev1.Service, err error) *corev1.Service {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return svc
	}
	taken := func(server, name string, port int32) {
		t.Helper()
		for _, dryRun := range [][]string{nil, dry} {
			if _, err := create(server, name, port, dryRun...); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.ports[0].nodePort: Invalid value: "+fmt.Sprint(port)+": provided port is already allocated") {
				t.Errorf("%d on %s: %v", port, server, err)
			}
		}
	}
	first := must(create("a", "first", 30080))
	taken("b", "second", 30080)
	random := must(create("b", "random", 0))
	taken("a", "second", random.Spec.Ports[0].NodePort)

	// What failed, or was a dry run, holds nothing.
	if _, err := create("a", "first", 30081); !apierrors.IsAlreadyExists(err) {
		t.Errorf("the name is taken: %v", err)
	}
	must(create("b", "dry", 30081, dry...))
	if _, err := create("b", "No-Name", 30081); !apierrors.IsInvalid(err) {
		t.Errorf("no name: %v", err)
	}
	must(create("b", "second", 30081))

	// What is given back on one server can be had on the other.
	first.Spec.Ports[0].NodePort = 30082
	first = must(servers["b"].Update(ctx, first, metav1.UpdateOptions{}))
	taken("a", "third", 30082)
	must(create("a", "third", 30080))
	first.Spec.Type, first.Spec.Ports[0].NodePort = corev1.ServiceTypeClusterIP, 0
	must(servers["a"].Update(ctx, first, metav1.UpdateOptions{}))
	must(create("b", "fourth", 30082))
	if err := servers["a"].Delete(ctx, "fourth", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	must(create("b", "fifth", 30082))
	for range 20 { // at once: each another
		var wg sync.WaitGroup
		var ports [2]int32
		for i, server := range []string{"a", "b"} {
			wg.Go(func() {
				svc := service("", func(sp *corev1.ServiceSpec) {
					sp.Type, sp.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
				})
				svc.GenerateName = "g-"
				svc, err := servers[server].Create(ctx, svc, metav1.CreateOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				ports[i] = svc.Spec.HealthCheckNodePort
			})
		}
		wg.Wait()
		if ports[0] == ports[1] {
			t.Fatalf("both servers gave %v", ports)
		}
	}
	all, err := servers["a"].List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	have := map[int32]string{}
	for _, svc := range all.Items {
		for _, port := range []int32{svc.Spec.Ports[0].NodePort, svc.Spec.HealthCheckNodePort} {
			if port != 0 && have[port] != "" {
				t.Errorf("%s and %s both have %d", have[port], svc.Name, port)
			}
			have[port] = svc.Name
		}
	}
}

func TestSecondServiceCIDR(t *testing.T) {
	s := newServer(t, nil)
	c, ctx := typed(t, s), t.Context()
	want := func(text string) {
		t.Helper()
		_, err := c.CoreV1().Services("default").Create(ctx, service("far", func(sp *corev1.ServiceSpec) { sp.ClusterIP = "10.9.0.5" }), metav1.CreateOptions{})
		if text == "" && err != nil || text != "" && (err == nil || !strings.Contains(err.Error(), text)) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
	want("failed to allocate IP 10.9.0.5: the provided network does not match the current range")
	cidr, err := c.NetworkingV1().ServiceCIDRs().Create(ctx, &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.9.0.0/24"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want("the provided network does not match the current range") // until it is ready
	meta.SetStatusCondition(&cidr.Status.Conditions, metav1.Condition{Type: "Ready", Status: "True", Reason: "Test"})
	if _, err := c.NetworkingV1().ServiceCIDRs().UpdateStatus(ctx, cidr, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want("")
	for name, tc := range map[string]struct {
		edit func(*corev1.ServiceSpec)
		want string
	}{
		"six": {func(sp *corev1.ServiceSpec) { sp.IPFamilies = []corev1.IPFamily{"IPv6"} }, `spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster`},
		"dual": {func(sp *corev1.ServiceSpec) {
			both := corev1.IPFamilyPolicyRequireDualStack
			sp.IPFamilyPolicy = &both
		}, `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
	} {
		if _, err := c.CoreV1().Services("default").Create(ctx, service(name, tc.edit), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFlowControlIsShown(t *testing.T) {
	s := newServer(t, nil)
	flowSchemasJudged(t, s)
	c := typed(t, s).FlowcontrolV1()
	schemas, err := c.FlowSchemas().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(schemas.Items) != 11 {
		t.Errorf("%d flow schemas, %v", len(schemas.Items), err)
	}
	for _, f := range schemas.Items {
		if len(f.Status.Conditions) != 1 || f.Status.Conditions[0].Reason != "Found" || f.Status.Conditions[0].Status != "False" {
			t.Errorf("%s: %+v", f.Name, f.Status)
		}
	}
	levels, err := c.PriorityLevelConfigurations().List(t.Context(), metav1.ListOptions{})
	if err != nil || len(levels.Items) != 8 {
		t.Errorf("%d priority levels, %v", len(levels.Items), err)
	}
}

// ComponentStatuses are asked for, not stored: here the controller manager runs and nobody schedules.
func TestComponentStatuses(t *testing.T) {
	var warnings warningLog
	s := newServer(t, func(c *apiserver.Config) {
		c.OwnHealth = func(name string) (string, bool) {
			return map[string]string{"controllers": "ok", "scheduler": "it ended"}[name], true
		}
	})
	cfg := s.InProcess(auth.User{Name: "admin", Groups: []string{auth.GroupMasters}})
	cfg.WarningHandler = &warnings
	c := kubernetes.NewForConfigOrDie(cfg).CoreV1().ComponentStatuses()
	list, err := c.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list.Items {
		got = append(got, fmt.Sprint(s.Name, s.Conditions, s.ResourceVersion))
	}
	if want := "controller-manager[{Healthy True ok }] etcd-0[{Healthy True ok }] scheduler[{Healthy False it ended }]"; strings.Join(got, " ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, " "), want)
	}
	if want := "v1 ComponentStatus is deprecated in v1.19+"; len(warnings) != 1 || warnings[0] != want {
		t.Errorf("warnings %q", warnings)
	}
	if one, err := c.Get(t.Context(), "etcd-0", metav1.GetOptions{}); err != nil || one.Conditions[0].Message != "ok" {
		t.Error(one, err)
	}
	if _, err := c.Get(t.Context(), "x", metav1.GetOptions{}); !apierrors.IsNotFound(err) || err.Error() != `componentstatus "x" not found` {
		t.Error(err)
	}
	if none, err := c.List(t.Context(), metav1.ListOptions{LabelSelector: "a=b"}); err != nil || len(none.Items) != 0 {
		t.Error(none, err)
	}
	if one, err := c.List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=scheduler"}); err != nil || len(one.Items) != 1 {
		t.Error(one, err)
	}
	table, err := kubernetes.NewForConfigOrDie(cfg).CoreV1().RESTClient().Get().Resource("componentstatuses").
		SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
	if err != nil || !strings.Contains(string(table), `"cells":["scheduler","Unhealthy","it ended",""]`) {
		t.Error(string(table), err)
	}
	if err := c.Delete(t.Context(), "x", metav1.DeleteOptions{}); !apierrors.IsMethodNotSupported(err) {
		t.Error(err)
	}
}

type warningLog []string

func (w *warningLog) HandleWarningHeader(_ int, _, text string) { *w = append(*w, text) }

// Who leaves the kubernetes Service's endpoints to others writes none.
func TestNoEndpoints(t *testing.T) {
	for none, want := range map[bool]bool{false: true, true: false} {
		s := newServer(t, func(c *apiserver.Config) {
			c.AdvertiseAddress, c.AdvertisePort, c.NoEndpoints = netip.MustParseAddr("192.0.2.1"), 6443, none
		})
		_, err := typed(t, s).CoreV1().Endpoints("default").Get(t.Context(), "kubernetes", metav1.GetOptions{}) //nolint:staticcheck // upstream writes it, too
		if got := err == nil; got != want {
			t.Errorf("with NoEndpoints %v there are endpoints: %v (%v)", none, got, err)
		}
	}
}

// What is given away is counted, and what there is and is taken is told.
func TestAllocationsAreCounted(t *testing.T) {
	s := newServer(t, nil)
	svcs, c := typed(t, s).CoreV1().Services("default"), newRaw(s)
	until(t, "the server's own Service", func() bool {
		_, err := svcs.Get(t.Context(), "kubernetes", metav1.GetOptions{})
		return err == nil
	})
	for name, edit := range map[string]func(*corev1.ServiceSpec){
		"any": func(sp *corev1.ServiceSpec) { sp.Type = corev1.ServiceTypeNodePort },
		"given": func(sp *corev1.ServiceSpec) {
			sp.Type, sp.ClusterIP, sp.Ports[0].NodePort = corev1.ServiceTypeNodePort, "10.96.0.77", 30077
		},
	} {
		if _, err := svcs.Create(t.Context(), service(name, edit), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := svcs.Create(t.Context(), service("taken", func(sp *corev1.ServiceSpec) { sp.ClusterIP = "10.96.0.77" }), metav1.CreateOptions{}); err == nil {
		t.Fatal("an address was given twice")
	}
	_, text := c.do(t, "GET", "/metrics", "", nil)
	for _, want := range []string{
		`kube_apiserver_clusterip_allocator_allocated_ips{cidr="10.96.0.0/12"} 3`,
		`kube_apiserver_clusterip_allocator_available_ips{cidr="10.96.0.0/12"} 1.048571e+06`,
		`kube_apiserver_clusterip_allocator_allocation_total{cidr="10.96.0.0/12",scope="dynamic"} 1`,
		`kube_apiserver_clusterip_allocator_allocation_total{cidr="10.96.0.0/12",scope="static"} 2`,
		`kube_apiserver_clusterip_allocator_allocation_errors_total{cidr="10.96.0.0/12",scope="static"} 1`,
		`kube_apiserver_nodeport_allocator_allocated_ports 2`,
		`kube_apiserver_nodeport_allocator_available_ports 2766`,
		`kube_apiserver_nodeport_allocator_allocation_total{scope="dynamic"} 1`,
		`kube_apiserver_nodeport_allocator_allocation_total{scope="static"} 1`,
		`etcd_requests_total{group="",operation="create",resource="services"} 3`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
}

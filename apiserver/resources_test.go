package apiserver_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/openapi"

	"github.com/skiff-project/skiff/apiserver"
)

func pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
}

func TestNamespaceLife(t *testing.T) {
	s := newServer(t, nil)
	nss := typed(t, s).CoreV1().Namespaces()
	for _, n := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if _, err := nss.Get(t.Context(), n, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
	if _, err := nss.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := nss.Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ns, err := nss.Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil || ns.DeletionTimestamp == nil || ns.Status.Phase != corev1.NamespaceTerminating {
		t.Fatalf("deleted namespace: %+v, %v", ns, err)
	}
	ns.Spec.Finalizers = nil
	if _, err := nss.Finalize(t.Context(), ns, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := nss.Get(t.Context(), "n", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("finalized namespace remains: %v", err)
	}
}

func TestPodBindingAndGracefulDeletion(t *testing.T) {
	s := newServer(t, nil)
	pods := typed(t, s).CoreV1().Pods("default")
	p, err := pods.Create(t.Context(), pod("p"), metav1.CreateOptions{})
	if err != nil || p.Generation != 1 || p.Status.Phase != corev1.PodPending {
		t.Fatalf("create: %+v %v", p, err)
	}
	bind := func() error {
		return pods.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: p.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}, metav1.CreateOptions{})
	}
	if err := bind(); err != nil {
		t.Fatal(err)
	}
	if err := bind(); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `pod p is already assigned to node "n1"`) {
		t.Errorf("second binding: %v", err)
	}
	l, err := pods.List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n1,status.phase!=Running,spec.hostNetwork=false,status.podIP=,spec.restartPolicy=Always"})
	if err != nil || len(l.Items) != 1 || l.Items[0].Status.Conditions[0].Type != corev1.PodScheduled {
		t.Errorf("selected by node: %+v %v", l, err)
	}
	if err := pods.Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err = pods.Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil || p.DeletionTimestamp == nil || *p.DeletionGracePeriodSeconds != 30 || p.Generation != 2 {
		t.Fatalf("gracefully deleted: %+v %v", p, err)
	}
	two, zero := int64(2), int64(0)
	pods.Delete(t.Context(), "p", metav1.DeleteOptions{GracePeriodSeconds: &two})
	if p, _ = pods.Get(t.Context(), "p", metav1.GetOptions{}); *p.DeletionGracePeriodSeconds != 2 {
		t.Errorf("grace not shortened: %d", *p.DeletionGracePeriodSeconds)
	}
	if err := pods.Delete(t.Context(), "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Get(t.Context(), "p", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("pod remains: %v", err)
	}
}

func TestStatusAndScale(t *testing.T) {
	s := newServer(t, nil)
	deps := typed(t, s).AppsV1().Deployments("default")
	one := int32(1)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{
		Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "x"}}, Spec: pod("").Spec},
	}}
	d, err := deps.Create(t.Context(), d, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d.Status.Replicas, d.Spec.Paused = 3, true
	d, err = deps.UpdateStatus(t.Context(), d, metav1.UpdateOptions{})
	if err != nil || d.Status.Replicas != 3 || d.Spec.Paused || d.Generation != 1 {
		t.Fatalf("status update: %+v %v", d, err)
	}
	sc, err := deps.GetScale(t.Context(), "d", metav1.GetOptions{})
	if err != nil || sc.Spec.Replicas != 1 || sc.Status.Replicas != 3 || sc.Status.Selector != "app=x" {
		t.Fatalf("scale: %+v %v", sc, err)
	}
	sc.Spec.Replicas = 5
	if sc, err = deps.UpdateScale(t.Context(), "d", sc, metav1.UpdateOptions{}); err != nil || sc.Spec.Replicas != 5 {
		t.Fatalf("update scale: %+v %v", sc, err)
	}
	d, err = deps.Patch(t.Context(), "d", types.MergePatchType, []byte(`{"spec":{"replicas":7}}`), metav1.PatchOptions{}, "scale")
	_ = d
	if err != nil {
		t.Fatal(err)
	}
	d, _ = deps.Get(t.Context(), "d", metav1.GetOptions{})
	if *d.Spec.Replicas != 7 || d.Generation != 3 {
		t.Errorf("after scaling: %d replicas, generation %d", *d.Spec.Replicas, d.Generation)
	}
	_, err = deps.UpdateScale(t.Context(), "d", &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: autoscalingv1.ScaleSpec{Replicas: -1}}, metav1.UpdateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("negative scale: %v", err)
	}
}

func TestServices(t *testing.T) {
	s := newServer(t, nil)
	c := typed(t, s)
	k, err := c.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || k.Spec.ClusterIP != "10.96.0.1" {
		t.Fatalf("kubernetes service: %+v %v", k, err)
	}
	svcs := c.CoreV1().Services("default")
	mk := func(name string, edit func(*corev1.ServiceSpec)) (*corev1.Service, error) {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "x"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		}}
		if edit != nil {
			edit(&svc.Spec)
		}
		return svcs.Create(t.Context(), svc, metav1.CreateOptions{})
	}
	a, err := mk("a", nil)
	if err != nil || !strings.HasPrefix(a.Spec.ClusterIP, "10.") || !slices.Equal(a.Spec.ClusterIPs, []string{a.Spec.ClusterIP}) ||
		*a.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack || a.Spec.IPFamilies[0] != corev1.IPv4Protocol {
		t.Fatalf("ClusterIP: %+v %v", a, err)
	}
	if _, err := mk("b", func(sp *corev1.ServiceSpec) { sp.ClusterIP = a.Spec.ClusterIP }); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Errorf("taken IP: %v", err)
	}
	if h, err := mk("h", func(sp *corev1.ServiceSpec) { sp.ClusterIP = "None" }); err != nil || h.Spec.ClusterIP != "None" {
		t.Errorf("headless: %+v %v", h, err)
	}
	n, err := mk("n", func(sp *corev1.ServiceSpec) { sp.Type = corev1.ServiceTypeNodePort; sp.Ports[0].NodePort = 30080 })
	if err != nil || n.Spec.Ports[0].NodePort != 30080 {
		t.Fatalf("NodePort: %+v %v", n, err)
	}
	if _, err := mk("n2", func(sp *corev1.ServiceSpec) { sp.Type = corev1.ServiceTypeNodePort; sp.Ports[0].NodePort = 30080 }); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided port is already allocated") {
		t.Errorf("taken port: %v", err)
	}
	if _, err := mk("n3", func(sp *corev1.ServiceSpec) { sp.Type = corev1.ServiceTypeNodePort; sp.Ports[0].NodePort = 80 }); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "The range of valid ports is 30000-32767") {
		t.Errorf("port out of range: %v", err)
	}
	n.Spec.Type = corev1.ServiceTypeClusterIP
	if n, err = svcs.Update(t.Context(), n, metav1.UpdateOptions{}); err != nil || n.Spec.Ports[0].NodePort != 0 {
		t.Errorf("back to ClusterIP: %+v %v", n, err)
	}
	if m, err := mk("m", func(sp *corev1.ServiceSpec) { sp.Type = corev1.ServiceTypeNodePort; sp.Ports[0].NodePort = 30080 }); err != nil {
		t.Errorf("freed port: %+v %v", m, err)
	}
	svcs.Delete(t.Context(), "a", metav1.DeleteOptions{})
	if _, err := mk("again", func(sp *corev1.ServiceSpec) { sp.ClusterIP = a.Spec.ClusterIP }); err != nil {
		t.Errorf("freed IP: %v", err)
	}
}

func TestEviction(t *testing.T) {
	s := newServer(t, nil)
	c := typed(t, s)
	pods := c.CoreV1().Pods("default")
	p, _ := pods.Create(t.Context(), pod("p"), metav1.CreateOptions{})
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if _, err := pods.UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pdbs := c.PolicyV1().PodDisruptionBudgets("default")
	most := intstr.FromInt32(1)
	b, err := pdbs.Create(t.Context(), &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: &most, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	evict := func() error {
		return pods.EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
	}
	b.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1}
	if b, err = pdbs.UpdateStatus(t.Context(), b, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	err = evict()
	if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) ||
		!strings.Contains(fmt.Sprintf("%+v", err.(apierrors.APIStatus).Status()), "The disruption budget b needs 1 healthy pods and has 1 currently") {
		t.Errorf("refused eviction: %v", err)
	}
	b.Status.DisruptionsAllowed = 1
	if _, err = pdbs.UpdateStatus(t.Context(), b, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := evict(); err != nil {
		t.Fatal(err)
	}
	if b, _ = pdbs.Get(t.Context(), "b", metav1.GetOptions{}); b.Status.DisruptionsAllowed != 0 || len(b.Status.DisruptedPods) != 1 {
		t.Errorf("budget after eviction: %+v", b.Status)
	}
}

func TestTables(t *testing.T) {
	c := newRaw(newServer(t, nil))
	c.do(t, "POST", cmPath, "application/json", []byte(`{"metadata":{"name":"a"},"data":{"x":"y"}}`))
	_, body := c.do(t, "GET", cmPath, "", nil, "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
	for _, want := range []string{`"kind":"Table"`, `"columnDefinitions":[{"name":"Name"`, `"kind":"PartialObjectMetadata"`, `"cells":["a"`} {
		if !strings.Contains(body, want) {
			t.Errorf("table lacks %s: %s", want, body)
		}
	}
	code, body := c.do(t, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "application/json", []byte(`{"spec":{"nonResourceAttributes":{"path":"/","verb":"get"}}}`),
		"Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	if code != 406 {
		t.Errorf("table of a review: %d %s", code, body)
	}
	_, body = c.do(t, "GET", cmPath, "", nil, "Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
	if !strings.Contains(body, `"kind":"PartialObjectMetadataList"`) || strings.Contains(body, `"x":"y"`) {
		t.Errorf("partial list: %s", body)
	}
}

func TestDiscovery(t *testing.T) {
	s := newServer(t, nil)
	d := typed(t, s).Discovery()
	groups, resources, err := d.ServerGroupsAndResources()
	if err != nil || len(groups) < 10 || len(resources) < 10 {
		t.Fatalf("%d groups, %d resource lists, %v", len(groups), len(resources), err)
	}
	c := newRaw(s)
	accept := "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
	code, body := c.do(t, "GET", "/apis", "", nil, "Accept", accept)
	if code != 200 || !strings.Contains(body, `"kind":"APIGroupDiscoveryList"`) {
		t.Errorf("aggregated: %d %.200s", code, body)
	}
	for path, want := range map[string]string{
		"/api": `"versions":["v1"]`, "/apis": `"kind":"APIGroupList"`, "/api/v1": `"name":"pods/exec"`, "/apis/apps": `"preferredVersion"`,
		"/apis/apps/v1": `"name":"deployments/scale"`, "/version": `"gitVersion": "v1.37.2"`, "/": `"/apis/apps/v1"`, "/healthz": "ok",
		"/livez?verbose": "[+]etcd ok", "/readyz/ping": "ok", "/metrics": `apiserver_storage_objects{resource="flowschemas.flowcontrol.apiserver.k8s.io"} 1`,
	} {
		if code, body := c.do(t, "GET", path, "", nil); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.300s", path, code, body)
		}
	}
}

// Clients ask for the documents in protobuf by names of old, and read them by one that is a media type.
func TestOpenAPIInProtobuf(t *testing.T) {
	c := typed(t, newServer(t, nil)).Discovery()
	v2, err := c.OpenAPISchema()
	if err != nil || len(v2.GetDefinitions().GetAdditionalProperties()) == 0 {
		t.Errorf("v2: %v", err)
	}
	paths, err := c.OpenAPIV3().Paths()
	if err != nil {
		t.Fatal(err)
	}
	for _, media := range []string{openapi.ContentTypeOpenAPIV3PB, strings.Replace(openapi.ContentTypeOpenAPIV3PB, "@", ".", 1)} {
		if _, err := paths["api/v1"].Schema(media); err != nil {
			t.Errorf("v3 as %s: %v", media, err)
		}
	}
}

func TestReviews(t *testing.T) {
	s := newServer(t, nil)
	c := typed(t, s)
	me, err := c.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || me.Status.UserInfo.Username != "admin" {
		t.Errorf("who am I: %+v %v", me, err)
	}
	can, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods"},
	}}, metav1.CreateOptions{})
	if err != nil || !can.Status.Allowed {
		t.Errorf("can I: %+v %v", can, err)
	}
	_, err = c.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{}, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("empty review: %v", err)
	}
	_, err = c.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{}, metav1.CreateOptions{})
	if !apierrors.IsBadRequest(err) {
		t.Errorf("empty token: %v", err)
	}
}

func TestEvents(t *testing.T) {
	s := newServer(t, nil)
	ctx := t.Context()
	old, young := typed(t, s).CoreV1().Events("default"), typed(t, s).EventsV1().Events("default")
	now := metav1.NewTime(time.Now())
	_, err := old.Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "p", Namespace: "default"},
		Reason: "R", Message: "m", FirstTimestamp: now, LastTimestamp: now, Count: 1, Type: "Normal",
	}, metav1.CreateOptions{FieldManager: "old"})
	if err != nil {
		t.Fatal(err)
	}
	l, err := old.List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=p"})
	if err != nil || len(l.Items) != 1 {
		t.Errorf("events of the pod: %v %v", l, err)
	}
	n, err := young.Get(ctx, "e", metav1.GetOptions{})
	if err != nil || n.Note != "m" || n.Regarding.Name != "p" {
		t.Errorf("the same event in events.k8s.io: %+v %v", n, err)
	}
	// Managers keep what they wrote, whichever way they and others come.
	made, err := young.Create(ctx, &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "f"}, EventTime: metav1.NewMicroTime(now.Time), ReportingController: "x.io/c", ReportingInstance: "c-1",
		Action: "Act", Reason: "R", Note: "n", Type: "Normal", Regarding: corev1.ObjectReference{Kind: "Pod", Name: "p", Namespace: "default"},
	}, metav1.CreateOptions{FieldManager: "young"})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"e", "f"} {
		label := func(l string) []byte { return []byte(`{"metadata":{"labels":{"` + l + `":"1"}}}`) }
		if _, err := old.Patch(ctx, name, types.MergePatchType, label("a"), metav1.PatchOptions{FieldManager: "a"}); err != nil {
			t.Fatal(err)
		}
		if _, err := young.Patch(ctx, name, types.MergePatchType, label("b"), metav1.PatchOptions{FieldManager: "b"}); err != nil {
			t.Fatal(err)
		}
		e, err := old.Get(ctx, name, metav1.GetOptions{}) // protobuf: the stored bytes as they are
		if err != nil {
			t.Fatal(err)
		}
		var owners []string
		for _, m := range e.ManagedFields {
			owners = append(owners, m.Manager+" "+m.APIVersion)
		}
		slices.Sort(owners)
		first := map[string]string{"e": "old v1", "f": "young events.k8s.io/v1"}[name]
		if want := []string{"a v1", "b events.k8s.io/v1", first}; !slices.Equal(owners, want) {
			t.Errorf("%s is managed by %q, want %q", name, owners, want)
		}
		if i := slices.IndexFunc(e.ManagedFields, func(m metav1.ManagedFieldsEntry) bool { return m.Manager == "young" }); i >= 0 &&
			string(e.ManagedFields[i].FieldsV1.Raw) != string(made.ManagedFields[0].FieldsV1.Raw) {
			t.Errorf("the first manager's fields became %s, were %s", e.ManagedFields[i].FieldsV1.Raw, made.ManagedFields[0].FieldsV1.Raw)
		}
	}
	made.ObjectMeta = metav1.ObjectMeta{Name: "An Event"}
	if _, err := young.Create(ctx, made, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a name that is no subdomain, in events.k8s.io: %v", err)
	}
	if _, err := old.Create(ctx, &corev1.Event{ObjectMeta: made.ObjectMeta, InvolvedObject: made.Regarding}, metav1.CreateOptions{}); err != nil {
		t.Errorf("and in the core group, which takes any: %v", err)
	}
}

// Profiles are served to who asked for them at the start, and to nobody else.
func TestProfiles(t *testing.T) {
	c := newRaw(newServer(t, func(c *apiserver.Config) { c.Profiling = true }))
	for path, want := range map[string]string{
		"/debug/pprof/": "goroutine?debug=1", "/debug/pprof/heap?debug=1": "heap profile:", "/debug/pprof/cmdline": ".test",
		"/debug/pprof/profile?seconds=1": "", "/debug/pprof/symbol": "num_symbols",
	} {
		if code, body := c.do(t, "GET", path, "", nil); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.300s", path, code, body)
		}
	}
	if code, _ := c.do(t, "GET", "/debug/pprof/nonsense", "", nil); code != 404 {
		t.Errorf("a profile that is not there: %d", code)
	}
	if code, _ := newRaw(newServer(t, nil)).do(t, "GET", "/debug/pprof/", "", nil); code != 404 {
		t.Errorf("without profiling: %d", code)
	}
}

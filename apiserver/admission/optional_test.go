package admission

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	psconfig "k8s.io/pod-security-admission/admission/api"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/admission/config"
	"github.com/skiff-project/skiff/auth"
)

func names(plugins []Plugin) string {
	var out []string
	for _, p := range plugins {
		out = append(out, p.Name())
	}
	return strings.Join(out, " ")
}

// Optional plugins are off, and stand where upstream has them.
func TestOptionalPluginsInUpstreamsOrder(t *testing.T) {
	for _, name := range Optional() {
		if got := names(New(Config{Reader: newWorld(), Authorizer: auth.Masters()})); strings.Contains(got, name) {
			t.Errorf("%s is on by default: %s", name, got)
		}
		one := names(New(Config{Reader: newWorld(), Enable: []string{name}}))
		for _, other := range Optional() {
			if strings.Contains(one, other) != (other == name) {
				t.Errorf("with %s enabled: %s", name, one)
			}
		}
	}
	want := "NamespaceLifecycle LimitRanger ServiceAccount NodeRestriction TaintNodesByCondition AlwaysPullImages PodSecurity PodNodeSelector " +
		"Priority DefaultTolerationSeconds EventRateLimit DefaultStorageClass StorageObjectInUseProtection PersistentVolumeClaimResize RuntimeClass " +
		"CertificateApproval CertificateSigning PodCertificateSigning ClusterTrustBundleAttest CertificateSubjectRestriction DefaultIngressClass DenyServiceExternalIPs " +
		"PodTopologyLabels NodeDeclaredFeatureValidator PodResizeValidator ResourceQuota"
	if got := names(New(Config{Reader: newWorld(), Authorizer: auth.Masters(), Enable: Optional()})); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAlwaysPullImages(t *testing.T) {
	full := func(image string, policy corev1.PullPolicy) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: image, ImagePullPolicy: policy}}
			p.Spec.Containers[0].ImagePullPolicy = policy
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Image: "i", ImagePullPolicy: policy}}}
			p.Spec.Volumes = []corev1.Volume{{Name: "none"}, {Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "data", PullPolicy: policy}}}}
		})
	}
	policies := func(p *corev1.Pod) string {
		return fmt.Sprint(p.Spec.InitContainers[0].ImagePullPolicy, p.Spec.Containers[0].ImagePullPolicy, p.Spec.EphemeralContainers[0].ImagePullPolicy, p.Spec.Volumes[1].Image.PullPolicy)
	}
	const never, always = "NeverNeverNeverNever", "AlwaysAlwaysAlwaysAlways"
	const invalid = `pods "web" is forbidden: spec.%s: Unsupported value: "Never": supported values: "Always"`
	refused := fmt.Sprintf("["+invalid+", "+invalid+", "+invalid+", "+invalid+"]", "initContainers[0].imagePullPolicy",
		"containers[0].imagePullPolicy", "ephemeralContainers[0].imagePullPolicy", "volumes[1].image.pullPolicy")
	old := full("i", corev1.PullNever)
	removed := full("i", corev1.PullNever)
	removed.Spec.InitContainers[0].Image = "i"
	for _, c := range []struct {
		name     string
		r        *Request
		admitted string
		refused  string // if something between the two halves changed it
	}{
		{"create", create("pods", full("i", corev1.PullNever)), always, refused},
		{"update without a new image", update("pods", full("i", corev1.PullNever), old), never, ""},
		{"update with a new image", update("pods", full("other", corev1.PullNever), old), always, refused},
		{"update to an image it has elsewhere", update("pods", removed, full("other", corev1.PullNever)), never, ""},
		{"ephemeral containers of a running pod", update("pods/ephemeralcontainers", full("new", corev1.PullNever), old), never, ""},
		{"status", update("pods/status", full("new", corev1.PullNever), old), never, ""},
	} {
		p := c.r.Object.(*corev1.Pod)
		before := p.DeepCopy()
		if got := admit(newWorld(), c.r, alwaysPullImages{}); got != "" || policies(p) != c.admitted {
			t.Errorf("%s: %q, %s", c.name, got, policies(p))
		}
		c.r.Object = before
		got := ""
		if err := NewChain([]Plugin{alwaysPullImages{}}).Validate(t.Context(), c.r); err != nil {
			got = err.Error()
			if status, ok := err.(apierrors.APIStatus); !ok || status.Status().Code != 500 { // as upstream: several errors are no status
				t.Errorf("%s: %#v", c.name, err)
			}
		}
		if got != c.refused {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.refused)
		}
	}
	if got := admit(newWorld(), remove("pods", old), alwaysPullImages{}); got != "" || policies(old) != never {
		t.Errorf("delete: %q, %s", got, policies(old))
	}
	if got := admit(newWorld(), create("configmaps", &corev1.ConfigMap{ObjectMeta: meta("a", "m")}), alwaysPullImages{}); got != "" {
		t.Errorf("another resource: %q", got)
	}
}

func TestPodNodeSelector(t *testing.T) {
	w := newWorld()
	for name, selector := range map[string]string{"gpu": "kind=gpu, zone=z1", "any": "", "bad": "kind in (gpu)"} {
		ns := namespace(name, nil)
		ns.Annotations = map[string]string{nodeSelectorAnnotation: selector}
		w["namespaces"] = append(w["namespaces"], ns)
	}
	p := podNodeSelector{read: reader{w}, selectors: map[string]string{config.ClusterDefault: "env=prod", "gpu": "kind=gpu,zone=z1,disk=ssd"}}
	const conflict, whitelist = `pods "web" is forbidden: pod node label selector conflicts with its namespace node label selector`,
		`pods "web" is forbidden: pod node label selector labels conflict with its namespace whitelist`
	for _, c := range []struct {
		namespace string
		selector  map[string]string
		want      string // the selector, or the error
	}{
		{"a", nil, "map[env:prod]"},
		{"a", map[string]string{"disk": "ssd"}, "map[disk:ssd env:prod]"},
		{"a", map[string]string{"env": "test"}, conflict},
		{"any", nil, "map[]"},
		{"any", map[string]string{"env": "test"}, "map[env:test]"},
		{"gpu", nil, "map[kind:gpu zone:z1]"},
		{"gpu", map[string]string{"disk": "ssd"}, "map[disk:ssd kind:gpu zone:z1]"},
		{"gpu", map[string]string{"disk": "hdd"}, whitelist},
		{"gpu", map[string]string{"other": "x"}, whitelist},
		{"gpu", map[string]string{"zone": "z2"}, conflict},
		{"bad", nil, "invalid selector: [kind in (gpu)]"},
		{"none", nil, "Internal error occurred: namespace none does not exist"},
	} {
		obj := pod(func(p *corev1.Pod) { p.Namespace, p.Spec.NodeSelector = c.namespace, c.selector })
		got := admit(w, create("pods", obj), p)
		if got == "" {
			got = fmt.Sprint(obj.Spec.NodeSelector)
		}
		if got != c.want {
			t.Errorf("%s %v: %q, want %q", c.namespace, c.selector, got, c.want)
		}
	}
	// What came between the two halves is refused; what is no creation is let be.
	wrong := pod(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"env": "test"} })
	if err := NewChain([]Plugin{p}).Validate(t.Context(), create("pods", wrong)); err == nil || err.Error() != conflict {
		t.Errorf("changed afterwards: %v", err)
	}
	for name, r := range map[string]*Request{"update": update("pods", wrong, wrong), "binding": create("pods/binding", wrong), "delete": remove("pods", wrong)} {
		if got := admit(w, r, p); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestDenyServiceExternalIPs(t *testing.T) {
	with := func(ips ...string) *corev1.Service {
		return &corev1.Service{ObjectMeta: meta("a", "s"), Spec: corev1.ServiceSpec{ExternalIPs: ips}}
	}
	const denied = `services "s" is forbidden: Use of external IPs is denied by admission control`
	for _, c := range []struct {
		name string
		r    *Request
		want string
	}{
		{"none", create("services", with()), ""},
		{"new", create("services", with("192.0.2.1")), denied},
		{"kept", update("services", with("192.0.2.1"), with("192.0.2.2", "192.0.2.1")), ""},
		{"added", update("services", with("192.0.2.1", "192.0.2.2"), with("192.0.2.1")), denied},
		{"exchanged", update("services", with("192.0.2.2"), with("192.0.2.1")), denied},
		{"removed", update("services", with(), with("192.0.2.1")), ""},
		{"status", update("services/status", with("192.0.2.1"), with()), ""},
		{"delete", remove("services", with("192.0.2.1")), ""},
	} {
		if got := admit(newWorld(), c.r, denyServiceExternalIPs{}); got != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestEventRateLimit(t *testing.T) {
	event := func(ns, user, object string) *Request {
		r := create("events", &corev1.Event{ObjectMeta: meta(ns, "e"), Source: corev1.EventSource{Component: "kubelet"},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: object}})
		return as(r, user)
	}
	clock := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	type limits = []config.EventLimit
	type step struct {
		r    *Request
		want string // the error's text after "Too many requests: "
		wait time.Duration
	}
	server := config.EventLimit{Type: config.Server, QPS: 1, Burst: 2}
	const perServer = "limit reached on type Server for key "
	later := func(d time.Duration) step { return step{wait: d} }
	dry, changed, gone, other, newer := event("a", "u", "o"), event("a", "u", "o"), event("a", "u", "o"), event("a", "u", "o"), event("a", "u", "o")
	dry.DryRun = true
	changed.Verb, changed.Old = "patch", changed.Object
	gone.Verb, gone.Old, gone.Object = "delete", gone.Object, nil
	other.Resource = "configmaps"
	newer.APIGroup = "events.k8s.io"
	for _, c := range []struct {
		name   string
		limits limits
		steps  []step
	}{
		{"the server's burst, then its rate", limits{server}, []step{
			{r: event("a", "u", "o")}, {r: event("b", "v", "p")}, {r: event("a", "u", "o"), want: perServer}, later(900 * time.Millisecond), {r: event("a", "u", "o"), want: perServer},
			later(200 * time.Millisecond), {r: event("a", "u", "o")}, {r: event("a", "u", "o"), want: perServer},
			later(time.Minute), {r: event("a", "u", "o")}, {r: event("a", "u", "o")}, {r: event("a", "u", "o"), want: perServer}}},
		{"what is charged", limits{{Type: config.Server, QPS: 1, Burst: 1}}, []step{
			{r: dry}, {r: dry}, {r: gone}, {r: gone}, {r: other}, {r: newer}, {r: newer}, {r: changed}, {r: changed, want: perServer}}},
		{"by namespace", limits{{Type: config.Namespace, QPS: 1, Burst: 1}}, []step{
			{r: event("a", "u", "o")}, {r: event("b", "u", "o")}, {r: event("a", "v", "p"), want: "limit reached on type Namespace for key a"}}},
		{"by user", limits{{Type: config.User, QPS: 1, Burst: 1}}, []step{
			{r: event("a", "u", "o")}, {r: event("a", "v", "o")}, {r: event("b", "u", "p"), want: "limit reached on type User for key u"}}},
		{"by source and object", limits{{Type: config.SourceAndObject, QPS: 1, Burst: 1}}, []step{
			{r: event("a", "u", "o")}, {r: event("a", "u", "p")}, {r: event("a", "v", "o"), want: "limit reached on type SourceAndObject for key kubeletPodao"}}},
		{"the least recently used is forgotten", limits{{Type: config.User, QPS: 1, Burst: 1, CacheSize: 2}}, []step{
			{r: event("a", "u", "o")}, {r: event("a", "v", "o")}, {r: event("a", "u", "o"), want: "limit reached on type User for key u"},
			{r: event("a", "w", "o")}, {r: event("a", "u", "o"), want: "limit reached on type User for key u"}, {r: event("a", "v", "o")}}},
		{"all limits are charged", limits{server, {Type: config.Namespace, QPS: 1, Burst: 1}}, []step{
			{r: event("a", "u", "o")}, {r: event("a", "u", "o"), want: "limit reached on type Namespace for key a"}, {r: event("b", "u", "o"), want: perServer},
			{r: event("b", "u", "o"), want: "[" + perServer + ", limit reached on type Namespace for key b]"}}},
	} {
		p := newEventRateLimit(c.limits, clock)
		for i, s := range c.steps {
			if clock.SetTime(clock.Now().Add(s.wait)); s.r == nil {
				continue
			}
			want := s.want
			if want != "" {
				want = "Too many requests: " + want
			}
			err := NewChain([]Plugin{p}).Validate(t.Context(), s.r)
			if got := fmt.Sprint(err); (err != nil || want != "") && (got != want || !apierrors.IsTooManyRequests(err)) {
				t.Errorf("%s: step %d: %v, want %q", c.name, i, err, want)
			}
		}
	}
}

// Defaults hold where a namespace has no label; what is exempt is not judged.
func TestPodSecurityConfiguration(t *testing.T) {
	w := newWorld()
	w["namespaces"] = append(w["namespaces"], namespace("free", nil), namespace("open", map[string]string{"pod-security.kubernetes.io/enforce": "privileged"}))
	p := newPodSecurity(reader{w}, &psconfig.PodSecurityConfiguration{
		Defaults:   psconfig.PodSecurityDefaults{Enforce: "baseline", EnforceVersion: "latest", Audit: "privileged", AuditVersion: "latest", Warn: "privileged", WarnVersion: "latest"},
		Exemptions: psconfig.PodSecurityExemptions{Usernames: []string{"root"}, Namespaces: []string{"free"}, RuntimeClasses: []string{"vm"}},
	})
	host := func(ns string, change ...func(*corev1.Pod)) *Request {
		return create("pods", pod(append(change, func(p *corev1.Pod) { p.Namespace, p.Spec.HostNetwork = ns, true })...))
	}
	vm := func(p *corev1.Pod) { p.Spec.RuntimeClassName = ptr.To("vm") }
	for _, c := range []struct {
		name    string
		r       *Request
		refused bool
	}{
		{"by default", host("a"), true}, {"by label", host("open"), false}, {"namespace", host("free"), false},
		{"user", as(host("a"), "root"), false}, {"runtime class", host("a", vm), false}, {"nothing to refuse", create("pods", pod()), false},
	} {
		got := admit(w, c.r, p)
		if refused := strings.HasPrefix(got, `pods "web" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)`); refused != c.refused || !refused && got != "" {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

func TestLimitedResources(t *testing.T) {
	limited := []config.LimitedResource{
		{Resource: "pods", MatchContains: []string{"cpu"}, MatchScopes: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{"high"}}}},
		{Resource: "services", MatchContains: []string{"services.nodeports"}},
	}
	high := func(p *corev1.Pod) *corev1.Pod { p.Spec.PriorityClassName = "high"; return p }
	classQuota := quotaOf("q", nil, "pods", "5")
	classQuota.Spec.ScopeSelector = &corev1.ScopeSelector{MatchExpressions: limited[0].MatchScopes}
	service := func(kind corev1.ServiceType, ports int) *corev1.Service {
		return &corev1.Service{ObjectMeta: meta("a", "s"), Spec: corev1.ServiceSpec{Type: kind, Ports: make([]corev1.ServicePort, ports)}}
	}
	const uncovered = `pods "web" is forbidden: insufficient quota to consume: cpu,requests.cpu`
	for _, c := range []struct {
		name  string
		quota *corev1.ResourceQuota // nil: none
		r     *Request
		want  string
	}{
		{"no quota", nil, create("pods", sized("web", "1")), uncovered},
		{"nothing limited is used", nil, create("pods", sized("web", "")), ""},
		{"a quota of something else", quotaOf("q", nil, "pods", "5"), create("pods", sized("web", "1")), uncovered},
		{"half of it covered", quotaOf("q", nil, "requests.cpu", "5"), create("pods", sized("web", "1")), `pods "web" is forbidden: insufficient quota to consume: cpu`},
		{"covered", quotaOf("q", nil, "cpu", "5", "requests.cpu", "5"), create("pods", sized("web", "1")), ""},
		{"covered and exceeded", quotaOf("q", nil, "cpu", "5", "requests.cpu", "500m"), create("pods", sized("web", "1")), `pods "web" is forbidden: exceeded quota: q, requested: requests.cpu=1, used: requests.cpu=0, limited: requests.cpu=500m`},
		{"a scope", nil, create("pods", high(sized("web", ""))), "insufficient quota to match these scopes: [{PriorityClass In [high]}]"},
		{"the scope covered", classQuota, create("pods", high(sized("web", ""))), ""},
		{"another resource", nil, create("configmaps", &corev1.ConfigMap{ObjectMeta: meta("a", "m")}), ""},
		{"an update that uses more", nil, update("services", service(corev1.ServiceTypeNodePort, 1), service(corev1.ServiceTypeClusterIP, 1)), `services "s" is forbidden: insufficient quota to consume: services.nodeports`},
		{"an update that does not", nil, update("services", service(corev1.ServiceTypeNodePort, 1), service(corev1.ServiceTypeNodePort, 1)), ""},
	} {
		w := newWorld()
		if c.quota != nil {
			w["resourcequotas"] = []api.Object{c.quota}
		}
		p := &resourceQuota{read: reader{w}, clock: clocktesting.NewFakePassiveClock(time.Now()), limited: limited}
		if got := admit(w, c.r, p); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

// What was admitted is remembered for a while only, also where no quota looks at it.
func TestQuotaForgetsReservations(t *testing.T) {
	w := newWorld()
	w["resourcequotas"] = []api.Object{quotaOf("q", nil, "services", "1")}
	clock := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	q := &resourceQuota{read: reader{w}, clock: clock, limited: []config.LimitedResource{{Resource: "secrets"}}}
	for i := range 10 {
		clock.SetTime(clock.Now().Add(reserveFor))
		if got := admit(w, create("configmaps", &corev1.ConfigMap{ObjectMeta: meta("a", fmt.Sprint("m", i))}), q); got != "" || len(q.reserved) > 1 {
			t.Fatalf("%q, %d reservations", got, len(q.reserved))
		}
	}
}

// How long pods stay on a node that fails, where they do not say.
func TestDefaultTolerationSeconds(t *testing.T) {
	notReady, unreachable := int64(30), int64(0)
	cfg := Config{Reader: newWorld()}
	cfg.Plugins.Tolerations = config.TolerationSeconds{NotReady: &notReady, Unreachable: &unreachable}
	for _, p := range New(cfg) {
		if p.Name() != "DefaultTolerationSeconds" {
			continue
		}
		one, own := pod(), pod(func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists}}
		})
		for _, x := range []*corev1.Pod{one, own} {
			if err := p.Admit(t.Context(), create("pods", x)); err != nil {
				t.Fatal(err)
			}
		}
		got := one.Spec.Tolerations
		if len(got) != 2 || *got[0].TolerationSeconds != 30 || *got[1].TolerationSeconds != 0 || got[1].Key != corev1.TaintNodeUnreachable {
			t.Errorf("%+v", got)
		}
		if got := own.Spec.Tolerations; len(got) != 2 || got[0].TolerationSeconds != nil || *got[1].TolerationSeconds != 0 {
			t.Errorf("with one of its own: %+v", got)
		}
	}
}

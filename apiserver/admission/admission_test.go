package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/auth"
)

// world is a Reader: objects by resource ("pods", "storage.k8s.io/…").
type world map[string][]api.Object

func (w world) key(group, resource string) string {
	if group == "" {
		return resource
	}
	return group + "/" + resource
}

func (w world) List(group, resource, namespace string) (out []api.Object, _ error) {
	for _, o := range w[w.key(group, resource)] {
		if namespace == "" || o.GetNamespace() == namespace {
			out = append(out, o)
		}
	}
	return out, nil
}

func (w world) Get(group, resource, namespace, name string) (api.Object, error) {
	for _, o := range w[w.key(group, resource)] {
		if o.GetNamespace() == namespace && o.GetName() == name {
			return o, nil
		}
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: group, Resource: resource}, name)
}

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}}
}

// newWorld is a cluster with namespace a and its default account.
func newWorld() world {
	return world{
		"namespaces":      {namespace("a", nil)},
		"serviceaccounts": {&corev1.ServiceAccount{ObjectMeta: meta("a", "default"), ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}}}},
	}
}

// create is the request creating obj in resource ("group/resource/sub"), by an
// ordinary user.
func create(resource string, obj api.Object) *Request {
	r := &Request{Object: obj}
	r.User.Name, r.Verb, r.ResourceRequest, r.APIVersion = "alice", "create", true, "v1"
	r.Namespace = obj.GetNamespace()
	if i := strings.Index(resource, ".k8s.io/"); i >= 0 {
		r.APIGroup, resource = resource[:i+7], resource[i+8:]
	}
	r.Resource, r.Subresource, _ = strings.Cut(resource, "/")
	if r.Subresource != "" {
		r.Name = obj.GetName()
	}
	return r
}

func update(resource string, obj, old api.Object) *Request {
	r := create(resource, obj)
	r.Verb, r.Old, r.Name = "update", old, obj.GetName()
	return r
}

func remove(resource string, old api.Object) *Request {
	r := create(resource, old)
	r.Verb, r.Old, r.Object, r.Name = "delete", old, nil, old.GetName()
	return r
}

func as(r *Request, user string, groups ...string) *Request {
	r.User = auth.User{Name: user, Groups: groups}
	return r
}

func asNode(r *Request) *Request { return as(r, "system:node:n1", auth.GroupNodes) }

// admit runs the plugins as the server does and returns the error's text.
func admit(w world, r *Request, plugins ...Plugin) string {
	if plugins == nil {
		plugins = New(Config{Reader: w})
	}
	ctx := context.Background()
	err := NewChain(plugins).Admit(ctx, r)
	if err == nil {
		err = NewChain(plugins).Validate(ctx, r)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}

func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: meta("a", "web"), Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

// What a plain pod looks like after all default plugins.
func TestPodGetsUpstreamsDefaults(t *testing.T) {
	p := pod()
	if msg := admit(newWorld(), create("pods", p)); msg != "" {
		t.Fatal(msg)
	}
	volume := p.Spec.Volumes[0].Name
	if !strings.HasPrefix(volume, "kube-api-access-") || len(volume) != len("kube-api-access-")+5 {
		t.Errorf("volume %q", volume)
	}
	data, err := yaml.Marshal(p.Spec)
	if err != nil {
		t.Fatal(err)
	}
	want := `containers:
- image: i
  name: c
  resources: {}
  volumeMounts:
  - mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    name: VOLUME
    readOnly: true
imagePullSecrets:
- name: pull
preemptionPolicy: PreemptLowerPriority
priority: 0
serviceAccount: default
serviceAccountName: default
tolerations:
- effect: NoExecute
  key: node.kubernetes.io/not-ready
  operator: Exists
  tolerationSeconds: 300
- effect: NoExecute
  key: node.kubernetes.io/unreachable
  operator: Exists
  tolerationSeconds: 300
volumes:
- name: VOLUME
  projected:
    defaultMode: 420
    sources:
    - serviceAccountToken:
        expirationSeconds: 3607
        path: token
    - configMap:
        items:
        - key: ca.crt
          path: ca.crt
        name: kube-root-ca.crt
    - downwardAPI:
        items:
        - fieldRef:
            apiVersion: v1
            fieldPath: metadata.namespace
          path: namespace
`
	if got := strings.ReplaceAll(string(data), volume, "VOLUME"); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestNamespaceLifecycle(t *testing.T) {
	w := newWorld()
	going := namespace("going", nil)
	going.Status.Phase = corev1.NamespaceTerminating
	w["namespaces"] = append(w["namespaces"], going)
	cm := func(ns string) *corev1.ConfigMap { return &corev1.ConfigMap{ObjectMeta: meta(ns, "x")} }
	for _, c := range []struct {
		name string
		r    *Request
		want string
	}{
		{"create", create("configmaps", cm("a")), ""},
		{"no such namespace", create("configmaps", cm("nope")), `namespaces "nope" not found`},
		{"terminating", create("configmaps", cm("going")), `configmaps "x" is forbidden: unable to create new content in namespace going because it is being terminated`},
		{"update in a terminating one", update("configmaps", cm("going"), cm("going")), ""},
		{"delete in a terminating one", remove("configmaps", cm("going")), ""},
		{"delete default", remove("namespaces", namespace("default", nil)), `namespaces "default" is forbidden: this namespace may not be deleted`},
		{"delete kube-system", remove("namespaces", namespace("kube-system", nil)), `namespaces "kube-system" is forbidden: this namespace may not be deleted`},
		{"delete another", remove("namespaces", namespace("a", nil)), ""},
		{"a new namespace", create("namespaces", namespace("b", nil)), ""},
	} {
		if got := admit(w, c.r); got != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
	err := NewChain(New(Config{Reader: w})).Admit(context.Background(), create("configmaps", cm("going")))
	if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("no cause in %v", err)
	}
}

func TestServiceAccount(t *testing.T) {
	w := newWorld()
	strict := &corev1.ServiceAccount{ObjectMeta: meta("a", "strict"), Secrets: []corev1.ObjectReference{{Name: "mine"}}}
	strict.Annotations = map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"}
	quiet := &corev1.ServiceAccount{ObjectMeta: meta("a", "quiet"), AutomountServiceAccountToken: ptr.To(false)}
	w["serviceaccounts"] = append(w["serviceaccounts"], strict, quiet)
	account := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.ServiceAccountName = name }
	}
	secretVolume := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}})
		}
	}
	mirror := func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }
	for _, c := range []struct {
		name    string
		p       *corev1.Pod
		volumes int
		want    string
	}{
		{"missing account", pod(account("nope")), 0, `pods "web" is forbidden: error looking up service account a/nope: serviceaccount "nope" not found`},
		{"account says no token", pod(account("quiet")), 0, ""},
		{"pod says token", pod(account("quiet"), func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = ptr.To(true) }), 1, ""},
		{"pod says no token", pod(func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = ptr.To(false) }), 0, ""},
		{"something is there already", pod(func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: tokenMountPath}}
		}), 0, ""},
		{"a listed secret", pod(account("strict"), secretVolume("mine")), 2, ""},
		{"another secret", pod(account("strict"), secretVolume("other")), 2, `pods "web" is forbidden: volume with secret.secretName="other" is not allowed because service account strict does not reference that secret`},
		{"mirror pod", pod(mirror), 0, ""},
		{"mirror pod with an account", pod(mirror, account("default")), 0, `pods "web" is forbidden: a mirror pod may not reference service accounts`},
		{"mirror pod with a secret", pod(mirror, secretVolume("x")), 1, `pods "web" is forbidden: a mirror pod may not reference secrets`},
	} {
		if got := admit(w, create("pods", c.p)); got != c.want || len(c.p.Spec.Volumes) != c.volumes {
			t.Errorf("%s: %q, %d volumes", c.name, got, len(c.p.Spec.Volumes))
		}
	}
}

// CVE-2023-2728, CVE-2024-3177: what an account may mount holds for every kind
// of container and every way to a secret.
func TestMountableSecretsOfEveryContainer(t *testing.T) {
	sa := &corev1.ServiceAccount{ObjectMeta: meta("a", "strict"), Secrets: []corev1.ObjectReference{{Name: "mine"}}}
	env := func(secret string) []corev1.EnvVar {
		return []corev1.EnvVar{{Name: "E", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}}
	}
	from := func(secret string) []corev1.EnvFromSource {
		return []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}
	}
	for name, add := range map[string]func(p *corev1.Pod, env []corev1.EnvVar, from []corev1.EnvFromSource){
		"init container i": func(p *corev1.Pod, env []corev1.EnvVar, from []corev1.EnvFromSource) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Env: env, EnvFrom: from}}
		},
		"container c": func(p *corev1.Pod, env []corev1.EnvVar, from []corev1.EnvFromSource) {
			p.Spec.Containers = []corev1.Container{{Name: "c", Env: env, EnvFrom: from}}
		},
		"ephemeral container e": func(p *corev1.Pod, env []corev1.EnvVar, from []corev1.EnvFromSource) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Env: env, EnvFrom: from}}}
		},
	} {
		for _, c := range []struct {
			env  []corev1.EnvVar
			from []corev1.EnvFromSource
			want string
		}{
			{env("mine"), from("mine"), ""},
			{env("other"), nil, name + ` with envVar E referencing secret.secretName="other" is not allowed because service account strict does not reference that secret`},
			{nil, from("other"), name + ` with envFrom referencing secret.secretName="other" is not allowed because service account strict does not reference that secret`},
		} {
			p := &corev1.Pod{}
			add(p, c.env, c.from)
			got := ""
			if err := checkMountable(sa, p, strings.HasPrefix(name, "ephemeral")); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
	}
}

func TestPriorityRuntimeClassAndTopology(t *testing.T) {
	w := newWorld()
	high := &schedulingv1.PriorityClass{ObjectMeta: meta("", "high"), Value: 100, PreemptionPolicy: ptr.To(corev1.PreemptNever)}
	w["scheduling.k8s.io/priorityclasses"] = []api.Object{high}
	w["node.k8s.io/runtimeclasses"] = []api.Object{&nodev1.RuntimeClass{ObjectMeta: meta("", "vm"), Handler: "vm",
		Overhead:   &nodev1.Overhead{PodFixed: corev1.ResourceList{"cpu": resource.MustParse("100m")}},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"vm": "yes"}}}}
	w["nodes"] = []api.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "z1", "other": "x"}}}}
	class := func(name string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.PriorityClassName = name }
	}
	vm := func(p *corev1.Pod) { p.Spec.RuntimeClassName = ptr.To("vm") }
	for _, c := range []struct {
		name string
		p    *corev1.Pod
		want string
		ok   func(*corev1.Pod) bool
	}{
		{"class", pod(class("high")), "", func(p *corev1.Pod) bool {
			return *p.Spec.Priority == 100 && *p.Spec.PreemptionPolicy == corev1.PreemptNever
		}},
		{"missing class", pod(class("nope")), `pods "web" is forbidden: no PriorityClass with name nope was found`, nil},
		{"another number", pod(class("high"), func(p *corev1.Pod) { p.Spec.Priority = ptr.To[int32](7) }), `pods "web" is forbidden: the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 100 from the given PriorityClass name`, nil},
		{"runtime class", pod(vm), "", func(p *corev1.Pod) bool {
			return p.Spec.Overhead.Cpu().String() == "100m" && p.Spec.NodeSelector["vm"] == "yes"
		}},
		{"runtime class, other selector", pod(vm, func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"vm": "no"} }), `pods "web" is forbidden: conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no`, nil},
		{"missing runtime class", pod(func(p *corev1.Pod) { p.Spec.RuntimeClassName = ptr.To("nope") }), `pods "web" is forbidden: pod rejected: RuntimeClass "nope" not found`, nil},
		{"overhead of one's own", pod(func(p *corev1.Pod) { p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("1")} }), `pods "web" is forbidden: pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead`, nil},
		{"zone of the node", pod(func(p *corev1.Pod) { p.Spec.NodeName = "n1" }), "", func(p *corev1.Pod) bool {
			return len(p.Labels) == 1 && p.Labels[corev1.LabelTopologyZone] == "z1"
		}},
	} {
		if got := admit(w, create("pods", c.p)); got != c.want || c.ok != nil && !c.ok(c.p) {
			t.Errorf("%s: %q %+v", c.name, got, c.p)
		}
	}
	binding := &corev1.Binding{ObjectMeta: meta("a", "web"), Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
	if got := admit(w, create("pods/binding", binding)); got != "" || binding.Labels[corev1.LabelTopologyZone] != "z1" {
		t.Errorf("binding: %q %v", got, binding.Labels)
	}
	high.GlobalDefault = true
	p := pod()
	if got := admit(w, create("pods", p)); got != "" || p.Spec.PriorityClassName != "high" {
		t.Errorf("default class: %q %q", got, p.Spec.PriorityClassName)
	}
	second := &schedulingv1.PriorityClass{ObjectMeta: meta("", "second"), GlobalDefault: true}
	if got := admit(w, create("scheduling.k8s.io/priorityclasses", second)); got != `priorityclasses.scheduling.k8s.io "second" is forbidden: PriorityClass high is already marked as default. Only one default can exist` {
		t.Errorf("second default: %q", got)
	}
}

// TestNodeRestriction: among it are the mirror pods and owners of CVE-2025-4563 and CVE-2025-5187.
func TestNodeRestriction(t *testing.T) {
	w := newWorld()
	mine := pod(func(p *corev1.Pod) {
		p.UID, p.Spec.NodeName = "u1", "n1"
		p.Spec.Volumes = []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}}, {ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault"}}}}}}}
	})
	theirs := pod(func(p *corev1.Pod) { p.Name, p.UID, p.Spec.NodeName = "theirs", "u2", "n2" })
	w["pods"] = []api.Object{mine, theirs}
	w["nodes"] = []api.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-1"}}}
	mirror := func(change func(*corev1.Pod)) *corev1.Pod {
		p := pod(func(p *corev1.Pod) {
			p.Name, p.Spec.NodeName = "static-n1", "n1"
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "node-1", Controller: ptr.To(true)}}
		})
		if change != nil {
			change(p)
		}
		return p
	}
	node := func(name string, labels map[string]string, taints ...corev1.Taint) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.NodeSpec{Taints: taints}}
	}
	token := func(pod string, uid types.UID, audiences ...string) *Request {
		r := create("serviceaccounts/token", &authenticationv1.TokenRequest{ObjectMeta: meta("a", "default"), Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}})
		if pod != "" {
			r.Object.(*authenticationv1.TokenRequest).Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod, UID: uid}
		}
		return r
	}
	lease := func(ns, name string) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: meta(ns, name)}
	}
	owned := node("n1", nil)
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "none", UID: "none"}}
	w["namespaces"] = append(w["namespaces"], namespace("kube-node-lease", nil))
	ready := mine.DeepCopy()
	ready.Status.Phase = corev1.PodRunning
	relabelled := mine.DeepCopy()
	relabelled.Labels = map[string]string{"app": "x"}
	for _, c := range []struct {
		name string
		r    *Request
		want string
	}{
		{"mirror pod", create("pods", mirror(nil)), ""},
		{"ordinary pod", create("pods", pod()), `pods "web" is forbidden: pod does not have "kubernetes.io/config.mirror" annotation, node "n1" can only create mirror pods`},
		{"mirror pod elsewhere", create("pods", mirror(func(p *corev1.Pod) { p.Spec.NodeName = "n2" })), `pods "static-n1" is forbidden: node "n1" can only create pods with spec.nodeName set to itself`},
		{"mirror pod without owner", create("pods", mirror(func(p *corev1.Pod) { p.OwnerReferences = nil })), `pods "static-n1" is forbidden: node "n1" can only create pods with an owner reference set to itself`},
		{"mirror pod of an old node", create("pods", mirror(func(p *corev1.Pod) { p.OwnerReferences[0].UID = "old" })), `pods "static-n1" is forbidden: node n1 UID mismatch: expected old got node-1`},
		{"mirror pod with a claim", create("pods", mirror(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}}}
		})), `pods "static-n1" is forbidden: node "n1" can not create pods that reference persistentvolumeclaims`},
		{"delete its pod", remove("pods", mine), ""},
		{"delete another's pod", remove("pods", theirs), `pods "theirs" is forbidden: node "n1" can only delete pods with spec.nodeName set to itself`},
		{"status of its pod", update("pods/status", ready, mine), ""},
		{"labels through status", update("pods/status", relabelled, mine), `pods "web" is forbidden: node "n1" cannot update labels through pod status`},
		{"status of another's pod", update("pods/status", theirs, theirs), `pods "theirs" is forbidden: node "n1" can only update pod status for pods with spec.nodeName set to itself`},
		{"update a pod", update("pods", mine, mine), `pods "web" is forbidden: unexpected operation "UPDATE", node "n1" can only create and delete mirror pods`},
		{"its node", create("nodes", node("n1", map[string]string{"kubernetes.io/hostname": "n1", "mine": "1"})), ""},
		{"another node", create("nodes", node("n2", nil)), `nodes "n2" is forbidden: node "n1" is not allowed to modify node "n2"`},
		{"restricted label", create("nodes", node("n1", map[string]string{"node-restriction.kubernetes.io/x": "1", "node-role.kubernetes.io/control-plane": ""})), `nodes "n1" is forbidden: node "n1" is not allowed to set the following labels: node-restriction.kubernetes.io/x, node-role.kubernetes.io/control-plane`},
		{"taints", update("nodes", node("n1", nil), node("n1", nil, corev1.Taint{Key: "x"})), `nodes "n1" is forbidden: node "n1" is not allowed to modify taints`},
		{"owner of the node", update("nodes", owned, node("n1", nil)), `nodes "n1" is forbidden: node "n1" is not allowed to modify ownerReferences`},
		{"label change", update("nodes", node("n1", nil), node("n1", map[string]string{"a.k8s.io/x": "1"})), `nodes "n1" is forbidden: is not allowed to modify labels: a.k8s.io/x`},
		{"token for its pod", token("web", "u1"), ""},
		{"token for its pod's audience", token("web", "u1", "vault"), ""},
		{"token for another audience", token("web", "u1", "bank"), `serviceaccounts "default" is forbidden: system:node:n1 is not authorized to request tokens for audience "bank"`},
		{"token without pod", token("", ""), `serviceaccounts "default" is forbidden: node requested token not bound to a pod`},
		{"token without uid", token("web", ""), `serviceaccounts "default" is forbidden: node requested token with a pod binding without a uid`},
		{"token for another's pod", token("theirs", "u2"), `serviceaccounts "default" is forbidden: node requested token bound to a pod scheduled on a different node`},
		{"its lease", create("coordination.k8s.io/leases", lease("kube-node-lease", "n1")), ""},
		{"another lease", create("coordination.k8s.io/leases", lease("kube-node-lease", "n2")), `leases.coordination.k8s.io "n2" is forbidden: can only access node lease with the same name as the requesting node`},
		{"lease elsewhere", create("coordination.k8s.io/leases", lease("a", "n1")), `leases.coordination.k8s.io "n1" is forbidden: can only access leases in the "kube-node-lease" system namespace`},
	} {
		if got := admit(w, asNode(c.r)); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	fresh := node("n1", nil)
	if got := admit(w, asNode(create("nodes", fresh))); got != "" || len(fresh.Spec.Taints) != 1 || fresh.Spec.Taints[0].Key != corev1.TaintNodeNotReady {
		t.Errorf("new node: %q %v", got, fresh.Spec.Taints)
	}
}

func TestNodeAsksForItsPodsCertificates(t *testing.T) {
	w := newWorld()
	mine := pod(func(p *corev1.Pod) {
		p.UID, p.Spec.NodeName, p.Spec.ServiceAccountName = "u1", "n1", "default"
		p.Spec.Volumes = []corev1.Volume{{Name: "c", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{PodCertificate: &corev1.PodCertificateProjection{SignerName: "example.com/mtls"}}}}}}}
	})
	w["pods"] = []api.Object{mine, pod(func(p *corev1.Pod) { p.Name, p.UID, p.Spec.NodeName = "theirs", "u2", "n2" }),
		pod(func(p *corev1.Pod) {
			p.Name, p.UID, p.Spec.NodeName = "static", "u3", "n1"
			p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		})}
	w["nodes"] = []api.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-1"}}}
	w["serviceaccounts"] = []api.Object{&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "default", UID: "sa-1"}}}
	type spec = certificatesv1.PodCertificateRequestSpec
	const resource, no = "certificates.k8s.io/podcertificaterequests", `podcertificaterequests.certificates.k8s.io "r" is forbidden: `
	request := func(change func(*spec)) *certificatesv1.PodCertificateRequest {
		r := &certificatesv1.PodCertificateRequest{ObjectMeta: meta("a", "r"), Spec: spec{SignerName: "example.com/mtls", PodName: "web", PodUID: "u1",
			ServiceAccountName: "default", ServiceAccountUID: "sa-1", NodeName: "n1", NodeUID: "node-1"}}
		change(&r.Spec)
		return r
	}
	for _, c := range []struct {
		name   string
		change func(*spec)
		want   string
	}{
		{"its pod", func(*spec) {}, ""},
		{"as another node", func(s *spec) { s.NodeName = "n2" }, no + `PodCertificateRequest.Spec.NodeName="n2", which is not the requesting node "n1"`},
		{"as a former node", func(s *spec) { s.NodeUID = "old" }, `PodCertificateRequest for pod "a/web" names node UID "old", inconsistent with the running node ("node-1")`},
		{"a pod that is gone", func(s *spec) { s.PodName = "gone" }, `while retrieving pod "a/gone" named in the PodCertificateRequest: pods "gone" not found`},
		{"a former pod", func(s *spec) { s.PodUID = "old" }, `PodCertificateRequest for pod "a/web" contains pod UID ("old") which differs from running pod "u1"`},
		{"another's pod", func(s *spec) { s.PodName, s.PodUID = "theirs", "u2" }, no + `pod "a/theirs" is not running on node "n1" named in the PodCertificateRequest`},
		{"its mirror pod", func(s *spec) { s.PodName, s.PodUID = "static", "u3" }, no + `pod "a/static" is a mirror pod`},
		{"another account", func(s *spec) { s.ServiceAccountName = "root" }, no + `PodCertificateRequest for pod "a/web" contains serviceAccountName ("root") that differs from running pod ("default")`},
		{"a former account", func(s *spec) { s.ServiceAccountUID = "old" }, `PodCertificateRequest for pod "a/web" names service account UID "old", which differs from the running service account ("sa-1")`},
		{"another signer", func(s *spec) { s.SignerName = "example.com/root" }, no + `pod "a/web" does not mount a podCertificate projected volume for signer "example.com/root"`},
	} {
		if got := admit(w, asNode(create(resource, request(c.change)))); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
	old := request(func(*spec) {})
	if got := admit(w, asNode(update(resource, old, old))); got != no+"unexpected operation UPDATE" {
		t.Errorf("update: %s", got)
	}
	granted := allowing{}
	granted["request-serviceaccounts-podcertificate-signer default"] = true
	if got := admit(w, asNode(create(resource, request(func(s *spec) { s.SignerName = "example.com/root" }))), New(Config{Reader: w, Authorizer: granted})...); got != "" {
		t.Errorf("a signer allowed by a rule: %s", got)
	}

	signed := old.DeepCopy()
	signed.Status.CertificateChain = "x"
	signer := New(Config{Reader: w, Authorizer: allowing{"sign example.com/mtls": true}})
	if got := admit(w, update(resource+"/status", signed, old), signer...); got != "" {
		t.Errorf("a signer's verdict: %s", got)
	}
	if got := admit(w, update(resource+"/status", signed, old), New(Config{Reader: w, Authorizer: allowing{}})...); !strings.Contains(got,
		`is invalid: spec.signerName: Forbidden: User "alice" is not permitted to "sign" for signer "example.com/mtls"`) {
		t.Errorf("anyone's verdict: %s", got)
	}
}

func TestLimitRanger(t *testing.T) {
	list := func(pairs ...string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for i := 0; i < len(pairs); i += 2 {
			l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
		}
		return l
	}
	w := newWorld()
	w["limitranges"] = []api.Object{&corev1.LimitRange{ObjectMeta: meta("a", "l"), Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{
		{Type: corev1.LimitTypeContainer, Default: list("cpu", "200m"), DefaultRequest: list("cpu", "100m", "memory", "1Mi"), Max: list("cpu", "1"), MaxLimitRequestRatio: list("cpu", "4")},
		{Type: corev1.LimitTypePod, Max: list("cpu", "1500m")},
		{Type: corev1.LimitTypePersistentVolumeClaim, Min: list("storage", "1Gi"), Max: list("storage", "2Gi")},
	}}}}
	with := func(requests, limits corev1.ResourceList) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
		}
	}
	for _, c := range []struct {
		name string
		p    *corev1.Pod
		want string
	}{
		{"defaults", pod(), ""},
		{"too much", pod(with(nil, list("cpu", "2"))), `pods "web" is forbidden: [maximum cpu usage per Container is 1, but limit is 2, cpu max limit to request ratio per Container is 4, but provided ratio is 20.000000, maximum cpu usage per Pod is 1500m, but limit is 2]`},
		{"ratio", pod(with(list("cpu", "100m"), list("cpu", "500m"))), `pods "web" is forbidden: cpu max limit to request ratio per Container is 4, but provided ratio is 5.000000`},
		{"whole pod", pod(with(list("cpu", "1"), list("cpu", "1")), func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, *p.Spec.Containers[0].DeepCopy())
			p.Spec.Containers[1].Name = "d"
		}), `pods "web" is forbidden: maximum cpu usage per Pod is 1500m, but limit is 2`},
	} {
		if got := admit(w, create("pods", c.p)); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	p := pod()
	admit(w, create("pods", p))
	if got := p.Annotations["kubernetes.io/limit-ranger"]; got != "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c" {
		t.Errorf("annotation %q", got)
	}
	claim := func(size string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: meta("a", "d"), Spec: corev1.PersistentVolumeClaimSpec{Resources: corev1.VolumeResourceRequirements{Requests: list("storage", size)}}}
	}
	for size, want := range map[string]string{
		"1Gi":   "",
		"500Mi": `persistentvolumeclaims "d" is forbidden: minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 500Mi`,
		"3Gi":   `persistentvolumeclaims "d" is forbidden: maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi`,
	} {
		if got := admit(w, create("persistentvolumeclaims", claim(size))); got != want {
			t.Errorf("claim of %s: %s", size, got)
		}
	}
}

func TestPodSecurity(t *testing.T) {
	w := newWorld()
	w["namespaces"] = append(w["namespaces"],
		namespace("base", map[string]string{"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted"}))
	w["serviceaccounts"] = append(w["serviceaccounts"], &corev1.ServiceAccount{ObjectMeta: meta("base", "default")})
	in := func(ns string, change func(*corev1.Pod)) *corev1.Pod {
		return pod(func(p *corev1.Pod) { p.Namespace = ns }, change)
	}
	host := func(p *corev1.Pod) { p.Spec.HostNetwork = true }
	plain := func(*corev1.Pod) {}
	for _, c := range []struct {
		name, want string
		p          *corev1.Pod
		warnings   int
	}{
		{"no labels, anything goes", "", in("a", host), 0},
		{"baseline refuses", `pods "web" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)`, in("base", host), 0},
		{"baseline allows, restricted warns", "", in("base", plain), 1},
	} {
		var warnings []string
		ctx := WithWarner(context.Background(), func(s string) { warnings = append(warnings, s) })
		plugins := New(Config{Reader: w})
		r := create("pods", c.p)
		err := NewChain(plugins).Admit(ctx, r)
		if err == nil {
			err = NewChain(plugins).Validate(ctx, r)
		}
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want || len(warnings) != c.warnings || c.warnings > 0 && !strings.HasPrefix(warnings[0], `would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false`) {
			t.Errorf("%s: %q %q", c.name, got, warnings)
		}
	}
	// An update that leaves images alone is not judged again.
	bad := in("base", host)
	if got := admit(w, update("pods", bad, bad.DeepCopy())); got != "" {
		t.Errorf("metadata update: %s", got)
	}
	if got := admit(w, create("namespaces", namespace("b", map[string]string{"pod-security.kubernetes.io/enforce": "silly"}))); !strings.Contains(got, `Invalid value: "silly"`) {
		t.Errorf("bad label: %s", got)
	}
	w["pods"] = []api.Object{in("a", host)}
	var warnings []string
	ctx := WithWarner(context.Background(), func(s string) { warnings = append(warnings, s) })
	stricter := namespace("a", map[string]string{"pod-security.kubernetes.io/enforce": "baseline"})
	if err := NewChain(New(Config{Reader: w})).Validate(ctx, update("namespaces", stricter, namespace("a", nil))); err != nil {
		t.Fatal(err)
	}
	want := []string{`existing pods in namespace "a" violate the new PodSecurity enforce level "baseline:latest"`, "web: host namespaces"}
	if !slices.Equal(warnings, want) {
		t.Errorf("warnings %q", warnings)
	}
}

func TestStorageAndIngressDefaults(t *testing.T) {
	w := newWorld()
	grows := &storagev1.StorageClass{ObjectMeta: meta("", "grows"), AllowVolumeExpansion: ptr.To(true)}
	grows.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
	w["storage.k8s.io/storageclasses"] = []api.Object{grows, &storagev1.StorageClass{ObjectMeta: meta("", "fixed")}}
	web := &networkingv1.IngressClass{ObjectMeta: meta("", "web")}
	web.Annotations = map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}
	w["networking.k8s.io/ingressclasses"] = []api.Object{web}
	claim := func(class *string, size string, phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: meta("a", "d"), Status: corev1.PersistentVolumeClaimStatus{Phase: phase}, Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: class, Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse(size)}}}}
	}
	pvc := claim(nil, "1Gi", "")
	if got := admit(w, create("persistentvolumeclaims", pvc)); got != "" || *pvc.Spec.StorageClassName != "grows" || !slices.Equal(pvc.Finalizers, []string{"kubernetes.io/pvc-protection"}) {
		t.Errorf("%q %+v", got, pvc)
	}
	none := claim(ptr.To(""), "1Gi", "")
	if got := admit(w, create("persistentvolumeclaims", none)); got != "" || *none.Spec.StorageClassName != "" {
		t.Errorf("%q %+v", got, none)
	}
	const refused = `persistentvolumeclaims "d" is forbidden: only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize`
	for _, c := range []struct {
		name, class string
		phase       corev1.PersistentVolumeClaimPhase
		want        string
	}{
		{"grows", "grows", corev1.ClaimBound, ""},
		{"class does not allow", "fixed", corev1.ClaimBound, refused},
		{"no class", "", corev1.ClaimBound, refused},
		{"not bound", "grows", corev1.ClaimPending, `persistentvolumeclaims "d" is forbidden: Only bound persistent volume claims can be expanded`},
	} {
		if got := admit(w, update("persistentvolumeclaims", claim(&c.class, "2Gi", c.phase), claim(&c.class, "1Gi", c.phase))); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
	ing := &networkingv1.Ingress{ObjectMeta: meta("a", "i")}
	if got := admit(w, create("networking.k8s.io/ingresses", ing)); got != "" || *ing.Spec.IngressClassName != "web" {
		t.Errorf("%q %+v", got, ing.Spec)
	}
}

type allowing map[string]bool // "verb name"

func (a allowing) Authorize(_ context.Context, at auth.Attributes) (auth.Decision, string, error) {
	if a[at.Verb+" "+at.Name] {
		return auth.Allow, "", nil
	}
	return auth.NoOpinion, "", nil
}

func TestCertificates(t *testing.T) {
	csr := func(signer, cn string, orgs ...string) *certificatesv1.CertificateSigningRequest {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn, Organization: orgs}}, key)
		if err != nil {
			t.Fatal(err)
		}
		return &certificatesv1.CertificateSigningRequest{ObjectMeta: meta("", "c"), Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: signer, Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}
	}
	const resource, client = "certificates.k8s.io/certificatesigningrequests", certificatesv1.KubeAPIServerClientSignerName
	signed := func(c *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
		c = c.DeepCopy()
		c.Status.Certificate = []byte("x")
		return c
	}
	mine, one := csr("example.com/mine", "x"), csr("example.com/one", "x")
	other := csr("other.com/x", "x")
	w := newWorld()
	plugins := New(Config{Reader: w, Authorizer: allowing{"approve example.com/*": true, "sign example.com/one": true}})
	const prefix = `certificatesigningrequests.certificates.k8s.io "c" is forbidden: `
	for _, c := range []struct {
		name string
		r    *Request
		want string
	}{
		{"a client", create(resource, csr(client, "alice", "dev")), ""},
		{"an administrator", create(resource, csr(client, "alice", "system:masters")), prefix + "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"},
		{"the node itself", asNode(create(resource, csr(certificatesv1.KubeAPIServerClientKubeletSignerName, "system:node:n1"))), ""},
		{"another node", asNode(create(resource, csr(certificatesv1.KubeAPIServerClientKubeletSignerName, "system:node:n2"))), prefix + "can only create a node CSR with CN=system:node:n1"},
		{"approve by domain", update(resource+"/approval", mine, mine), ""},
		{"approve another", update(resource+"/approval", mine, other), prefix + `user not permitted to approve requests with signerName "other.com/x"`},
		{"sign", update(resource+"/status", signed(one), one), ""},
		{"sign another", update(resource+"/status", signed(mine), mine), prefix + `user not permitted to sign requests with signerName "example.com/mine"`},
		{"a status that signs nothing", update(resource+"/status", mine, mine), ""},
	} {
		if got := admit(w, c.r, plugins...); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}

func TestClusterTrustBundleAttest(t *testing.T) {
	bundle := func(signer, anchors string) *certificatesv1.ClusterTrustBundle {
		return &certificatesv1.ClusterTrustBundle{ObjectMeta: meta("", "b"),
			Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: anchors}}
	}
	const resource, no = "certificates.k8s.io/clustertrustbundles", `clustertrustbundles.certificates.k8s.io "b" is forbidden: `
	plugins := New(Config{Reader: newWorld(), Authorizer: allowing{"attest example.com/*": true, "attest foo.com/b": true}})
	owned := bundle("foo.com/a", "one")
	owned.OwnerReferences, owned.Finalizers = []metav1.OwnerReference{{Name: "x"}}, []string{"foo.com/x"}
	labelled := bundle("foo.com/a", "one")
	labelled.Labels = map[string]string{"a": "b"}
	old := bundle("foo.com/a", "one")
	for _, c := range []struct {
		name string
		r    *Request
		want string
	}{
		{"for no signer", create(resource, bundle("", "one")), ""},
		{"for one's signer", create(resource, bundle("foo.com/b", "one")), ""},
		{"for a signer of one's domain", create(resource, bundle("example.com/a", "one")), ""},
		{"for another's", create(resource, bundle("foo.com/a", "one")), no + `user not permitted to attest for signerName "foo.com/a"`},
		{"another's, changed", update(resource, bundle("foo.com/a", "two"), old), no + `user not permitted to attest for signerName "foo.com/a"`},
		{"another's, labelled", update(resource, labelled, old), no + `user not permitted to attest for signerName "foo.com/a"`},
		{"another's, by the garbage collector", update(resource, owned, old), ""},
		{"another's, as it is", update(resource, bundle("foo.com/a", "one"), old), ""},
		{"another's, deleted", remove(resource, old), ""},
	} {
		if got := admit(nil, c.r, plugins...); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

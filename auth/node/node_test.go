package node

import (
	"context"
	"errors"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac/policy"
)

// objects is a Reader over objects keyed "resource namespace/name".
type objects map[string]runtime.Object

func (o objects) PodsOnNode(node string) (out []*corev1.Pod, _ error) {
	for _, obj := range o {
		if p, ok := obj.(*corev1.Pod); ok && p.Spec.NodeName == node {
			out = append(out, p)
		}
	}
	return out, nil
}

func (o objects) Get(_, resource, namespace, name string) (runtime.Object, error) {
	if obj := o[resource+" "+namespace+"/"+name]; obj != nil {
		return obj, nil
	}
	return nil, errors.New("not found")
}

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

func world() objects {
	local := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n} }
	web := &corev1.Pod{ObjectMeta: meta("a", "web"), Spec: corev1.PodSpec{
		NodeName: "n1", ServiceAccountName: "app", ImagePullSecrets: []corev1.LocalObjectReference{local("pull")},
		InitContainers: []corev1.Container{{EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local("init")}}}}},
		Containers: []corev1.Container{{Env: []corev1.EnvVar{
			{ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: local("env")}}},
			{ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: local("settings")}}},
		}}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
			EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("debug")}}}}}},
		Volumes: []corev1.Volume{
			{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol"}}},
			{Name: "p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{Secret: &corev1.SecretProjection{LocalObjectReference: local("proj")}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("kube-root-ca.crt")}}}}}},
			{Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
			{Name: "tmp", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		},
	}}
	mirror := &corev1.Pod{ObjectMeta: meta("a", "static-n1"), Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "stolen",
		ImagePullSecrets: []corev1.LocalObjectReference{local("stolen")}}}
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	other := &corev1.Pod{ObjectMeta: meta("a", "other"), Spec: corev1.PodSpec{NodeName: "n2", ServiceAccountName: "other",
		ImagePullSecrets: []corev1.LocalObjectReference{local("theirs")}}}
	request := func(node types.NodeName) *certificatesv1.PodCertificateRequest {
		return &certificatesv1.PodCertificateRequest{Spec: certificatesv1.PodCertificateRequestSpec{NodeName: node}}
	}
	return objects{
		"podcertificaterequests a/r1": request("n1"), "podcertificaterequests a/r2": request("n2"),
		"pods a/web": web, "pods a/static-n1": mirror, "pods a/other": other,
		"persistentvolumeclaims a/data": &corev1.PersistentVolumeClaim{ObjectMeta: meta("a", "data"), Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv1"}},
		"persistentvolumes /pv1": &corev1.PersistentVolume{ObjectMeta: meta("", "pv1"), Spec: corev1.PersistentVolumeSpec{
			ClaimRef: &corev1.ObjectReference{Namespace: "a", Name: "data"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				NodeStageSecretRef:         &corev1.SecretReference{Namespace: "storage", Name: "stage"},
				ControllerPublishSecretRef: &corev1.SecretReference{Namespace: "storage", Name: "controller"}}}}},
		"volumeattachments /va1": &storagev1.VolumeAttachment{ObjectMeta: meta("", "va1"), Spec: storagev1.VolumeAttachmentSpec{NodeName: "n1"}},
		"volumeattachments /va2": &storagev1.VolumeAttachment{ObjectMeta: meta("", "va2"), Spec: storagev1.VolumeAttachmentSpec{NodeName: "n2"}},
	}
}

const unrelated = "no relationship found between node 'n1' and this object"

func TestAuthorize(t *testing.T) {
	z := New(world(), policy.NodeRules())
	n1 := auth.User{Name: "system:node:n1", Groups: []string{auth.GroupNodes}}
	onNode := func(n string) fields.Requirements {
		return fields.Requirements{{Operator: selection.Equals, Field: "spec.nodeName", Value: n}}
	}
	type at = auth.Attributes
	for _, c := range []struct {
		name   string
		a      at
		allow  bool
		reason string
	}{
		{"pull secret", at{Verb: "get", Namespace: "a", Resource: "secrets", Name: "pull"}, true, ""},
		{"init container's secret", at{Verb: "get", Namespace: "a", Resource: "secrets", Name: "init"}, true, ""},
		{"env secret, watched", at{Verb: "watch", Namespace: "a", Resource: "secrets", Name: "env"}, true, ""},
		{"volume secret", at{Verb: "list", Namespace: "a", Resource: "secrets", Name: "vol"}, true, ""},
		{"projected secret", at{Verb: "get", Namespace: "a", Resource: "secrets", Name: "proj"}, true, ""},
		{"a claimed volume's secret", at{Verb: "get", Namespace: "storage", Resource: "secrets", Name: "stage"}, true, ""},
		{"that only controllers need", at{Verb: "get", Namespace: "storage", Resource: "secrets", Name: "controller"}, false, unrelated},
		{"another node's secret", at{Verb: "get", Namespace: "a", Resource: "secrets", Name: "theirs"}, false, unrelated},
		{"same name, other namespace", at{Verb: "get", Namespace: "b", Resource: "secrets", Name: "pull"}, false, unrelated},
		{"a mirror pod grants nothing", at{Verb: "get", Namespace: "a", Resource: "secrets", Name: "stolen"}, false, unrelated},
		{"all secrets", at{Verb: "list", Namespace: "a", Resource: "secrets"}, false, "No Object name found"},
		{"secrets everywhere", at{Verb: "list", Resource: "secrets"}, false, "can only read namespaced object of this type"},
		{"writing secrets", at{Verb: "create", Namespace: "a", Resource: "secrets"}, false, "can only read resources of this type"},
		{"env config map", at{Verb: "get", Namespace: "a", Resource: "configmaps", Name: "settings"}, true, ""},
		{"ephemeral container's config map", at{Verb: "get", Namespace: "a", Resource: "configmaps", Name: "debug"}, true, ""},
		{"root CA", at{Verb: "get", Namespace: "a", Resource: "configmaps", Name: "kube-root-ca.crt"}, true, ""},
		{"claim", at{Verb: "get", Namespace: "a", Resource: "persistentvolumeclaims", Name: "data"}, true, ""},
		{"generic ephemeral claim", at{Verb: "get", Namespace: "a", Resource: "persistentvolumeclaims", Name: "web-tmp"}, true, ""},
		{"claim's status", at{Verb: "patch", Namespace: "a", Resource: "persistentvolumeclaims", Subresource: "status", Name: "data"}, true, ""},
		{"claim itself", at{Verb: "patch", Namespace: "a", Resource: "persistentvolumeclaims", Name: "data"}, false, "can only get individual resources of this type"},
		{"volume", at{Verb: "get", Resource: "persistentvolumes", Name: "pv1"}, true, ""},
		{"attachment", at{Verb: "get", APIGroup: "storage.k8s.io", Resource: "volumeattachments", Name: "va1"}, true, ""},
		{"another's attachment", at{Verb: "get", APIGroup: "storage.k8s.io", Resource: "volumeattachments", Name: "va2"}, false, unrelated},
		{"token of its pod's account", at{Verb: "create", Namespace: "a", Resource: "serviceaccounts", Subresource: "token", Name: "app"}, true, ""},
		{"token of another account", at{Verb: "create", Namespace: "a", Resource: "serviceaccounts", Subresource: "token", Name: "other"}, false, unrelated},
		{"token through a mirror pod", at{Verb: "create", Namespace: "a", Resource: "serviceaccounts", Subresource: "token", Name: "stolen"}, false, unrelated},
		{"making an account", at{Verb: "create", Namespace: "a", Resource: "serviceaccounts", Name: "app"}, false, "can only create token subresource of serviceaccount"},
		{"asking for a pod's certificate", at{Verb: "create", APIGroup: "certificates.k8s.io", Namespace: "a", Resource: "podcertificaterequests"}, true, ""},
		{"its request", at{Verb: "get", APIGroup: "certificates.k8s.io", Namespace: "a", Resource: "podcertificaterequests", Name: "r1"}, true, ""},
		{"another's request", at{Verb: "get", APIGroup: "certificates.k8s.io", Namespace: "a", Resource: "podcertificaterequests", Name: "r2"}, false, unrelated},
		{"its requests", at{Verb: "watch", APIGroup: "certificates.k8s.io", Resource: "podcertificaterequests", FieldSelector: onNode("n1")}, true, ""},
		{"all requests", at{Verb: "list", APIGroup: "certificates.k8s.io", Resource: "podcertificaterequests"}, false, "can only list/watch podcertificaterequests with nodeName field selector"},
		{"deciding on a request", at{Verb: "update", APIGroup: "certificates.k8s.io", Namespace: "a", Resource: "podcertificaterequests", Subresource: "status", Name: "r1"}, false, "nodes may not access the status subresource of PodCertificateRequests"},
		{"deleting its request", at{Verb: "delete", APIGroup: "certificates.k8s.io", Namespace: "a", Resource: "podcertificaterequests", Name: "r1"}, false, "nodes may not delete podcertificaterequests"},
		{"its lease", at{Verb: "update", APIGroup: "coordination.k8s.io", Namespace: "kube-node-lease", Resource: "leases", Name: "n1"}, true, ""},
		{"another's lease", at{Verb: "update", APIGroup: "coordination.k8s.io", Namespace: "kube-node-lease", Resource: "leases", Name: "n2"}, false, "can only access node lease with the same name as the requesting node"},
		{"a lease elsewhere", at{Verb: "get", APIGroup: "coordination.k8s.io", Namespace: "kube-system", Resource: "leases", Name: "n1"}, false, `can only access leases in the "kube-node-lease" system namespace`},
		{"all leases", at{Verb: "list", APIGroup: "coordination.k8s.io", Namespace: "kube-node-lease", Resource: "leases"}, false, "can only get, create, update, patch, or delete a node lease"},
		{"its CSINode", at{Verb: "patch", APIGroup: "storage.k8s.io", Resource: "csinodes", Name: "n1"}, true, ""},
		{"its node", at{Verb: "get", Resource: "nodes", Name: "n1"}, true, ""},
		{"another node", at{Verb: "get", Resource: "nodes", Name: "n2"}, false, "node 'n1' cannot read 'n2', only its own Node object"},
		{"all nodes", at{Verb: "list", Resource: "nodes"}, false, "node 'n1' cannot read all nodes, only its own Node object"},
		{"its node's status", at{Verb: "patch", Resource: "nodes", Subresource: "status", Name: "n1"}, true, ""},
		{"deleting nodes", at{Verb: "delete", Resource: "nodes", Name: "n1"}, false, ""},
		{"its pods", at{Verb: "watch", Resource: "pods", FieldSelector: onNode("n1")}, true, ""},
		{"another's pods", at{Verb: "watch", Resource: "pods", FieldSelector: onNode("n2")}, false, "can only list/watch pods with spec.nodeName field selector"},
		{"all pods", at{Verb: "list", Resource: "pods"}, false, "can only list/watch pods with spec.nodeName field selector"},
		{"one pod", at{Verb: "get", Namespace: "a", Resource: "pods", Name: "web"}, true, ""},
		{"its mirror pod", at{Verb: "get", Namespace: "a", Resource: "pods", Name: "static-n1"}, true, ""},
		{"another's pod", at{Verb: "get", Namespace: "a", Resource: "pods", Name: "other"}, false, unrelated},
		{"exec", at{Verb: "create", Namespace: "a", Resource: "pods", Subresource: "exec", Name: "web"}, false, ""},
		{"eviction", at{Verb: "create", Namespace: "a", Resource: "pods", Subresource: "eviction", Name: "web"}, true, ""},
		{"events", at{Verb: "create", Namespace: "a", Resource: "events"}, true, ""},
		{"services", at{Verb: "list", Resource: "services"}, true, ""},
		{"access reviews", at{Verb: "create", APIGroup: "authorization.k8s.io", Resource: "subjectaccessreviews"}, true, ""},
		{"deployments", at{Verb: "list", APIGroup: "apps", Resource: "deployments"}, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.a.User, c.a.ResourceRequest = n1, true
			d, reason, err := z.Authorize(context.Background(), c.a)
			if (d == auth.Allow) != c.allow || d == auth.Deny || reason != c.reason || err != nil {
				t.Fatalf("got %v %q %v", d, reason, err)
			}
		})
	}
}

func TestWhoIsANode(t *testing.T) {
	z := New(world(), nil)
	for _, c := range []struct {
		user   auth.User
		reason string
	}{
		{auth.User{Name: "system:node:n1"}, ""},
		{auth.User{Name: "n1", Groups: []string{auth.GroupNodes}}, ""},
		{auth.User{Name: "system:node:", Groups: []string{auth.GroupNodes}}, `unknown node for user "system:node:"`},
	} {
		d, reason, _ := z.Authorize(context.Background(), auth.Attributes{User: c.user, Verb: "get", ResourceRequest: true, Resource: "nodes", Name: "n1"})
		if d != auth.NoOpinion || reason != c.reason {
			t.Errorf("%+v: %v %q", c.user, d, reason)
		}
	}
}

// Package node is the Node authorizer: a kubelet may read what its own pods
// need, and nothing else. It answers from the pods bound to the node at the
// time of the request, so there is no graph to keep in step.
package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/rbac"
)

// Reader reads the objects the decisions rest on. Results are shared and are
// not changed.
type Reader interface {
	// PodsOnNode returns all pods with this spec.nodeName.
	PodsOnNode(node string) ([]*corev1.Pod, error)
	// Get returns one object in its stored version, or an error.
	Get(group, resource, namespace, name string) (runtime.Object, error)
}

// Authorizer implements auth.Authorizer for kubelets. It only ever allows or
// has no opinion.
type Authorizer struct {
	reader Reader
	rules  []rbacv1.PolicyRule
}

// New returns an authorizer reading through reader. rules are what all nodes
// alike may do (policy.NodeRules).
func New(reader Reader, rules []rbacv1.PolicyRule) *Authorizer {
	return &Authorizer{reader: reader, rules: rules}
}

// Name returns the name of the node a user is, and false when it is not a
// node: nodes are system:node:<name> in group system:nodes.
func Name(u auth.User) (string, bool) {
	name, ok := strings.CutPrefix(u.Name, "system:node:")
	if !ok || !slices.Contains(u.Groups, auth.GroupNodes) {
		return "", false
	}
	return name, true
}

// Authorize implements auth.Authorizer.
func (z *Authorizer) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	node, ok := Name(a.User)
	if !ok {
		return auth.NoOpinion, "", nil
	}
	if node == "" {
		return auth.NoOpinion, fmt.Sprintf("unknown node for user %q", a.User.Name), nil
	}
	allowed, reason := z.decide(node, a)
	if allowed {
		return auth.Allow, "", nil
	}
	return auth.NoOpinion, reason, nil
}

func (z *Authorizer) decide(node string, a auth.Attributes) (bool, string) {
	if a.ResourceRequest {
		switch a.APIGroup + "/" + a.Resource {
		case "/secrets":
			return z.readNamed(node, a, z.podUsesSecret)
		case "/configmaps":
			return z.readNamed(node, a, podUsesConfigMap)
		case "/persistentvolumeclaims":
			return z.claim(node, a)
		case "/persistentvolumes":
			return z.getRelated(node, a, z.volumeOnNode)
		case "/serviceaccounts":
			return z.serviceAccount(node, a)
		case "/nodes":
			return nodeObject(node, a)
		case "/pods":
			return z.pod(node, a)
		case "coordination.k8s.io/leases":
			return lease(node, a)
		case "storage.k8s.io/csinodes":
			return csiNode(node, a)
		case "storage.k8s.io/volumeattachments":
			return z.getRelated(node, a, z.attachmentOnNode)
		case "resource.k8s.io/resourceclaims":
			return z.getRelated(node, a, z.anyPod(podUsesResourceClaim))
		case "resource.k8s.io/resourceslices":
			return z.slice(node, a)
		case "certificates.k8s.io/podcertificaterequests":
			return z.podCertificate(node, a)
		}
	}
	return rbac.RulesAllow(z.rules, a), ""
}

// related reports whether the object a names belongs to node.
type related func(node string, a auth.Attributes) bool

// uses reports whether a pod needs the object a names; the namespaces are the
// caller's to compare unless the object may live elsewhere.
type uses func(pod *corev1.Pod, a auth.Attributes) bool

func (z *Authorizer) anyPod(match uses) related {
	return func(node string, a auth.Attributes) bool {
		pods, err := z.reader.PodsOnNode(node)
		if err != nil {
			return false
		}
		return slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
			// A node makes its own mirror pods, so these may grant nothing.
			_, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]
			return !mirror && match(p, a)
		})
	}
}

func (z *Authorizer) check(node string, a auth.Attributes, rel related) (bool, string) {
	if a.Name == "" {
		return false, "No Object name found"
	}
	if !rel(node, a) {
		return false, fmt.Sprintf("no relationship found between node '%s' and this object", node)
	}
	return true, ""
}

func (z *Authorizer) getRelated(node string, a auth.Attributes, rel related) (bool, string) {
	if a.Verb != "get" {
		return false, "can only get individual resources of this type"
	}
	if a.Subresource != "" {
		return false, "cannot get subresource"
	}
	return z.check(node, a, rel)
}

func (z *Authorizer) readNamed(node string, a auth.Attributes, match uses) (bool, string) {
	switch {
	case a.Verb != "get" && a.Verb != "list" && a.Verb != "watch":
		return false, "can only read resources of this type"
	case a.Subresource != "":
		return false, "cannot read subresource"
	case a.Namespace == "":
		return false, "can only read namespaced object of this type"
	}
	return z.check(node, a, z.anyPod(match))
}

func (z *Authorizer) claim(node string, a auth.Attributes) (bool, string) {
	if a.Subresource != "status" {
		return z.getRelated(node, a, z.anyPod(podUsesClaim))
	}
	if a.Verb != "update" && a.Verb != "patch" {
		return false, "can only get/update/patch this type"
	}
	return z.check(node, a, z.anyPod(podUsesClaim))
}

func (z *Authorizer) serviceAccount(node string, a auth.Attributes) (bool, string) {
	uses := func(p *corev1.Pod, a auth.Attributes) bool {
		return p.Namespace == a.Namespace && p.Spec.ServiceAccountName == a.Name
	}
	switch {
	case a.Verb == "get" && a.Subresource == "":
		return z.readNamed(node, a, uses)
	case a.Verb != "create" || a.Name == "":
		return false, "can only create tokens for individual service accounts"
	case a.Subresource != "token":
		return false, "can only create token subresource of serviceaccount"
	}
	return z.check(node, a, z.anyPod(uses))
}

func lease(node string, a auth.Attributes) (bool, string) {
	switch a.Verb {
	case "get", "create", "update", "patch", "delete":
	default:
		return false, "can only get, create, update, patch, or delete a node lease"
	}
	if a.Namespace != corev1.NamespaceNodeLease {
		return false, fmt.Sprintf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	// The name is not known on create: admission checks it then.
	if a.Verb != "create" && a.Name != node {
		return false, "can only access node lease with the same name as the requesting node"
	}
	return true, ""
}

func csiNode(node string, a auth.Attributes) (bool, string) {
	if a.Subresource != "" {
		return false, "cannot authorize CSINode subresources"
	}
	switch a.Verb {
	case "get", "create", "update", "patch", "delete":
	default:
		return false, "can only get, create, update, patch, or delete a CSINode"
	}
	if a.Verb != "create" && a.Name != node {
		return false, "can only access CSINode with the same name as the requesting node"
	}
	return true, ""
}

func (z *Authorizer) slice(node string, a auth.Attributes) (bool, string) {
	if a.Subresource != "" {
		return false, "cannot authorize ResourceSlice subresources"
	}
	switch a.Verb {
	case "create": // admission checks the node name inside
		return true, ""
	case "get", "update", "patch", "delete":
		return z.check(node, a, func(node string, a auth.Attributes) bool {
			obj, err := z.reader.Get(a.APIGroup, a.Resource, "", a.Name)
			s, ok := obj.(*resourcev1.ResourceSlice)
			return err == nil && ok && s.Spec.NodeName != nil && *s.Spec.NodeName == node
		})
	case "watch", "list", "deletecollection":
		return selects(a, "spec.nodeName", node), "can only list/watch/deletecollection resourceslices with nodeName field selector"
	}
	return false, "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection"
}

// podCertificate: what is created is kept to the node's own pods by the NodeRestriction plugin.
func (z *Authorizer) podCertificate(node string, a auth.Attributes) (bool, string) {
	if a.Subresource != "" {
		return false, "nodes may not access the status subresource of PodCertificateRequests"
	}
	switch a.Verb {
	case "create":
		return true, ""
	case "get":
		return z.check(node, a, func(node string, a auth.Attributes) bool {
			obj, err := z.reader.Get(a.APIGroup, a.Resource, a.Namespace, a.Name)
			r, ok := obj.(*certificatesv1.PodCertificateRequest)
			return err == nil && ok && string(r.Spec.NodeName) == node
		})
	case "list", "watch":
		return selects(a, "spec.nodeName", node), "can only list/watch podcertificaterequests with nodeName field selector"
	}
	return false, fmt.Sprintf("nodes may not %s podcertificaterequests", a.Verb)
}

func nodeObject(node string, a auth.Attributes) (bool, string) {
	switch a.Subresource {
	case "":
		switch a.Verb {
		case "create", "update", "patch": // admission keeps it to its own object
			return true, ""
		case "get", "list", "watch":
			switch a.Name {
			case node:
				return true, ""
			case "":
				return false, fmt.Sprintf("node '%s' cannot read all nodes, only its own Node object", node)
			default:
				return false, fmt.Sprintf("node '%s' cannot read '%s', only its own Node object", node, a.Name)
			}
		}
	case "status":
		return a.Verb == "update" || a.Verb == "patch", ""
	}
	return false, ""
}

// pod: writes are kept to the node's own pods by the NodeRestriction plugin.
func (z *Authorizer) pod(node string, a auth.Attributes) (bool, string) {
	switch a.Subresource {
	case "":
		switch a.Verb {
		case "get":
			return z.check(node, a, z.podOnNode)
		case "list", "watch":
			if selects(a, "spec.nodeName", node) {
				return true, ""
			}
			if a.Name != "" {
				return z.check(node, a, z.podOnNode)
			}
			return false, "can only list/watch pods with spec.nodeName field selector"
		case "create", "delete":
			return true, ""
		}
	case "status":
		return a.Verb == "update" || a.Verb == "patch", ""
	case "eviction":
		return a.Verb == "create", ""
	}
	return false, ""
}

func selects(a auth.Attributes, field, value string) bool {
	for _, r := range a.FieldSelector {
		if r.Field == field && r.Value == value && (r.Operator == selection.Equals || r.Operator == selection.DoubleEquals) {
			return true
		}
	}
	return false
}

func (z *Authorizer) podOnNode(node string, a auth.Attributes) bool {
	obj, err := z.reader.Get("", "pods", a.Namespace, a.Name)
	pod, ok := obj.(*corev1.Pod)
	return err == nil && ok && pod.Spec.NodeName == node
}

func (z *Authorizer) attachmentOnNode(node string, a auth.Attributes) bool {
	obj, err := z.reader.Get(storagev1.GroupName, "volumeattachments", "", a.Name)
	va, ok := obj.(*storagev1.VolumeAttachment)
	return err == nil && ok && va.Spec.NodeName == node
}

func (z *Authorizer) volumeOnNode(node string, a auth.Attributes) bool {
	obj, err := z.reader.Get("", "persistentvolumes", "", a.Name)
	pv, ok := obj.(*corev1.PersistentVolume)
	if err != nil || !ok || pv.Spec.ClaimRef == nil {
		return false
	}
	return z.anyPod(podUsesClaim)(node, auth.Attributes{Namespace: pv.Spec.ClaimRef.Namespace, Name: pv.Spec.ClaimRef.Name})
}

package admission

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	kubeletapis "k8s.io/kubelet/pkg/apis"
	"k8s.io/utils/ptr"

	"github.com/skiff-project/skiff/auth"
	"github.com/skiff-project/skiff/auth/node"
)

// nodeRestriction keeps a kubelet's writes to its own node and pods. What it
// may read is the Node authorizer's business.
type nodeRestriction struct {
	noValidate
	read       reader
	authorizer auth.Authorizer // may be nil
}

func (nodeRestriction) Name() string { return "NodeRestriction" }

func (p nodeRestriction) Admit(ctx context.Context, r *Request) error {
	name, ok := node.Name(r.User)
	if !ok {
		return nil
	}
	if name == "" {
		return forbidden(r, fmt.Errorf("could not determine node from user %q", r.User.Name))
	}
	if r.Operation() == Connect {
		return nil
	}
	switch r.APIGroup + "/" + r.Resource {
	case "/pods":
		switch r.Subresource {
		case "":
			return p.pod(name, r)
		case "status":
			return p.podStatus(name, r)
		case "eviction":
			return p.eviction(name, r)
		}
		return forbidden(r, fmt.Errorf("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", r.Subresource))
	case "/nodes":
		return p.node(name, r)
	case "/persistentvolumeclaims":
		if r.Subresource != "status" {
			return forbidden(r, errors.New("may only update PVC status"))
		}
		return claimStatus(name, r)
	case "/serviceaccounts":
		return p.token(ctx, name, r)
	case coordinationv1.GroupName + "/leases":
		return nodeLease(name, r)
	case storagev1.GroupName + "/csinodes":
		if n := r.name(); n != name {
			return forbidden(r, errors.New("can only access CSINode with the same name as the requesting node"))
		}
	case resourcev1.GroupName + "/resourceslices":
		return nodeSlice(name, r)
	case certificatesv1.GroupName + "/certificatesigningrequests":
		return nodeRequest(name, r)
	case certificatesv1.GroupName + "/podcertificaterequests":
		return p.podCertificate(ctx, name, r)
	}
	return nil
}

func (p nodeRestriction) pod(name string, r *Request) error {
	switch r.Operation() {
	case Create:
		return p.mirrorPod(name, r)
	case Delete:
		pod, err := get[*corev1.Pod](p.read, "", "pods", r.Namespace, r.Name)
		if err != nil {
			return err
		}
		if pod.Spec.NodeName != name {
			return forbidden(r, fmt.Errorf("node %q can only delete pods with spec.nodeName set to itself", name))
		}
		return nil
	}
	return forbidden(r, fmt.Errorf("unexpected operation %q, node %q can only create and delete mirror pods", r.Operation(), name))
}

func (p nodeRestriction) mirrorPod(name string, r *Request) error {
	pod, ok := r.Object.(*corev1.Pod)
	if !ok {
		return forbidden(r, fmt.Errorf("unexpected type %T", r.Object))
	}
	if !isMirror(pod) {
		return forbidden(r, fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, name))
	}
	if pod.Spec.NodeName != name {
		return forbidden(r, fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", name))
	}
	if len(pod.OwnerReferences) > 1 {
		return forbidden(r, fmt.Errorf("node %q can only create pods with a single owner reference set to itself", name))
	}
	if len(pod.OwnerReferences) == 0 || pod.OwnerReferences[0].APIVersion != "v1" || pod.OwnerReferences[0].Kind != "Node" || pod.OwnerReferences[0].Name != name {
		return forbidden(r, fmt.Errorf("node %q can only create pods with an owner reference set to itself", name))
	}
	owner := pod.OwnerReferences[0]
	if !ptr.Deref(owner.Controller, false) {
		return forbidden(r, fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", name))
	}
	if ptr.Deref(owner.BlockOwnerDeletion, false) {
		return forbidden(r, fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", name))
	}
	n, err := get[*corev1.Node](p.read, "", "nodes", "", name)
	if apierrors.IsNotFound(err) {
		return err
	}
	if err != nil {
		return forbidden(r, fmt.Errorf("error looking up node %s to verify uid: %w", name, err))
	}
	if owner.UID != n.UID {
		return forbidden(r, fmt.Errorf("node %s UID mismatch: expected %s got %s", name, owner.UID, n.UID))
	}
	what, err := node.PodReference(pod)
	if err != nil {
		return forbidden(r, fmt.Errorf("error checking mirror pod for API references: %w", err))
	}
	if what != "" {
		return forbidden(r, fmt.Errorf("node %q can not create pods that reference %s", name, what))
	}
	return nil
}

func (p nodeRestriction) podStatus(name string, r *Request) error {
	old, ok := r.Old.(*corev1.Pod)
	pod, ok2 := r.Object.(*corev1.Pod)
	if r.Operation() != Update || !ok || !ok2 {
		return forbidden(r, fmt.Errorf("unexpected operation %q", r.Operation()))
	}
	if old.Spec.NodeName != name {
		return forbidden(r, fmt.Errorf("node %q can only update pod status for pods with spec.nodeName set to itself", name))
	}
	if !labels.Equals(old.Labels, pod.Labels) {
		return forbidden(r, fmt.Errorf("node %q cannot update labels through pod status", name))
	}
	if !equality.Semantic.DeepEqual(old.Status.ResourceClaimStatuses, pod.Status.ResourceClaimStatuses) {
		return forbidden(r, fmt.Errorf("node %q cannot update resource claim statues", name))
	}
	if !equality.Semantic.DeepEqual(old.Status.ExtendedResourceClaimStatus, pod.Status.ExtendedResourceClaimStatus) {
		return forbidden(r, fmt.Errorf("node %q cannot update extended resource claim status", name))
	}
	if !equality.Semantic.DeepEqual(old.Status.NodeAllocatableResourceClaimStatuses, pod.Status.NodeAllocatableResourceClaimStatuses) {
		return forbidden(r, fmt.Errorf("node %q cannot update node allocatable resource claim statuses", name))
	}
	return nil
}

func (p nodeRestriction) eviction(name string, r *Request) error {
	if r.Operation() != Create {
		return forbidden(r, fmt.Errorf("unexpected operation %s", r.Operation()))
	}
	podName := r.name()
	if podName == "" {
		return forbidden(r, errors.New("could not determine pod from request data"))
	}
	pod, err := get[*corev1.Pod](p.read, "", "pods", r.Namespace, podName)
	if err != nil {
		return err
	}
	if pod.Spec.NodeName != name {
		return forbidden(r, fmt.Errorf("node %s can only evict pods with spec.nodeName set to itself", name))
	}
	return nil
}

func (p nodeRestriction) node(name string, r *Request) error {
	if have := r.name(); have != name {
		return forbidden(r, fmt.Errorf("node %q is not allowed to modify node %q", name, have))
	}
	n, ok := r.Object.(*corev1.Node)
	if !ok {
		return nil
	}
	old, ok := r.Old.(*corev1.Node)
	if !ok {
		//lint:ignore SA1019 the field is dead, but must not be set either
		if n.Spec.ConfigSource != nil {
			return forbidden(r, fmt.Errorf("node %q is not allowed to create pods with a non-nil configSource", name))
		}
		if bad := forbiddenLabels(n.Labels, nil); len(bad) > 0 {
			return forbidden(r, fmt.Errorf("node %q is not allowed to set the following labels: %s", name, strings.Join(bad, ", ")))
		}
		return nil
	}
	//lint:ignore SA1019 the field is dead, but must not be set either
	if n.Spec.ConfigSource != nil && !equality.Semantic.DeepEqual(n.Spec.ConfigSource, old.Spec.ConfigSource) {
		return forbidden(r, fmt.Errorf("node %q is not allowed to update configSource to a new non-nil configSource", name))
	}
	if !equality.Semantic.DeepEqual(n.Spec.Taints, old.Spec.Taints) {
		return forbidden(r, fmt.Errorf("node %q is not allowed to modify taints", name))
	}
	if !equality.Semantic.DeepEqual(n.OwnerReferences, old.OwnerReferences) {
		return forbidden(r, fmt.Errorf("node %q is not allowed to modify ownerReferences", name))
	}
	if bad := forbiddenLabels(n.Labels, old.Labels); len(bad) > 0 {
		return forbidden(r, fmt.Errorf("is not allowed to modify labels: %s", strings.Join(bad, ", ")))
	}
	return nil
}

// forbiddenLabels lists the changed labels a node may not set on itself: with
// them it could draw workloads to itself.
func forbiddenLabels(a, b map[string]string) []string {
	bad := sets.New[string]()
	for _, pair := range [][2]map[string]string{{a, b}, {b, a}} {
		for key, v := range pair[0] {
			if other, ok := pair[1][key]; ok && other == v {
				continue
			}
			prefix, _, ok := strings.Cut(key, "/")
			if !ok {
				continue
			}
			under := func(domain string) bool { return prefix == domain || strings.HasSuffix(prefix, "."+domain) }
			if under(corev1.LabelNamespaceNodeRestriction) || (under("kubernetes.io") || under("k8s.io")) && !kubeletapis.IsKubeletLabel(key) {
				bad.Insert(key)
			}
		}
	}
	return sets.List(bad)
}

func claimStatus(name string, r *Request) error {
	old, ok := r.Old.(*corev1.PersistentVolumeClaim)
	pvc, ok2 := r.Object.(*corev1.PersistentVolumeClaim)
	if r.Operation() != Update || !ok || !ok2 {
		return forbidden(r, fmt.Errorf("unexpected operation %q", r.Operation()))
	}
	rest := func(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
		c = c.DeepCopy()
		c.ResourceVersion, c.ManagedFields = "", nil
		c.Status.Capacity, c.Status.Conditions = nil, nil
		c.Status.AllocatedResources, c.Status.AllocatedResourceStatuses = nil, nil
		return c
	}
	if !equality.Semantic.DeepEqual(rest(old), rest(pvc)) {
		return forbidden(r, fmt.Errorf("node %q is not allowed to update fields other than status.quantity and status.conditions", name))
	}
	return nil
}

// token: a kubelet asks for tokens on behalf of its own pods only, and only
// for audiences these pods name.
func (p nodeRestriction) token(ctx context.Context, name string, r *Request) error {
	tr, ok := r.Object.(*authenticationv1.TokenRequest)
	if !ok || r.Subresource != "token" || r.Operation() != Create {
		return nil
	}
	ref := tr.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return forbidden(r, errors.New("node requested token not bound to a pod"))
	}
	if ref.UID == "" {
		return forbidden(r, errors.New("node requested token with a pod binding without a uid"))
	}
	pod, err := get[*corev1.Pod](p.read, "", "pods", r.Namespace, ref.Name)
	if err != nil {
		return err
	}
	if ref.UID != pod.UID {
		return forbidden(r, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	if pod.Spec.NodeName != name {
		return forbidden(r, errors.New("node requested token bound to a pod scheduled on a different node"))
	}
	return p.audience(ctx, r, tr, pod)
}

func (p nodeRestriction) audience(ctx context.Context, r *Request, tr *authenticationv1.TokenRequest, pod *corev1.Pod) error {
	audience := ""
	switch len(tr.Spec.Audiences) {
	case 0:
	case 1:
		audience = tr.Spec.Audiences[0]
	default:
		return forbidden(r, errors.New("node may only request 0 or 1 audiences"))
	}
	if slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return p.volumeAsks(pod, v, audience) }) {
		return nil
	}
	if p.authorizer != nil && userMay(ctx, p.authorizer, auth.Attributes{
		User: r.User, Verb: "request-serviceaccounts-token-audience", APIGroup: r.APIGroup, APIVersion: r.APIVersion,
		Resource: audience, Namespace: r.Namespace, Name: r.Name, ResourceRequest: true,
	}) {
		return nil
	}
	return forbidden(r, fmt.Errorf("%s is not authorized to request tokens for audience %q", r.User.Name, audience))
}

// volumeAsks reports whether a volume of a pod needs a token for audience:
// because it projects one, or because its CSI driver wants one.
func (p nodeRestriction) volumeAsks(pod *corev1.Pod, v corev1.Volume, audience string) bool {
	driver := ""
	switch {
	case v.Projected != nil:
		return slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
			return s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience
		})
	case v.CSI != nil:
		driver = v.CSI.Driver
	case v.PersistentVolumeClaim != nil:
		driver = p.claimDriver(pod.Namespace, v.PersistentVolumeClaim.ClaimName)
	case v.Ephemeral != nil:
		driver = p.claimDriver(pod.Namespace, pod.Name+"-"+v.Name)
	}
	if driver == "" {
		return false
	}
	d, err := get[*storagev1.CSIDriver](p.read, storagev1.GroupName, "csidrivers", "", driver)
	return err == nil && slices.ContainsFunc(d.Spec.TokenRequests, func(t storagev1.TokenRequest) bool { return t.Audience == audience })
}

func (p nodeRestriction) claimDriver(namespace, claim string) string {
	pvc, err := get[*corev1.PersistentVolumeClaim](p.read, "", "persistentvolumeclaims", namespace, claim)
	if err != nil {
		return ""
	}
	pv, err := get[*corev1.PersistentVolume](p.read, "", "persistentvolumes", "", pvc.Spec.VolumeName)
	if err != nil || pv.Spec.CSI == nil {
		return ""
	}
	return pv.Spec.CSI.Driver
}

// nodeSlice: the authorizer sees the content neither of what is created nor
// of each object of a deletecollection.
func nodeSlice(name string, r *Request) error {
	op, obj := r.Operation(), r.Object
	switch op {
	case Create:
	case Delete:
		obj = r.Old
	default:
		return nil
	}
	slice, ok := obj.(*resourcev1.ResourceSlice)
	if !ok {
		return forbidden(r, fmt.Errorf("unexpected type %T", obj))
	}
	if slice.Spec.NodeName == nil || *slice.Spec.NodeName != name {
		return forbidden(r, fmt.Errorf("can only %s ResourceSlice with the same NodeName as the requesting node", strings.ToLower(string(op))))
	}
	return nil
}

func nodeLease(name string, r *Request) error {
	if r.Namespace != corev1.NamespaceNodeLease {
		return forbidden(r, fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease))
	}
	if r.name() != name {
		return forbidden(r, errors.New("can only access node lease with the same name as the requesting node"))
	}
	return nil
}

// nodeRequest: a kubelet asks for certificates in its own name only.
func nodeRequest(name string, r *Request) error {
	csr, ok := r.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || r.Operation() != Create || r.Subresource != "" {
		return nil
	}
	if csr.Spec.SignerName != certificatesv1.KubeletServingSignerName && csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	parsed, err := parseCSR(csr.Spec.Request)
	if err != nil {
		return forbidden(r, fmt.Errorf("unable to parse csr: %w", err))
	}
	if want := "system:node:" + name; parsed.Subject.CommonName != want {
		return forbidden(r, fmt.Errorf("can only create a node CSR with CN=%s", want))
	}
	return nil
}

// podCertificate: a kubelet asks for certificates of its own pods only, with their true identity,
// and of signers they name.
func (p nodeRestriction) podCertificate(ctx context.Context, name string, r *Request) error {
	if r.Operation() != Create {
		return forbidden(r, fmt.Errorf("unexpected operation %v", r.Operation()))
	}
	if r.Subresource != "" {
		return forbidden(r, fmt.Errorf("unexpected subresource %v", r.Subresource))
	}
	req, ok := r.Object.(*certificatesv1.PodCertificateRequest)
	if !ok {
		return forbidden(r, fmt.Errorf("unexpected type %T", r.Object))
	}
	s, full := &req.Spec, r.Namespace+"/"+req.Spec.PodName
	if string(s.NodeName) != name {
		return forbidden(r, fmt.Errorf("PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", s.NodeName, name))
	}
	found := func(err error, what, name string) error {
		if err = fmt.Errorf("while retrieving %s %q named in the PodCertificateRequest: %w", what, name, err); apierrors.IsNotFound(err) {
			return notYet(err)
		}
		return forbidden(r, err)
	}
	n, err := get[*corev1.Node](p.read, "", "nodes", "", name)
	if err != nil {
		return found(err, "node", name)
	}
	if n.UID != s.NodeUID {
		return notYet(fmt.Errorf("PodCertificateRequest for pod %q names node UID %q, inconsistent with the running node (%q)", full, s.NodeUID, n.UID))
	}
	pod, err := get[*corev1.Pod](p.read, "", "pods", r.Namespace, s.PodName)
	if err != nil {
		return found(err, "pod", full)
	}
	switch {
	case pod.UID != s.PodUID:
		return notYet(fmt.Errorf("PodCertificateRequest for pod %q contains pod UID (%q) which differs from running pod %q", full, s.PodUID, pod.UID))
	case pod.Spec.NodeName != name:
		return forbidden(r, fmt.Errorf("pod %q is not running on node %q named in the PodCertificateRequest", full, name))
	case isMirror(pod):
		return forbidden(r, fmt.Errorf("pod %q is a mirror pod", full))
	case pod.Spec.ServiceAccountName != s.ServiceAccountName:
		return forbidden(r, fmt.Errorf("PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)",
			full, s.ServiceAccountName, pod.Spec.ServiceAccountName))
	}
	sa, err := get[*corev1.ServiceAccount](p.read, "", "serviceaccounts", r.Namespace, s.ServiceAccountName)
	if err != nil {
		return found(err, "service account", r.Namespace+"/"+s.ServiceAccountName)
	}
	if sa.UID != s.ServiceAccountUID {
		return notYet(fmt.Errorf("PodCertificateRequest for pod %q names service account UID %q, which differs from the running service account (%q)",
			full, s.ServiceAccountUID, sa.UID))
	}
	return p.podSigner(ctx, r, pod, s)
}

// notYet is the answer where what is wrong may be right a moment later, as with upstream's caches:
// not a refusal, but upstream's 500.
func notYet(err error) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
		Reason: metav1.StatusReasonUnknown, Message: err.Error()}}
}

func (p nodeRestriction) podSigner(ctx context.Context, r *Request, pod *corev1.Pod, s *certificatesv1.PodCertificateRequestSpec) error {
	if slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(src corev1.VolumeProjection) bool {
			return src.PodCertificate != nil && src.PodCertificate.SignerName == s.SignerName
		})
	}) {
		return nil
	}
	// RBAC knows no resource with a slash: it is written as in names of ClusterTrustBundles.
	if p.authorizer != nil && userMay(ctx, p.authorizer, auth.Attributes{
		User: r.User, Verb: "request-serviceaccounts-podcertificate-signer", APIGroup: r.APIGroup, APIVersion: r.APIVersion,
		Resource: strings.ReplaceAll(s.SignerName, "/", ":"), Namespace: r.Namespace, Name: s.ServiceAccountName, ResourceRequest: true,
	}) {
		return nil
	}
	return forbidden(r, fmt.Errorf("pod %q does not mount a podCertificate projected volume for signer %q", r.Namespace+"/"+s.PodName, s.SignerName))
}

package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"

	coordv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/kubelet/node"
)

// kickNode asks for the node's status to be looked at now.
func (k *Kubelet) kickNode() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// nodeState is what runNode remembers between rounds.
type nodeState struct {
	sent     time.Time
	events   v1.NodeStatus // whose changes were told as events
	images   []v1.ContainerImage
	imagesAt time.Time
	runtime  string
	handlers []v1.NodeRuntimeHandler
	groups   *bool
	podCIDRs string // the node's, that the runtime was told
}

// imagesEvery is how often the node's image list is read when nothing was pulled.
const imagesEvery = time.Minute

// runNode registers the node and keeps its status up to date.
func (k *Kubelet) runNode(ctx context.Context) {
	st := &nodeState{}
	wait, soon := 100*time.Millisecond, 10*time.Millisecond
	for {
		err := k.syncNode(ctx, st)
		if ctx.Err() != nil {
			return
		}
		d := k.cfg.StatusPeriod
		switch ready := k.ready.Load() == nil; {
		case err != nil:
			k.cfg.Log.Warn("cannot report the node's status; it is tried again", "err", err)
			d = wait
			wait = min(wait*2, 7*time.Second)
		case !ready:
			// A start is ready within milliseconds of its first look, or not for long.
			d, wait, soon = min(d, soon), 100*time.Millisecond, min(2*soon, 250*time.Millisecond)
		default:
			wait, soon = 100*time.Millisecond, 10*time.Millisecond
		}
		t := k.cfg.Clock.NewTimer(d)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C():
		case <-k.kick:
			st.imagesAt = time.Time{}
		}
		t.Stop()
	}
}

func (k *Kubelet) port() int32 {
	_, port, err := net.SplitHostPort(k.cfg.ServerAddr)
	if err != nil {
		return 10250
	}
	n, _ := strconv.Atoi(port)
	return int32(n)
}

// syncNode looks at the machine and the runtime once and tells the API what changed.
func (k *Kubelet) syncNode(ctx context.Context, st *nodeState) error {
	facts, err := node.Read(k.cfg.RootDir)
	if err != nil {
		return err
	}
	k.tellPodCIDRs(ctx, st)
	wasReady := k.ready.Load() == nil
	problems := k.checkRuntime(ctx, st)
	if len(problems) == 0 && !wasReady {
		for _, w := range k.allWorkers() {
			w.renewVolumes() // what failed for want of a runtime or network is tried again now
		}
	}
	now := k.cfg.Clock.Now()
	if now.Sub(st.imagesAt) >= imagesEvery {
		if images, err := k.listImages(ctx); err == nil {
			st.images, st.imagesAt = images, now
		}
	}
	in := node.Input{Facts: facts, Name: k.cfg.NodeName, IPs: k.cfg.NodeIPs, MaxPods: k.cfg.MaxPods, Port: k.port(),
		Version: k.cfg.Version, Runtime: st.runtime, Images: st.images, Handlers: st.handlers, GroupsPolicy: st.groups,
		Problems: problems, Eviction: k.cfg.Eviction, Now: now}
	have := k.node.Load()
	if have == nil {
		if have, err = k.register(ctx, in); err != nil {
			return err
		}
		k.node.Store(have)
		k.spawn(func() { k.reconcileMirrors(ctx) })
	}
	want := node.Status(in, have.Status)
	if !node.Same(have.Status, want) || now.Sub(st.sent) >= k.cfg.StatusReport {
		got, err := k.patchNode(ctx, have, want)
		if apierrors.IsNotFound(err) {
			k.node.Store(nil)
			return fmt.Errorf("the node object is gone; it is registered again: %w", err)
		}
		if err != nil {
			return fmt.Errorf("patch node status: %w", err)
		}
		st.sent = now
		k.node.Store(got)
		want = got.Status
	}
	for _, reason := range node.Events(st.events, want) {
		k.recorder.Event(k.nodeRef(), v1.EventTypeNormal, reason, node.EventMessage(k.cfg.NodeName, reason))
	}
	st.events = want
	return nil
}

// tellPodCIDRs tells the runtime which addresses this node's pods get. It asks
// the informer: k.node may be what an answer older than the last event said.
func (k *Kubelet) tellPodCIDRs(ctx context.Context, st *nodeState) {
	obj, _, _ := k.nodes.GetStore().GetByKey(k.cfg.NodeName)
	have, ok := obj.(*v1.Node)
	if !ok {
		return
	}
	ranges := strings.Join(have.Spec.PodCIDRs, ",")
	if ranges == "" || ranges == st.podCIDRs {
		return
	}
	err := k.cfg.Runtime.UpdateRuntimeConfig(ctx, &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: ranges}})
	if err != nil {
		k.cfg.Log.Warn("the container runtime does not take the node's pod range; it is told again", "range", ranges, "err", err)
		return
	}
	st.podCIDRs = ranges
}

// checkRuntime asks the runtime how it is; the answers are why the node is not ready.
func (k *Kubelet) checkRuntime(ctx context.Context, st *nodeState) (problems []string) {
	defer func() {
		if len(problems) == 0 {
			k.ready.Store(nil)
		} else {
			k.ready.Store(&problems[0])
		}
	}()
	if st.runtime == "" {
		v, err := k.cfg.Runtime.Version(ctx, "")
		if err != nil {
			return []string{"container runtime is down"}
		}
		st.runtime = v.RuntimeName + "://" + v.RuntimeVersion
	}
	res, err := k.cfg.Runtime.Status(ctx, false)
	if err != nil {
		return []string{"container runtime status check may not have completed yet"}
	}
	seen := map[string]*runtimeapi.RuntimeCondition{}
	for _, c := range res.GetStatus().GetConditions() {
		seen[c.Type] = c
	}
	describe := func(c *runtimeapi.RuntimeCondition, typ string) string {
		if c == nil {
			return typ + "=false reason: message:"
		}
		return fmt.Sprintf("%s=%t reason:%s message:%s", typ, c.Status, c.Reason, c.Message)
	}
	if c := seen[runtimeapi.NetworkReady]; c == nil || !c.Status {
		problems = append(problems, "container runtime network not ready: "+describe(c, runtimeapi.NetworkReady))
	}
	if c := seen[runtimeapi.RuntimeReady]; c == nil || !c.Status {
		problems = append(problems, "container runtime not ready: "+describe(c, runtimeapi.RuntimeReady))
	}
	st.handlers = nil
	for _, h := range res.GetRuntimeHandlers() {
		rro, userns := h.GetFeatures().GetRecursiveReadOnlyMounts(), h.GetFeatures().GetUserNamespaces()
		st.handlers = append(st.handlers, v1.NodeRuntimeHandler{Name: h.Name,
			Features: &v1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &rro, UserNamespaces: &userns}})
		if h.Name == "" {
			k.rro.Store(rro)
		}
	}
	groups := res.GetFeatures().GetSupplementalGroupsPolicy()
	st.groups = &groups
	return problems
}

func (k *Kubelet) listImages(ctx context.Context) ([]v1.ContainerImage, error) {
	list, err := k.cfg.Images.ListImages(ctx, nil)
	if err != nil {
		return nil, err
	}
	out := make([]v1.ContainerImage, 0, len(list))
	for _, i := range list {
		names := append(append([]string{}, i.RepoDigests...), i.RepoTags...)
		if len(names) > 0 {
			out = append(out, v1.ContainerImage{Names: names, SizeBytes: int64(i.Size)})
		}
	}
	return out, nil
}

// register makes the Node, or takes over the one that is there, whose default labels it corrects.
func (k *Kubelet) register(ctx context.Context, in node.Input) (*v1.Node, error) {
	api := k.cfg.Client.CoreV1().Nodes()
	labels := node.Labels(k.cfg.NodeName, in.Facts.OS, in.Facts.Arch)
	maps.Copy(labels, k.cfg.NodeLabels)
	obj := node.Object(k.cfg.NodeName, labels, k.cfg.RegisterWithTaints, node.Status(in, v1.NodeStatus{}))
	obj.Spec.ProviderID = k.cfg.ProviderID
	got, err := api.Create(ctx, obj, metav1.CreateOptions{})
	if err == nil {
		return got, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("register node %s: %w", k.cfg.NodeName, err)
	}
	have, err := api.Get(ctx, k.cfg.NodeName, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", k.cfg.NodeName, err)
	}
	want := have.DeepCopy()
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	maps.Copy(want.Labels, labels)
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	maps.Copy(want.Annotations, obj.Annotations)
	if maps.Equal(want.Labels, have.Labels) && maps.Equal(want.Annotations, have.Annotations) {
		return have, nil
	}
	data, err := nodePatch(have, want)
	if err != nil {
		return nil, err
	}
	got, err = api.Patch(ctx, have.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{})
	if err != nil {
		return nil, fmt.Errorf("label node %s: %w", k.cfg.NodeName, err)
	}
	return got, nil
}

func nodePatch(from, to *v1.Node) ([]byte, error) {
	a, err := json.Marshal(from)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(to)
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(a, b, v1.Node{})
}

func (k *Kubelet) patchNode(ctx context.Context, have *v1.Node, want v1.NodeStatus) (*v1.Node, error) {
	to := have.DeepCopy()
	to.Status = want
	data, err := nodePatch(have, to)
	if err != nil {
		return nil, err
	}
	if len(want.Addresses) > 0 && !sameAddresses(have.Status.Addresses, want.Addresses) {
		// Two addresses of one type cannot be told apart by the patch's merge key: replace the list.
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			return nil, err
		}
		st, _ := m["status"].(map[string]any)
		if st == nil {
			st = map[string]any{}
			m["status"] = st
		}
		list := []any{}
		for _, a := range want.Addresses {
			list = append(list, map[string]any{"type": a.Type, "address": a.Address})
		}
		st["addresses"] = append(list, map[string]any{"$patch": "replace"})
		delete(st, "$setElementOrder/addresses")
		if data, err = json.Marshal(m); err != nil {
			return nil, err
		}
	}
	return k.cfg.Client.CoreV1().Nodes().Patch(ctx, have.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
}

func sameAddresses(a, b []v1.NodeAddress) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// runLease renews the node's lease: the sign of life the control plane goes by.
func (k *Kubelet) runLease(ctx context.Context) {
	every := time.Duration(k.cfg.LeaseSeconds) * time.Second / 4
	var have *coordv1.Lease
	wait := 200 * time.Millisecond
	for {
		next, err := k.renewLease(ctx, have)
		have = next
		d := every
		if err != nil && ctx.Err() == nil {
			k.cfg.Log.Debug("cannot renew the node's lease; it is tried again", "err", err)
			d = wait
			wait = min(wait*2, 7*time.Second)
		} else {
			wait = 200 * time.Millisecond
		}
		if !k.sleep(ctx, d) {
			return
		}
	}
}

func (k *Kubelet) renewLease(ctx context.Context, have *coordv1.Lease) (*coordv1.Lease, error) {
	api := k.cfg.Client.CoordinationV1().Leases(v1.NamespaceNodeLease)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.cfg.LeaseSeconds)*time.Second/4)
	defer cancel()
	var err error
	if have == nil {
		have, err = api.Get(ctx, k.cfg.NodeName, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		if apierrors.IsNotFound(err) {
			have = nil
		}
	}
	lease := &coordv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: k.cfg.NodeName, Namespace: v1.NamespaceNodeLease}}
	if have != nil {
		lease = have.DeepCopy()
	}
	now := metav1.NewMicroTime(k.cfg.Clock.Now())
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &k.cfg.NodeName, &k.cfg.LeaseSeconds, &now
	n := k.node.Load()
	if n != nil && n.UID != "" && len(lease.OwnerReferences) == 0 {
		lease.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
	}
	if have == nil {
		if n == nil {
			return nil, fmt.Errorf("the node is not registered yet")
		}
		return api.Create(ctx, lease, metav1.CreateOptions{})
	}
	got, err := api.Update(ctx, lease, metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	return got, nil
}

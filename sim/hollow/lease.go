package hollow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// register makes every node and its lease, or takes over those of an earlier
// run.
func (k *Kubelets) register(ctx context.Context) error {
	return k.each(ctx, k.nodes, func(ctx context.Context, n *node) error {
		now := k.cfg.Clock.Now()
		nodes := k.cfg.Client.CoreV1().Nodes()
		obj, err := nodes.Create(ctx, k.cfg.object(n, now), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			obj, err = k.adopt(ctx, n)
		}
		if err != nil {
			return fmt.Errorf("register node %s: %w", n.name, err)
		}
		n.uid = obj.UID
		if err := k.renew(ctx, n); err != nil {
			return fmt.Errorf("lease of node %s: %w", n.name, err)
		}
		k.count.nodes.Add(1)
		n.registered.Store(true)
		return nil
	})
}

// adopt takes over a node that an earlier run of the same prefix registered;
// anyone else's is left alone.
func (k *Kubelets) adopt(ctx context.Context, n *node) (*corev1.Node, error) {
	obj, err := k.cfg.Client.CoreV1().Nodes().Get(ctx, n.name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if obj.Labels[LabelGroup] != k.cfg.Prefix {
		return nil, errors.New("a node of this name exists and is no simulated one; choose another prefix")
	}
	return obj, k.heartbeat(ctx, n)
}

// heartbeat reports the node's conditions.
func (k *Kubelets) heartbeat(ctx context.Context, n *node) error {
	list := conditions(k.cfg.Clock.Now())
	patch := make([]map[string]any, len(list))
	for i, c := range list { // not the transition time: only a change sets it
		patch[i] = map[string]any{
			"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message, "lastHeartbeatTime": c.LastHeartbeatTime,
		}
	}
	body, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": patch}})
	if err != nil {
		return err
	}
	_, err = k.cfg.Client.CoreV1().Nodes().Patch(ctx, n.name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	if err == nil {
		k.count.nodeWrites.Add(1)
	}
	return err
}

// slots is into how many parts an interval of renewals is cut: each part's
// nodes renew together.
const slots = 100

// renewLoop renews every lease once per interval, spread evenly. A turn that
// takes longer than its slot delays the next ones; nodes then renew late, as
// real ones on a slow API server.
func (k *Kubelets) renewLoop(ctx context.Context) {
	tick := k.cfg.Clock.NewTicker(max(k.cfg.LeaseInterval/slots, time.Millisecond))
	defer tick.Stop()
	reports := max(1, int(k.cfg.StatusInterval/k.cfg.LeaseInterval)) // every so many renewals the status too
	var due []*node
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
		due = due[:0]
		for i := turn % slots; i < len(k.nodes); i += slots {
			if k.nodes[i].registered.Load() {
				due = append(due, k.nodes[i])
			}
		}
		round := turn / slots
		_ = k.each(ctx, due, func(ctx context.Context, n *node) error {
			k.beat(ctx, n, round%reports == reports-1)
			return nil // the next turn tries again
		})
	}
}

// beat renews one lease and, when it is due or the node may have been given
// up meanwhile, reports the status.
func (k *Kubelets) beat(ctx context.Context, n *node, report bool) {
	behind := time.Duration(0)
	if n.lease != nil {
		behind = k.cfg.Clock.Since(n.lease.Spec.RenewTime.Time)
	}
	if behind > 2*k.cfg.LeaseInterval {
		k.count.late.Add(1)
	}
	err := k.renew(ctx, n)
	if err == nil && (report || behind > leaseSeconds*time.Second) {
		err = k.heartbeat(ctx, n)
	}
	if err != nil && ctx.Err() == nil {
		k.count.failed.Add(1)
		k.cfg.Log.Debug("heartbeat", "node", n.name, "err", err)
	}
}

// renew writes the lease from what is known of it; when that has become
// wrong, the next turn starts from what is stored.
func (k *Kubelets) renew(ctx context.Context, n *node) error {
	leases := k.cfg.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now := k.cfg.Clock.Now()
	var err error
	if n.lease == nil {
		fresh := n.newLease(now)
		fresh.Labels = map[string]string{LabelGroup: k.cfg.Prefix}
		if n.lease, err = leases.Create(ctx, fresh, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
			return k.renewed(n, err)
		}
		if n.lease, err = leases.Get(ctx, n.name, metav1.GetOptions{}); err != nil {
			return k.renewed(n, err)
		}
		n.lease.OwnerReferences = fresh.OwnerReferences
	}
	n.lease.Spec.RenewTime = &metav1.MicroTime{Time: now}
	n.lease, err = leases.Update(ctx, n.lease, metav1.UpdateOptions{})
	return k.renewed(n, err)
}

func (k *Kubelets) renewed(n *node, err error) error {
	if err != nil {
		n.lease = nil
		return err
	}
	n.lease.ManagedFields = nil // absent leaves them as they are
	k.count.renewals.Add(1)
	return nil
}

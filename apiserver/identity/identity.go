// Package identity is how an API server shows itself in the API: a Lease of its own in kube-system, and the
// ConfigMap that says since when it notes the use of legacy tokens, with the notes. Names, values and order are upstream's.
package identity

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"log/slog"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/wait"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
)

const (
	label = "apiserver.kubernetes.io/identity"
	value = "kube-apiserver"
	// seconds a Lease counts after its last renewal
	seconds = 3600
	// renewal among servers that share a store, with up to 4 % more so that they do not meet.
	renewal = 10 * time.Second
	// aloneRenewal is where there is nobody to tell that this server lives: renewed in good time before it
	// expires, the Lease costs an idle cluster's disk 0.1 MB an hour instead of 6.
	aloneRenewal = 10 * time.Minute
	// upkeep is how often expired Leases of others are deleted and the ConfigMap is made again if it is gone.
	upkeep  = 30 * time.Minute
	goodbye = 10 * time.Second // to delete the Lease at the end
)

// Config makes a Server's identity.
type Config struct {
	Client   *rest.Config // an administrator's
	Hostname string       // two servers of one name share a Lease
	Peers    string       // address and port for other servers; "": unknown
	Shared   bool         // other servers may be at work on the same store
	Clock    clock.WithTicker
	Log      *slog.Logger
}

// Identity is a server's.
type Identity struct {
	Config
	leases coordination.LeaseInterface
	core   core.CoreV1Interface
	name   string
	holder string
	latest *coordinationv1.Lease // as last written; nil: unknown
}

// New returns an identity that is not shown yet.
func New(c Config) (*Identity, error) {
	i := &Identity{Config: c, name: Name(c.Hostname)}
	i.holder = i.name + "_" + string(uuid.NewUUID())
	leases, err := coordination.NewForConfig(c.Client)
	if err != nil {
		return nil, err
	}
	i.leases = leases.Leases(metav1.NamespaceSystem)
	i.core, err = core.NewForConfig(c.Client)
	return i, err
}

// Name is the Lease's: the same for each start of a host's API server.
func Name(hostname string) string {
	var b []byte
	for _, s := range []string{hostname, value} {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
	}
	sum := sha256.Sum256(b)
	return "apiserver-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// Run shows the identity until ctx ends, and then takes it away. What cannot be written is tried again.
func (i *Identity) Run(ctx context.Context) {
	i.remove(ctx) // of a server that did not end as it should
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbye)
		defer cancel()
		i.remove(ctx)
	}()
	every := aloneRenewal
	if i.Shared {
		every = renewal
	}
	for next := i.Clock.Now(); ctx.Err() == nil; {
		if err := i.renew(ctx); err != nil && ctx.Err() == nil {
			i.Log.Warn("the API server's own Lease cannot be renewed; it is tried again", "lease", i.name, "error", err)
		}
		if now := i.Clock.Now(); !now.Before(next) {
			next = now.Add(upkeep)
			if err := errors.Join(i.collect(ctx), i.track(ctx)); err != nil && ctx.Err() == nil {
				i.Log.Warn("upkeep of API servers' Leases and of "+trackingName, "error", err)
			}
		}
		pause := every
		if i.latest == nil {
			pause = renewal
		}
		select {
		case <-ctx.Done():
		case <-i.Clock.After(wait.Jitter(pause, 0.04)):
		}
	}
}

func (i *Identity) remove(ctx context.Context) {
	if err := i.leases.Delete(ctx, i.name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		i.Log.Debug("the API server's own Lease cannot be deleted", "lease", i.name, "error", err)
	}
}

// renew writes over what was written last; what others made of it meanwhile is read first.
func (i *Identity) renew(ctx context.Context) (err error) {
	if i.latest != nil {
		if i.latest, err = i.leases.Update(ctx, i.lease(i.latest), metav1.UpdateOptions{}); err == nil {
			return nil
		}
		i.latest = nil
	}
	have, err := i.leases.Get(ctx, i.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		have, err = i.leases.Create(ctx, i.lease(nil), metav1.CreateOptions{})
	case err == nil:
		have, err = i.leases.Update(ctx, i.lease(have), metav1.UpdateOptions{})
	}
	if err == nil {
		i.latest = have
	}
	return err
}

// lease is have, or a new one, renewed now.
func (i *Identity) lease(have *coordinationv1.Lease) *coordinationv1.Lease {
	l := have.DeepCopy()
	if l == nil {
		l = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: i.name, Namespace: metav1.NamespaceSystem}}
		l.Spec.HolderIdentity = &i.holder
	}
	length, now := int32(seconds), metav1.NewMicroTime(i.Clock.Now())
	l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &length, &now
	if l.Labels == nil {
		l.Labels = map[string]string{}
	}
	l.Labels[label], l.Labels[corev1.LabelHostname] = value, i.Hostname
	if i.Peers != "" {
		if l.Annotations == nil {
			l.Annotations = map[string]string{}
		}
		l.Annotations[corev1.AnnotationPeerAdvertiseAddress] = i.Peers
	}
	return l
}

// collect deletes the Leases of servers that are gone.
func (i *Identity) collect(ctx context.Context) error {
	all, err := i.leases.List(ctx, metav1.ListOptions{LabelSelector: label + "=" + value})
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range all.Items {
		if !expired(&l, i.Clock.Now()) {
			continue
		}
		err := i.leases.Delete(ctx, l.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &l.ResourceVersion}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// expired tells of a Lease that nobody renews; one that says not when it was renewed, or for how long, is nobody's.
func expired(l *coordinationv1.Lease, now time.Time) bool {
	s := &l.Spec
	return s.RenewTime == nil || s.LeaseDurationSeconds == nil || s.RenewTime.Add(time.Duration(*s.LeaseDurationSeconds)*time.Second).Before(now)
}

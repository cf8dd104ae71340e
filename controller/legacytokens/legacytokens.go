// Package legacytokens takes service account tokens away that were made for an account by an old controller manager, are
// in a Secret, and were not used for long: they are marked invalid first, and deleted when nobody missed them.
package legacytokens

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"

	"github.com/skiff-project/skiff/auth/node"
	"github.com/skiff-project/skiff/controller/engine"
)

// DefaultPeriod is how long tokens are kept after their last use, and again after they were marked.
const DefaultPeriod = 365 * 24 * time.Hour

const (
	every        = 24 * time.Hour // between two looks
	notTracked   = time.Minute    // until the next look where API servers do not note uses yet
	lastUsed     = "kubernetes.io/legacy-token-last-used"
	invalidSince = "kubernetes.io/legacy-token-invalid-since"
	tracking     = "kube-apiserver-legacy-service-account-token-tracking" // the ConfigMap that says since when
	all          = "all"
)

type cleaner struct {
	env      engine.Env
	reads    kubernetes.Interface
	period   time.Duration
	secrets  listers.SecretLister
	accounts listers.ServiceAccountLister
}

// New returns the cleaner. reads is who lists pods, which takes a permission that the controller's own account does not
// have: the shared cache knows nothing of environments. A period of 0 is DefaultPeriod.
func New(env engine.Env, reads kubernetes.Interface, period time.Duration) (*engine.Controller, error) {
	if period == 0 {
		period = DefaultPeriod
	}
	if period < 0 {
		return nil, fmt.Errorf("invalid CleanUpPeriod: %v", period)
	}
	core := env.Informers.Core().V1()
	c := &cleaner{env: env, reads: reads, period: period, secrets: core.Secrets().Lister(), accounts: core.ServiceAccounts().Lister()}
	return &engine.Controller{
		Name:    "legacy-serviceaccount-token-cleaner-controller",
		Outputs: []engine.Resource{"secrets"},
		Workers: 1,
		Sources: []engine.Source{
			engine.Reads("secrets", core.Secrets().Informer()), engine.Reads("serviceaccounts", core.ServiceAccounts().Informer()),
		},
		Background: func(ctx context.Context, q engine.Queue) error {
			q.Add(all)
			<-ctx.Done()
			return nil
		},
		Reconcile: func(ctx context.Context, _ string) error { return c.look(ctx) },
	}, nil
}

// look looks at all tokens, once uses were noted for a whole period, and asks to be called again.
func (c *cleaner) look(ctx context.Context) error {
	since, err := c.trackedSince(ctx)
	if apierrors.IsNotFound(err) {
		return engine.Later(notTracked)
	}
	if err != nil {
		return err
	}
	now := c.env.Clock.Now().UTC()
	if now.Before(since.Add(c.period)) {
		return engine.Later(every)
	}
	secrets, err := c.secrets.List(labels.Everything())
	if err != nil {
		return err
	}
	inUse := map[string][]string{} // by namespace: Secrets that pods refer to
	for _, s := range secrets {
		if !c.unused(s, now) {
			continue
		}
		names, ok := inUse[s.Namespace]
		if !ok {
			if names, err = c.podSecrets(ctx, s.Namespace); err != nil {
				return err
			}
			inUse[s.Namespace] = names
		}
		if slices.Contains(names, s.Name) {
			continue
		}
		if err := c.clean(ctx, s, now); err != nil {
			c.env.Log.Error("an unused legacy token cannot be taken away; it is tried again in a day", "secret", s.Namespace+"/"+s.Name, "error", err)
		}
	}
	return engine.Later(every)
}

// trackedSince is the first whole day whose uses were noted.
func (c *cleaner) trackedSince(ctx context.Context) (time.Time, error) {
	cm, err := c.env.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, tracking, metav1.GetOptions{})
	if err != nil {
		return time.Time{}, err
	}
	day, err := time.Parse(time.DateOnly, cm.Data["since"])
	if err != nil {
		return time.Time{}, fmt.Errorf("config map kube-system/%s does not say since when: %w", tracking, err)
	}
	return day.AddDate(0, 0, 1), nil
}

// unused tells of a token that was made for its account and not used for a period.
func (c *cleaner) unused(s *corev1.Secret, now time.Time) bool {
	oldest := now.Add(-c.period)
	if s.Type != corev1.SecretTypeServiceAccountToken || s.DeletionTimestamp != nil || !s.CreationTimestamp.Time.Before(oldest) {
		return false
	}
	if day, ok := s.Labels[lastUsed]; ok {
		if _, err := time.Parse(time.DateOnly, day); err != nil || day >= oldest.Format(time.DateOnly) {
			return false
		}
	}
	sa, err := c.accounts.ServiceAccounts(s.Namespace).Get(s.Annotations[corev1.ServiceAccountNameKey])
	if err != nil {
		return false // nobody's, which is another controller's business
	}
	if uid := s.Annotations[corev1.ServiceAccountUIDKey]; uid != "" && uid != string(sa.UID) {
		return false
	}
	return slices.ContainsFunc(sa.Secrets, func(r corev1.ObjectReference) bool { return r.Name == s.Name })
}

// podSecrets are the Secrets that pods of a namespace refer to.
func (c *cleaner) podSecrets(ctx context.Context, namespace string) ([]string, error) {
	pods, err := c.reads.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for i := range pods.Items {
		names = append(names, node.PodSecrets(&pods.Items[i])...)
	}
	return names, nil
}

// clean marks a token, or deletes one that was marked a period ago.
func (c *cleaner) clean(ctx context.Context, s *corev1.Secret, now time.Time) error {
	api := c.env.Client.CoreV1().Secrets(s.Namespace)
	if _, err := time.Parse(time.DateOnly, s.Labels[invalidSince]); err != nil {
		c.env.Log.Info("an unused token that was made for its service account is marked invalid", "secret", s.Namespace+"/"+s.Name)
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": s.UID, "labels": map[string]string{invalidSince: now.Format(time.DateOnly)}}})
		if err != nil {
			return err
		}
		_, err = api.Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}
	if s.Labels[invalidSince] >= now.Add(-c.period).Format(time.DateOnly) {
		return nil
	}
	c.env.Log.Info("a token that is invalid and unused is deleted", "secret", s.Namespace+"/"+s.Name, "lastUsed", s.Labels[lastUsed], "invalidSince", s.Labels[invalidSince])
	err := api.Delete(ctx, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &s.ResourceVersion}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// Package tokens serves the older, secret-based service account tokens: it fills secrets of type
// kubernetes.io/service-account-token with token, CA and namespace, and deletes them when their
// service account is gone. New Pods use bound tokens and need none of this.
package tokens

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// Sign makes a legacy token (no expiry, no audience) for a service account and a secret of its
// namespace: the private claims are namespace, service account name and UID, and secret name.
type Sign func(ctx context.Context, sa *corev1.ServiceAccount, secret *corev1.Secret) (string, error)

type controller struct {
	env      engine.Env
	sign     Sign
	ca       []byte
	secrets  listers.SecretLister
	accounts listers.ServiceAccountLister
}

// New returns the token controller. With a nil sign, secrets get everything but the token.
func New(env engine.Env, sign Sign, ca []byte) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	c := &controller{env: env, sign: sign, ca: ca,
		secrets: core.Secrets().Lister(), accounts: core.ServiceAccounts().Lister()}
	return &engine.Controller{
		Name:    "serviceaccount-token-controller",
		Outputs: []engine.Resource{"secrets", "serviceaccounts"},
		Sources: []engine.Source{
			engine.On("secrets", core.Secrets().Informer(), c.secretChanged),
			engine.On("serviceaccounts", core.ServiceAccounts().Informer(), c.accountChanged),
		},
		Reconcile: c.reconcile,
	}, nil
}

func isToken(s *corev1.Secret) bool {
	return s != nil && s.Type == corev1.SecretTypeServiceAccountToken && s.Annotations[corev1.ServiceAccountNameKey] != ""
}

func (c *controller) secretChanged(q engine.Queue, old, new *corev1.Secret) {
	switch {
	case isToken(new):
		q.Add(new.Namespace + "/" + new.Name)
	case new == nil && isToken(old):
		q.Add(old.Namespace + "/" + old.Name + "/" + old.Annotations[corev1.ServiceAccountNameKey])
	}
}

// accountChanged looks at the secrets of an account that came, went, or was replaced.
func (c *controller) accountChanged(q engine.Queue, old, new *corev1.ServiceAccount) {
	if old != nil && new != nil && old.UID == new.UID {
		return
	}
	sa := new
	if sa == nil {
		sa = old
	}
	all, err := c.secrets.Secrets(sa.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	for _, s := range all {
		if isToken(s) && s.Annotations[corev1.ServiceAccountNameKey] == sa.Name {
			q.Add(s.Namespace + "/" + s.Name)
		}
	}
}

// reconcile takes "namespace/secret", or "namespace/secret/account" for a secret that was deleted.
func (c *controller) reconcile(ctx context.Context, key string) error {
	ns, name := engine.SplitKey(key)
	name, account, _ := strings.Cut(name, "/")
	secret, err := c.secrets.Secrets(ns).Get(name)
	if apierrors.IsNotFound(err) {
		return c.unlink(ctx, ns, name, account)
	}
	if err != nil || !isToken(secret) || secret.DeletionTimestamp != nil {
		return err
	}
	sa, err := c.account(ctx, secret)
	if err != nil {
		return err
	}
	if sa == nil {
		err := c.env.Client.CoreV1().Secrets(ns).Delete(ctx, name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(secret.UID))})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	}
	return c.fill(ctx, sa, secret)
}

// account finds the secret's service account, asking the API server before saying there is none.
func (c *controller) account(ctx context.Context, secret *corev1.Secret) (*corev1.ServiceAccount, error) {
	name := secret.Annotations[corev1.ServiceAccountNameKey]
	uid := types.UID(secret.Annotations[corev1.ServiceAccountUIDKey])
	sa, err := c.accounts.ServiceAccounts(secret.Namespace).Get(name)
	if err == nil && (uid == "" || uid == sa.UID) {
		return sa, nil
	}
	sa, err = c.env.Client.CoreV1().ServiceAccounts(secret.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if uid != "" && uid != sa.UID {
		return nil, nil
	}
	return sa, nil
}

func (c *controller) fill(ctx context.Context, sa *corev1.ServiceAccount, secret *corev1.Secret) error {
	want := plan(sa, secret, c.ca)
	if len(want.Data[corev1.ServiceAccountTokenKey]) == 0 && c.sign != nil {
		token, err := c.sign(ctx, sa, secret)
		if err != nil {
			return fmt.Errorf("sign token for secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
		want.Data[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	if same(want, secret) {
		return nil
	}
	_, err := c.env.Client.CoreV1().Secrets(secret.Namespace).Update(ctx, want, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}

// plan returns the secret with everything but the token in place.
func plan(sa *corev1.ServiceAccount, secret *corev1.Secret, ca []byte) *corev1.Secret {
	want := secret.DeepCopy()
	if want.Data == nil {
		want.Data = map[string][]byte{}
	}
	if len(ca) > 0 {
		want.Data[corev1.ServiceAccountRootCAKey] = ca
	}
	if len(want.Data[corev1.ServiceAccountNamespaceKey]) == 0 {
		want.Data[corev1.ServiceAccountNamespaceKey] = []byte(secret.Namespace)
	}
	want.Annotations[corev1.ServiceAccountNameKey] = sa.Name
	want.Annotations[corev1.ServiceAccountUIDKey] = string(sa.UID)
	return want
}

func same(a, b *corev1.Secret) bool {
	if len(a.Data) != len(b.Data) || a.Annotations[corev1.ServiceAccountUIDKey] != b.Annotations[corev1.ServiceAccountUIDKey] {
		return false
	}
	for k, v := range a.Data {
		if !bytes.Equal(v, b.Data[k]) {
			return false
		}
	}
	return true
}

// unlink takes a deleted secret out of its service account's list.
func (c *controller) unlink(ctx context.Context, ns, secret, account string) error {
	if account == "" {
		return nil
	}
	sa, err := c.accounts.ServiceAccounts(ns).Get(account)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	want := sa.DeepCopy()
	want.Secrets = nil
	for _, ref := range sa.Secrets {
		if ref.Name != secret {
			want.Secrets = append(want.Secrets, ref)
		}
	}
	if len(want.Secrets) == len(sa.Secrets) {
		return nil
	}
	_, err = c.env.Client.CoreV1().ServiceAccounts(ns).Update(ctx, want, metav1.UpdateOptions{})
	return engine.IgnoreNotFound(err)
}

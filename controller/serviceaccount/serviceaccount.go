// Package serviceaccount makes sure that every active namespace has the service account "default".
package serviceaccount

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

const name = "default"

// New returns the service account controller.
func New(env engine.Env) (*engine.Controller, error) {
	core := env.Informers.Core().V1()
	namespaces, accounts := core.Namespaces().Lister(), core.ServiceAccounts().Lister()
	reconcile := func(ctx context.Context, key string) error {
		ns, err := namespaces.Get(key)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil || ns.Status.Phase == corev1.NamespaceTerminating || ns.DeletionTimestamp != nil {
			return err
		}
		if _, err := accounts.ServiceAccounts(key).Get(name); err == nil {
			return nil
		}
		sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: key}}
		_, err = env.Client.CoreV1().ServiceAccounts(key).Create(ctx, sa, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		return err
	}
	return &engine.Controller{
		Name:    "serviceaccount-controller",
		Outputs: []engine.Resource{"serviceaccounts"},
		Sources: []engine.Source{
			{Resource: "namespaces", Informer: core.Namespaces().Informer(), On: engine.Each},
			engine.On("serviceaccounts", core.ServiceAccounts().Informer(),
				func(q engine.Queue, old, new *corev1.ServiceAccount) {
					if new == nil && old.Name == name {
						q.Add(old.Namespace)
					}
				}),
		},
		Reconcile: reconcile,
	}, nil
}

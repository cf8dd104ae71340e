// Package rootca publishes the CA that signs the API server's certificate as the config map
// kube-root-ca.crt in every namespace, where Pods find it beside their token.
package rootca

import (
	"context"
	"errors"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// Name is the config map's name in every namespace.
const Name = "kube-root-ca.crt"

const (
	descriptionKey = "kubernetes.io/description"
	description    = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
		"No other usage is guaranteed across distributions of Kubernetes clusters."
)

// New returns the publisher of ca, a PEM bundle.
func New(env engine.Env, ca []byte) (*engine.Controller, error) {
	if len(ca) == 0 {
		return nil, errors.New("root CA publisher: no CA given; set RootCA or leave the controller out")
	}
	core := env.Informers.Core().V1()
	namespaces, maps := core.Namespaces().Lister(), core.ConfigMaps().Lister()
	reconcile := func(ctx context.Context, key string) error {
		ns, err := namespaces.Get(key)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil || ns.Status.Phase == corev1.NamespaceTerminating || ns.DeletionTimestamp != nil {
			return err
		}
		current, err := maps.ConfigMaps(key).Get(Name)
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		want := plan(key, current, string(ca))
		if want == nil {
			return nil
		}
		api := env.Client.CoreV1().ConfigMaps(key)
		if current == nil {
			_, err = api.Create(ctx, want, metav1.CreateOptions{})
		} else {
			_, err = api.Update(ctx, want, metav1.UpdateOptions{})
		}
		if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		return err
	}
	return &engine.Controller{
		Name:    "root-ca-certificate-publisher-controller",
		Outputs: []engine.Resource{"configmaps"},
		Sources: []engine.Source{
			{Resource: "namespaces", Informer: core.Namespaces().Informer(), On: engine.Each},
			engine.On("configmaps", core.ConfigMaps().Informer(), func(q engine.Queue, old, new *corev1.ConfigMap) {
				for _, cm := range []*corev1.ConfigMap{old, new} {
					if cm != nil && cm.Name == Name {
						q.Add(cm.Namespace)
					}
				}
			}),
		},
		Reconcile: reconcile,
	}, nil
}

// plan returns the config map as it should be, or nil if current is right.
func plan(ns string, current *corev1.ConfigMap, ca string) *corev1.ConfigMap {
	data := map[string]string{"ca.crt": ca}
	if current == nil {
		return &corev1.ConfigMap{Data: data, ObjectMeta: metav1.ObjectMeta{Name: Name, Namespace: ns,
			Annotations: map[string]string{descriptionKey: description}}}
	}
	if maps.Equal(current.Data, data) && current.Annotations[descriptionKey] != "" {
		return nil
	}
	want := current.DeepCopy()
	want.Data = data
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	want.Annotations[descriptionKey] = description
	return want
}

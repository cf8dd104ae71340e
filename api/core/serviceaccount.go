package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

func serviceAccountResource() *api.Resource {
	return &api.Resource{
		Name: "serviceaccounts", Singular: "serviceaccount", Kind: "ServiceAccount",
		ShortNames: []string{"sa"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[corev1.ServiceAccount, corev1.ServiceAccountList]("v1", nil)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(keepSecretNames),
			PrepareForUpdate: api.OnUpdate(func(a, _ *corev1.ServiceAccount) { keepSecretNames(a) }),
		},
		Subresources: []api.Subresource{
			{Name: "token", Verbs: []string{"create"}, Kind: "TokenRequest", Group: "authentication.k8s.io", Version: "v1"},
		},
		Columns: []metav1.TableColumnDefinition{api.AgeColumn()},
		Cells: api.Row(func(a *corev1.ServiceAccount, now metav1.Time) []any {
			return []any{a.Name, api.Age(a.CreationTimestamp, now)}
		}),
	}
}

// keepSecretNames leaves of the references to secrets what counts: their names.
func keepSecretNames(a *corev1.ServiceAccount) {
	for i := range a.Secrets {
		a.Secrets[i] = corev1.ObjectReference{Name: a.Secrets[i].Name}
	}
}

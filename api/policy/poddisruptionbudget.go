package policy

import (
	policyv1 "k8s.io/api/policy/v1"

	"github.com/skiff-project/skiff/api"
)

func podDisruptionBudgetResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "poddisruptionbudgets", Singular: "poddisruptionbudget", Kind: "PodDisruptionBudget",
		ShortNames:    []string{"pdb"},
		Namespaced:    true,
		Versions:      []api.Version{api.Versioned[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList]("v1", nil)},
		StoragePrefix: "poddisruptionbudgets",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}

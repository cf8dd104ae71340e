package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

func componentStatusResource() *api.Resource {
	v := api.Versioned[corev1.ComponentStatus, corev1.ComponentStatusList]("v1", nil)
	v.Deprecated = "v1 ComponentStatus is deprecated in v1.19+"
	return &api.Resource{
		Name: "componentstatuses", Singular: "componentstatus", Kind: "ComponentStatus",
		ShortNames: []string{"cs"},
		Versions:   []api.Version{v},
		Virtual:    true,
		Verbs:      []string{"get", "list"},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Status", "string", "Status of the component conditions"),
			api.Column("Message", "string", "Message of the component conditions"),
			api.Column("Error", "string", "Error of the component conditions"),
		},
		Cells: api.Row(func(c *corev1.ComponentStatus, _ metav1.Time) []any {
			for _, cond := range c.Conditions {
				if cond.Type != corev1.ComponentHealthy {
					continue
				}
				if cond.Status == corev1.ConditionTrue {
					return []any{c.Name, "Healthy", cond.Message, cond.Error}
				}
				return []any{c.Name, "Unhealthy", cond.Message, cond.Error}
			}
			return []any{c.Name, "Unknown", "", ""}
		}),
	}
}

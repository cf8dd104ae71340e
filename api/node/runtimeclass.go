package node

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func runtimeClassResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "runtimeclasses", Singular: "runtimeclass", Kind: "RuntimeClass",
		Versions: []api.Version{api.Versioned[nodev1.RuntimeClass, nodev1.RuntimeClassList]("v1", func(c *nodev1.RuntimeClass) {
			if c.Overhead != nil {
				podspec.RoundResources(c.Overhead.PodFixed)
			}
		})},
		Strategy: api.Strategy{
			Validate: api.Check(func(c *nodev1.RuntimeClass) field.ErrorList { return validate(c, content.IsDNS1123Label) }),
			ValidateUpdate: api.CheckUpdate(func(c, old *nodev1.RuntimeClass) field.ErrorList {
				l := &check.List{Errors: validate(c, validation.IsDNS1123Label)}
				l.Fixed(field.NewPath("handler"), c.Handler, old.Handler)
				return l.Errors
			}),
			AllowCreateOnUpdate:     true,
			DenyUnconditionalUpdate: true,
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Handler", "string", ""),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *nodev1.RuntimeClass, now metav1.Time) []any {
			return []any{c.Name, c.Handler, api.Age(c.CreationTimestamp, now)}
		}),
	}
}

// validate checks a class; name is the rule for its handler, whose words differ from create to update.
func validate(c *nodev1.RuntimeClass, name func(string) []string) field.ErrorList {
	l := &check.List{}
	if at := field.NewPath("handler"); c.Handler == "" {
		l.Required(at, "")
	} else {
		l.Messages(at, c.Handler, name(c.Handler))
	}
	if c.Overhead != nil {
		podspec.CheckOverhead(l, field.NewPath("overhead"), c.Overhead.PodFixed)
	}
	if s := c.Scheduling; s != nil {
		p := field.NewPath("scheduling")
		l.Labels(p.Child("nodeSelector"), s.NodeSelector)
		podspec.CheckTolerations(l, p.Child("tolerations"), s.Tolerations)
		seen := map[corev1.Toleration]bool{}
		for i, t := range s.Tolerations {
			key := t
			key.TolerationSeconds = nil
			if seen[key] {
				l.Duplicate(p.Child("tolerations").Index(i), t)
			}
			seen[key] = true
		}
	}
	return l.Errors
}

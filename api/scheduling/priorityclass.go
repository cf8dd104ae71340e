package scheduling

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// The priorities that are built in, and the highest a user may define.
const (
	SystemClusterCritical   = "system-cluster-critical"
	SystemNodeCritical      = "system-node-critical"
	systemPrefix            = "system-"
	highestUserPriority     = 1000000000
	clusterCriticalPriority = 2 * highestUserPriority
	nodeCriticalPriority    = clusterCriticalPriority + 1000
)

// SystemPriorities lists the built-in classes, as they are made at start.
func SystemPriorities() []*schedulingv1.PriorityClass {
	lower := corev1.PreemptLowerPriority
	return []*schedulingv1.PriorityClass{
		{
			ObjectMeta: metav1.ObjectMeta{Name: SystemNodeCritical}, Value: nodeCriticalPriority, PreemptionPolicy: &lower,
			Description: "Used for system critical pods that must not be moved from their current node.",
		},
		{
			ObjectMeta: metav1.ObjectMeta{Name: SystemClusterCritical}, Value: clusterCriticalPriority, PreemptionPolicy: &lower,
			Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
		},
	}
}

func priorityClassResource() *api.Resource {
	doc := schedulingv1.PriorityClass{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "priorityclasses", Singular: "priorityclass", Kind: "PriorityClass",
		ShortNames: []string{"pc"},
		Versions: []api.Version{api.Versioned[schedulingv1.PriorityClass, schedulingv1.PriorityClassList]("v1", func(c *schedulingv1.PriorityClass) {
			if c.PreemptionPolicy == nil {
				lower := corev1.PreemptLowerPriority
				c.PreemptionPolicy = &lower
			}
		})},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *schedulingv1.PriorityClass) { c.Generation = 1 }),
			Validate:         api.Check(validate),
			ValidateUpdate: api.CheckUpdate(func(c, old *schedulingv1.PriorityClass) field.ErrorList {
				l := &check.List{}
				if c.Value != old.Value {
					l.Forbidden(field.NewPath("value"), "may not be changed in an update.")
				}
				l.Immutable(field.NewPath("preemptionPolicy"), c.PreemptionPolicy, old.PreemptionPolicy)
				return l.Errors
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Value", "integer", doc["value"]),
			api.Column("Global-Default", "boolean", doc["globalDefault"]),
			api.AgeColumn(),
			api.Column("PreemptionPolicy", "string", doc["preemptionPolicy"]),
		},
		Cells: api.Row(func(c *schedulingv1.PriorityClass, now metav1.Time) []any {
			policy := ""
			if c.PreemptionPolicy != nil {
				policy = string(*c.PreemptionPolicy)
			}
			return []any{c.Name, int64(c.Value), c.GlobalDefault, api.Age(c.CreationTimestamp, now), policy}
		}),
	}
}

func validate(c *schedulingv1.PriorityClass) field.ErrorList {
	l := &check.List{}
	if strings.HasPrefix(c.Name, systemPrefix) {
		if err := checkSystem(c); err != nil {
			l.Forbidden(field.NewPath("metadata", "name"), "priority class names with '"+systemPrefix+"' prefix are reserved for system use only. error: "+err.Error())
		}
	} else if c.Value > highestUserPriority {
		l.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", highestUserPriority))
	}
	if c.PreemptionPolicy != nil {
		check.Choice(l, field.NewPath("preemptionPolicy"), *c.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	return l.Errors
}

func checkSystem(c *schedulingv1.PriorityClass) error {
	for _, s := range SystemPriorities() {
		switch {
		case c.Name != s.Name:
		case c.Value != s.Value:
			return fmt.Errorf("value of %v PriorityClass must be %v", s.Name, s.Value)
		case c.GlobalDefault:
			return fmt.Errorf("globalDefault of %v PriorityClass must be %v", s.Name, false)
		default:
			return nil
		}
	}
	return fmt.Errorf("%v is not a known system priority class", c.Name)
}

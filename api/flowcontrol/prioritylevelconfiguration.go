package flowcontrol

import (
	"fmt"
	"math"
	"slices"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func priorityLevelConfigurationResource() *api.Resource {
	limited, queuing := flowcontrolv1.LimitedPriorityLevelConfiguration{}.SwaggerDoc(), flowcontrolv1.QueuingConfiguration{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "prioritylevelconfigurations", Singular: "prioritylevelconfiguration", Kind: "PriorityLevelConfiguration",
		Versions: []api.Version{api.Versioned[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList]("v1", defaultPriorityLevel)},
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *flowcontrolv1.PriorityLevelConfiguration) {
				c.Status, c.Generation = flowcontrolv1.PriorityLevelConfigurationStatus{}, 1
			}),
			PrepareForUpdate: api.OnUpdate(func(c, old *flowcontrolv1.PriorityLevelConfiguration) {
				c.Status = old.Status
				api.BumpGeneration(c, old, api.Changed(c.Spec, old.Spec))
			}),
			Validate:       api.Check(validatePriorityLevel),
			ValidateUpdate: api.CheckUpdate(func(c, _ *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList { return validatePriorityLevel(c) }),
		},
		Subresources: []api.Subresource{api.StatusOnly(func(c, old *flowcontrolv1.PriorityLevelConfiguration) { c.Spec = old.Spec }, func(c, _ *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
			var types []flowcontrolv1.PriorityLevelConfigurationConditionType
			for _, condition := range c.Status.Conditions {
				types = append(types, condition.Type)
			}
			return checkConditions(types...)
		})},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Type", "string", flowcontrolv1.PriorityLevelConfigurationSpec{}.SwaggerDoc()["type"]),
			api.Column("NominalConcurrencyShares", "string", limited["nominalConcurrencyShares"]),
			api.Column("Queues", "string", queuing["queues"]),
			api.Column("HandSize", "string", queuing["handSize"]),
			api.Column("QueueLengthLimit", "string", queuing["queueLengthLimit"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *flowcontrolv1.PriorityLevelConfiguration, now metav1.Time) []any {
			row := []any{c.Name, string(c.Spec.Type), "<none>", "<none>", "<none>", "<none>", api.Age(c.CreationTimestamp, now)}
			if l := c.Spec.Limited; l != nil {
				row[2] = int32(0)
				if l.NominalConcurrencyShares != nil {
					row[2] = *l.NominalConcurrencyShares
				}
				if q := l.LimitResponse.Queuing; q != nil {
					row[3], row[4], row[5] = q.Queues, q.HandSize, q.QueueLengthLimit
				}
			}
			return row
		}),
	}
}

func defaultPriorityLevel(c *flowcontrolv1.PriorityLevelConfiguration) {
	if e := c.Spec.Exempt; e != nil {
		api.SetIfNil(&e.NominalConcurrencyShares, 0)
		api.SetIfNil(&e.LendablePercent, 0)
	}
	l := c.Spec.Limited
	if l == nil {
		return
	}
	api.SetIfNil(&l.NominalConcurrencyShares, 30)
	api.SetIfNil(&l.LendablePercent, 0)
	if q := l.LimitResponse.Queuing; q != nil {
		set := func(p *int32, v int32) {
			if *p == 0 {
				*p = v
			}
		}
		set(&q.HandSize, 8)
		set(&q.Queues, 64)
		set(&q.QueueLengthLimit, 50)
	}
}

func validatePriorityLevel(c *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	l, s := &check.List{}, &c.Spec
	exempt, limited := s.Type == flowcontrolv1.PriorityLevelEnablementExempt, s.Type == flowcontrolv1.PriorityLevelEnablementLimited
	if exempt != (c.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt) {
		l.Invalid(specPath.Child("type"), s.Type, "must be 'Exempt' if and only if `name` is 'exempt'")
	}
	check.Choice(l, specPath.Child("type"), s.Type, flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited)
	l.ForbidIf(specPath.Child("exempt"), !exempt && s.Exempt != nil, "")
	l.ForbidIf(specPath.Child("limited"), !limited && s.Limited != nil, "")
	if exempt && s.Exempt != nil {
		checkShares(l, specPath.Child("exempt"), s.Exempt.NominalConcurrencyShares, s.Exempt.LendablePercent)
	}
	if limited && s.Limited == nil {
		l.Required(specPath.Child("limited"), "")
	} else if limited {
		checkLimited(l, specPath.Child("limited"), s.Limited)
	}
	return l.Errors
}

func checkShares(l *check.List, p *field.Path, shares, lendable *int32) {
	if shares != nil && *shares < 0 {
		l.Invalid(p.Child("nominalConcurrencyShares"), *shares, "must be a non-negative integer")
	}
	if lendable != nil {
		l.Range(p.Child("lendablePercent"), int64(*lendable), 0, 100)
	}
}

// checkConditions wants conditions with types, each once.
func checkConditions[T ~string](types ...T) field.ErrorList {
	l, p := &check.List{}, field.NewPath("status", "conditions")
	for i, t := range types {
		l.Text(p.Index(i).Child("type"), string(t))
		if slices.Contains(types[:i], t) {
			l.Duplicate(p.Index(i).Child("type"), t)
		}
	}
	return l.Errors
}

func checkLimited(l *check.List, p *field.Path, s *flowcontrolv1.LimitedPriorityLevelConfiguration) {
	checkShares(l, p, s.NominalConcurrencyShares, s.LendablePercent)
	if n := s.BorrowingLimitPercent; n != nil && *n < 0 {
		l.Invalid(p.Child("borrowingLimitPercent"), *n, "if specified, must be a non-negative integer")
	}
	r, at := &s.LimitResponse, p.Child("limitResponse")
	check.Choice(l, at.Child("type"), r.Type, flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)
	q, p := r.Queuing, at.Child("queuing")
	if r.Type != flowcontrolv1.LimitResponseTypeQueue {
		l.ForbidIf(p, q != nil, "")
		return
	}
	if q == nil {
		l.Required(p, "")
		return
	}
	if q.QueueLengthLimit <= 0 {
		l.Invalid(p.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive")
	}
	if q.Queues <= 0 {
		l.Invalid(p.Child("queues"), q.Queues, "must be positive")
	}
	// A flow's hash has so many bits to deal a hand of queues with.
	const bits = 60
	if hand := p.Child("handSize"); q.HandSize <= 0 {
		l.Invalid(hand, q.HandSize, "must be positive")
	} else if q.HandSize > q.Queues {
		l.Invalid(hand, q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues))
	} else if math.Ceil(math.Log2(float64(q.Queues))*float64(q.HandSize)) > bits {
		l.Invalid(hand, q.HandSize, fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, bits))
	}
}

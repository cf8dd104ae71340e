package flowcontrol

import (
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
		Subresources: []api.Subresource{api.StatusView(func(c, old *flowcontrolv1.PriorityLevelConfiguration) { c.Spec = old.Spec }, nil)},
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
	switch s.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if s.Limited != nil {
			l.Forbidden(specPath.Child("limited"), "must be nil if the type is not Limited")
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if s.Exempt != nil {
			l.Forbidden(specPath.Child("exempt"), "must be nil if the type is Limited")
		}
		if s.Limited == nil {
			l.Required(specPath.Child("limited"), "must not be empty when type is Limited")
		} else {
			checkLimited(l, specPath.Child("limited"), s.Limited)
		}
	default:
		check.OneOf(l, specPath.Child("type"), s.Type, flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited)
	}
	return l.Errors
}

func checkLimited(l *check.List, p *field.Path, s *flowcontrolv1.LimitedPriorityLevelConfiguration) {
	if n := s.NominalConcurrencyShares; n != nil && *n < 0 {
		l.Invalid(p.Child("nominalConcurrencyShares"), *n, "must be a non-negative integer")
	}
	if n := s.LendablePercent; n != nil && (*n < 0 || *n > 100) {
		l.Invalid(p.Child("lendablePercent"), *n, "must be between 0 and 100, inclusive")
	}
	if n := s.BorrowingLimitPercent; n != nil && *n < 0 {
		l.Invalid(p.Child("borrowingLimitPercent"), *n, "if specified, must be a non-negative integer")
	}
	r, at := &s.LimitResponse, p.Child("limitResponse")
	switch r.Type {
	case flowcontrolv1.LimitResponseTypeReject:
		if r.Queuing != nil {
			l.Forbidden(at.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited")
		}
	case flowcontrolv1.LimitResponseTypeQueue:
		if r.Queuing == nil {
			l.Required(at.Child("queuing"), "must not be empty if limited.limitResponse.type is Limited")
			return
		}
		q, p := r.Queuing, at.Child("queuing")
		if q.QueueLengthLimit <= 0 {
			l.Invalid(p.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive")
		}
		if q.Queues <= 0 {
			l.Invalid(p.Child("queues"), q.Queues, "must be positive")
		}
		if q.HandSize <= 0 {
			l.Invalid(p.Child("handSize"), q.HandSize, "must be positive")
		} else if q.HandSize > q.Queues {
			l.Invalid(p.Child("handSize"), q.HandSize, "should not be greater than queues")
		}
	default:
		check.OneOf(l, at.Child("type"), r.Type, flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)
	}
}

// Package apiregistration describes APIServices: which server answers for a
// version of an API group, this one or an aggregated one behind a Service.
package apiregistration

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	v1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// Group and Name name the resource.
const (
	Group = "apiregistration.k8s.io"
	Name  = "apiservices"
)

// APIService is the served and stored type.
type APIService = v1.APIService

// Resources lists the group's resources.
func Resources() []*api.Resource {
	return []*api.Resource{{
		Group: Group, Name: Name, Singular: "apiservice", Kind: "APIService", Categories: []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[APIService, v1.APIServiceList]("v1", v1.SetObjectDefaults_APIService)},
		StoragePrefix: Group + "/" + Name,
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(s *APIService) {
				s.Status = v1.APIServiceStatus{}
				if s.Spec.Service == nil {
					SetAvailable(s, LocalAvailable(), s.CreationTimestamp.Time)
				}
			}),
			PrepareForUpdate: api.OnUpdate(func(s, old *APIService) { s.Status = old.Status }),
			// The name is checked with the rest: it depends on the specification.
			NameValid:               func(string, bool) []string { return nil },
			Validate:                api.Check(validate),
			ValidateUpdate:          api.CheckUpdate(func(s, _ *APIService) field.ErrorList { return validate(s) }),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusOnly(func(s, old *APIService) { s.Spec = old.Spec }, func(s, _ *APIService) field.ErrorList {
			l := &check.List{}
			for i, c := range s.Status.Conditions {
				check.OneOf(l, field.NewPath("status", "conditions").Index(i).Child("status"), c.Status, v1.ConditionTrue, v1.ConditionFalse, v1.ConditionUnknown)
			}
			return l.Errors
		})},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Service", "string", "The reference to the service that hosts this API endpoint."),
			api.Column("Available", "string", "Whether this service is available."),
			api.AgeColumn(),
		},
		Cells: api.Row(func(s *APIService, now metav1.Time) []any {
			service, available := "Local", string(v1.ConditionUnknown)
			if r := s.Spec.Service; r != nil {
				service = r.Namespace + "/" + r.Name
			}
			if c := Condition(s); c != nil {
				available = string(c.Status)
				if c.Status != v1.ConditionTrue && c.Reason != "" {
					available = fmt.Sprintf("%s (%s)", c.Status, c.Reason)
				}
			}
			return []any{s.Name, service, available, api.Age(s.CreationTimestamp, now)}
		}),
	}}
}

// Scheme knows the group's types.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypes(v1.SchemeGroupVersion, &APIService{}, &v1.APIServiceList{})
	return s
}

// Available is the condition of that type, without a time.
func Available(status v1.ConditionStatus, reason, message string) v1.APIServiceCondition {
	return v1.APIServiceCondition{Type: v1.Available, Status: status, Reason: reason, Message: message}
}

// LocalAvailable is the condition of what the server itself serves.
func LocalAvailable() v1.APIServiceCondition {
	return Available(v1.ConditionTrue, "Local", "Local APIServices are always available")
}

// IsAvailable tells whether requests may be sent there.
func IsAvailable(s *APIService) bool {
	c := Condition(s)
	return c != nil && c.Status == v1.ConditionTrue
}

// SetAvailable puts c into the status; its time moves only with its status.
func SetAvailable(s *APIService, c v1.APIServiceCondition, now time.Time) {
	have := Condition(s)
	if have == nil {
		s.Status.Conditions = append(s.Status.Conditions, v1.APIServiceCondition{})
		have = &s.Status.Conditions[len(s.Status.Conditions)-1]
	}
	c.LastTransitionTime = have.LastTransitionTime
	if have.Status != c.Status {
		c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	}
	*have = c
}

// Condition is the one of type Available, nil where there is none.
func Condition(s *APIService) *v1.APIServiceCondition {
	for i := range s.Status.Conditions {
		if s.Status.Conditions[i].Type == v1.Available {
			return &s.Status.Conditions[i]
		}
	}
	return nil
}

func validate(s *APIService) field.ErrorList {
	l, spec, at := &check.List{}, &s.Spec, field.NewPath("spec")
	l.Names(s, func(name string) []string {
		msgs := content.IsPathSegmentName(name)
		if want := spec.Version + "." + spec.Group; len(msgs) == 0 && name != want {
			msgs = []string{fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", want)}
		}
		return msgs
	})
	if spec.Group == "" && spec.Version != "v1" {
		l.Required(at.Child("group"), "only v1 may have an empty group and it better be legacy kube")
	}
	if spec.Group != "" {
		l.Subdomain(at.Child("group"), spec.Group)
	}
	l.Messages(at.Child("version"), spec.Version, validation.IsDNS1035Label(spec.Version))
	if p := spec.GroupPriorityMinimum; p <= 0 || p > 20000 {
		l.Invalid(at.Child("groupPriorityMinimum"), p, "must be positive and less than 20000")
	}
	if p := spec.VersionPriority; p <= 0 || p > 1000 {
		l.Invalid(at.Child("versionPriority"), p, "must be positive and less than 1000")
	}
	if spec.Service == nil {
		if n := len(spec.CABundle); n > 0 {
			l.Invalid(at.Child("caBundle"), fmt.Sprintf("%d bytes", n), "local APIServices may not have a caBundle")
		}
		if spec.InsecureSkipTLSVerify {
			l.Invalid(at.Child("insecureSkipTLSVerify"), true, "local APIServices may not have insecureSkipTLSVerify")
		}
		return l.Errors
	}
	for name, value := range check.Sorted(map[string]string{"namespace": spec.Service.Namespace, "name": spec.Service.Name}) {
		if value == "" {
			l.Required(at.Child("service", name), "")
		}
	}
	l.WebhookPort(at.Child("service", "port"), Port(spec.Service))
	if spec.InsecureSkipTLSVerify && len(spec.CABundle) > 0 {
		l.Invalid(at.Child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present")
	}
	return l.Errors
}

// Port of the Service: 443 unless it says otherwise.
func Port(r *v1.ServiceReference) int32 {
	if r.Port == nil {
		return 443
	}
	return *r.Port
}

// Priority is where a version of a group stands among others.
type Priority struct{ Group, Version int32 }

// custom is the priority of what CustomResourceDefinitions make.
var custom = Priority{1000, 100}

// builtin are upstream's priorities: of a group's versions, or of one version.
var builtin = map[string]Priority{
	"": {18000, 1}, "apps": {17800, 15}, "events.k8s.io": {17750, 15}, "authentication.k8s.io": {17700, 15}, "authorization.k8s.io": {17600, 15},
	"autoscaling": {17500, 15}, "autoscaling/v2": {17500, 30}, "batch": {17400, 15}, "certificates.k8s.io": {17300, 15}, "networking.k8s.io": {17200, 15},
	"policy": {17100, 15}, "rbac.authorization.k8s.io": {17000, 15}, "storage.k8s.io": {16800, 15}, "apiextensions.k8s.io": {16700, 15},
	"admissionregistration.k8s.io": {16700, 15}, "scheduling.k8s.io": {16600, 15}, "coordination.k8s.io": {16500, 15}, "node.k8s.io": {16300, 15},
	"discovery.k8s.io": {16200, 15}, "resource.k8s.io": {16200, 21}, "flowcontrol.apiserver.k8s.io": {16100, 21}, "storagemigration.k8s.io": {15800, 15},
	Group: {20001, 1}, // before all others
}

// PriorityOf tells where a version this server itself serves stands.
func PriorityOf(group, version string) Priority {
	for _, key := range []string{group + "/" + version, group} {
		if p, ok := builtin[key]; ok {
			return p
		}
	}
	return custom
}

// Local is the APIService of a version this server itself serves.
func Local(group, version string) *APIService {
	p := PriorityOf(group, version)
	return &APIService{
		ObjectMeta: metav1.ObjectMeta{Name: version + "." + group},
		Spec:       v1.APIServiceSpec{Group: group, Version: version, GroupPriorityMinimum: p.Group, VersionPriority: p.Version},
	}
}

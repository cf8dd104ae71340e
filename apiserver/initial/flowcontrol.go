package initial

import (
	"fmt"
	"strconv"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

// Names of the levels and schemas that are always as the server wants them;
// the others can be changed by setting the auto-update annotation to false.
const (
	exempt   = flowcontrolv1.PriorityLevelConfigurationNameExempt
	catchAll = flowcontrolv1.PriorityLevelConfigurationNameCatchAll
)

// queueing describes one level with queues; zero queues: what has no place is rejected.
type queueing struct {
	name             string
	shares, lendable int32
	queues, hand     int32
}

var levels = []queueing{
	{catchAll, 5, 0, 0, 0},
	{"system", 30, 33, 64, 6},
	{"node-high", 40, 25, 64, 6},
	{"leader-election", 10, 0, 16, 4},
	{"workload-high", 40, 50, 128, 6},
	{"workload-low", 100, 90, 128, 6},
	{"global-default", 20, 50, 128, 6},
}

func flowMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Annotations: map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: "true"}}
}

// PriorityLevels are upstream's priority levels, mandatory and suggested.
func PriorityLevels() []*flowcontrolv1.PriorityLevelConfiguration {
	zero, longest := int32(0), int32(50)
	out := []*flowcontrolv1.PriorityLevelConfiguration{{
		ObjectMeta: flowMeta(exempt),
		Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
			Type:   flowcontrolv1.PriorityLevelEnablementExempt,
			Exempt: &flowcontrolv1.ExemptPriorityLevelConfiguration{NominalConcurrencyShares: &zero, LendablePercent: &zero},
		},
	}}
	for _, q := range levels {
		limited := &flowcontrolv1.LimitedPriorityLevelConfiguration{
			NominalConcurrencyShares: &q.shares, LendablePercent: &q.lendable,
			LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject},
		}
		if q.queues > 0 {
			limited.LimitResponse = flowcontrolv1.LimitResponse{
				Type:    flowcontrolv1.LimitResponseTypeQueue,
				Queuing: &flowcontrolv1.QueuingConfiguration{Queues: q.queues, HandSize: q.hand, QueueLengthLimit: longest},
			}
		}
		out = append(out, &flowcontrolv1.PriorityLevelConfiguration{
			ObjectMeta: flowMeta(q.name),
			Spec:       flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: limited},
		})
	}
	return out
}

func groups(names ...string) (out []flowcontrolv1.Subject) {
	for _, n := range names {
		out = append(out, flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: n}})
	}
	return out
}

func users(names ...string) (out []flowcontrolv1.Subject) {
	for _, n := range names {
		out = append(out, flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: n}})
	}
	return out
}

func systemAccounts() []flowcontrolv1.Subject {
	return []flowcontrolv1.Subject{{
		Kind: flowcontrolv1.SubjectKindServiceAccount, ServiceAccount: &flowcontrolv1.ServiceAccountSubject{Namespace: metav1.NamespaceSystem, Name: "*"},
	}}
}

func rule(verbs, group, resources []string, clusterScope bool) flowcontrolv1.ResourcePolicyRule {
	return flowcontrolv1.ResourcePolicyRule{Verbs: verbs, APIGroups: group, Resources: resources, Namespaces: []string{"*"}, ClusterScope: clusterScope}
}

// FlowSchemas are upstream's flow schemas, mandatory and suggested.
func FlowSchemas() []*flowcontrolv1.FlowSchema {
	const (
		byUser      = flowcontrolv1.FlowDistinguisherMethodByUserType
		byNamespace = flowcontrolv1.FlowDistinguisherMethodByNamespaceType
		manager     = "system:kube-controller-manager"
		scheduler   = "system:kube-scheduler"
	)
	all := []string{"*"}
	anything := func(subjects []flowcontrolv1.Subject) flowcontrolv1.PolicyRulesWithSubjects {
		return flowcontrolv1.PolicyRulesWithSubjects{
			Subjects: subjects, ResourceRules: []flowcontrolv1.ResourcePolicyRule{rule(all, all, all, true)},
			NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: all, NonResourceURLs: all}},
		}
	}
	everyone := groups("system:unauthenticated", "system:authenticated")
	leases := func(verbs ...string) flowcontrolv1.ResourcePolicyRule {
		return rule(verbs, []string{"coordination.k8s.io"}, []string{"leases"}, false)
	}
	return []*flowcontrolv1.FlowSchema{
		schema(exempt, exempt, 1, "", anything(groups("system:masters"))),
		schema(catchAll, catchAll, 10000, byUser, anything(everyone)),
		schema("probes", exempt, 2, "", flowcontrolv1.PolicyRulesWithSubjects{Subjects: everyone, NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{
			{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/readyz", "/livez"}},
		}}),
		schema("system-leader-election", "leader-election", 100, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects:      append(users(manager, scheduler), systemAccounts()...),
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{leases("get", "create", "update")},
		}),
		schema("system-node-high", "node-high", 400, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects:      groups("system:nodes"),
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{rule(all, []string{""}, []string{"nodes", "nodes/status"}, true), leases("*")},
		}),
		schema("system-nodes", "system", 500, byUser, anything(groups("system:nodes"))),
		schema("kube-controller-manager", "workload-high", 800, byNamespace, anything(users(manager))),
		schema("kube-scheduler", "workload-high", 800, byNamespace, anything(users(scheduler))),
		schema("kube-system-service-accounts", "workload-high", 900, byNamespace, anything(systemAccounts())),
		schema("service-accounts", "workload-low", 9000, byUser, anything(groups("system:serviceaccounts"))),
		schema("global-default", "global-default", 9900, byUser, anything(everyone)),
	}
}

func schema(name, level string, precedence int32, by flowcontrolv1.FlowDistinguisherMethodType, rules flowcontrolv1.PolicyRulesWithSubjects) *flowcontrolv1.FlowSchema {
	f := &flowcontrolv1.FlowSchema{ObjectMeta: flowMeta(name), Spec: flowcontrolv1.FlowSchemaSpec{
		PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level},
		MatchingPrecedence:         precedence, Rules: []flowcontrolv1.PolicyRulesWithSubjects{rules},
	}}
	if by != "" {
		f.Spec.DistinguisherMethod = &flowcontrolv1.FlowDistinguisherMethod{Type: by}
	}
	return f
}

// Dangling notes in a schema's status whether its priority level exists, unless
// that is noted already. It reports a change.
func Dangling(f *flowcontrolv1.FlowSchema, exists bool, now metav1.Time) bool {
	name := f.Spec.PriorityLevelConfiguration.Name
	want := flowcontrolv1.FlowSchemaCondition{
		Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, LastTransitionTime: now, Reason: "Found",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", name),
	}
	if !exists {
		want.Status, want.Reason = flowcontrolv1.ConditionTrue, "NotFound"
		want.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", name)
	}
	for i, c := range f.Status.Conditions {
		if c.Type != want.Type {
			continue
		}
		if c.Status == want.Status && c.Reason == want.Reason && c.Message == want.Message {
			return false
		}
		f.Status.Conditions[i] = want
		return true
	}
	f.Status.Conditions = append(f.Status.Conditions, want)
	return true
}

// UpdateFlowControl brings a stored level or schema up to the one wanted,
// unless it says that it is the administrator's. It reports a change.
func UpdateFlowControl(have, want api.Object) bool {
	own := have.GetName() == exempt || have.GetName() == catchAll
	annotations := have.GetAnnotations()
	asked, err := strconv.ParseBool(annotations[flowcontrolv1.AutoUpdateAnnotationKey])
	update := own || err == nil && asked || err != nil && have.GetGeneration() == 1
	changed := false
	if err != nil || asked != update {
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[flowcontrolv1.AutoUpdateAnnotationKey] = strconv.FormatBool(update)
		have.SetAnnotations(annotations)
		changed = true
	}
	if !update {
		return changed
	}
	switch h := have.(type) {
	case *flowcontrolv1.FlowSchema:
		w := want.(*flowcontrolv1.FlowSchema)
		changed = changed || !apiequality.Semantic.DeepEqual(h.Spec, w.Spec)
		w.Spec.DeepCopyInto(&h.Spec)
	case *flowcontrolv1.PriorityLevelConfiguration:
		w := want.(*flowcontrolv1.PriorityLevelConfiguration)
		changed = changed || !apiequality.Semantic.DeepEqual(h.Spec, w.Spec)
		w.Spec.DeepCopyInto(&h.Spec)
	}
	return changed
}

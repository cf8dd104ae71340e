package core

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func nodeResource() *api.Resource {
	return &api.Resource{
		Name: "nodes", Singular: "node", Kind: "Node",
		ShortNames:    []string{"no"},
		Versions:      []api.Version{api.Versioned[corev1.Node, corev1.NodeList]("v1", defaultNode)},
		StoragePrefix: "minions",
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(n *corev1.Node) {
				n.Spec.ConfigSource, n.Spec.PodPreemptionPolicy, n.Status.Config = nil, nil, nil
			}),
			PrepareForUpdate: api.OnUpdate(func(n, old *corev1.Node) {
				n.Status = old.Status
				if old.Spec.ConfigSource == nil {
					n.Spec.ConfigSource = nil
				}
				if old.Spec.PodPreemptionPolicy == nil {
					n.Spec.PodPreemptionPolicy = nil
				}
			}),
			Validate:       api.Check(validateNode),
			ValidateUpdate: api.CheckUpdate(validateNodeUpdate),
			Warnings:       api.Warn(nodeWarnings),
			Selectable: api.Select(func(n *corev1.Node) fields.Set {
				return fields.Set{"spec.unschedulable": strconv.FormatBool(n.Spec.Unschedulable)}
			}),
		},
		Subresources: []api.Subresource{
			{Name: "proxy", Verbs: proxyVerbs, Kind: "NodeProxyOptions"},
			api.StatusView(func(n, old *corev1.Node) {
				n.Spec = old.Spec
				if old.Status.Config == nil {
					n.Status.Config = nil
				}
			}, validateNodeUpdate),
		},
		Columns: nodeColumns(),
		Cells:   api.Row(nodeCells),
	}
}

func validateNode(n *corev1.Node) field.ErrorList {
	l := &check.List{}
	checkTaints(l, n.Spec.Taints)
	checkNodeAmounts(l, n)
	checkDeclaredFeatures(l, n.Status.DeclaredFeatures)
	at := specPath.Child("podCIDRs")
	for i, c := range n.Spec.PodCIDRs {
		l.Add(validation.IsValidCIDRForLegacyField(at.Index(i), c, true, nil))
	}
	if c := n.Spec.PodCIDRs; len(c) > 2 || len(c) == 2 && isIPv6(c[0]) == isIPv6(c[1]) {
		l.Invalid(at, c, "may specify no more than one CIDR for each IP family")
	}
	return l.Errors
}

var featureName = regexp.MustCompile(`^([A-Z][a-zA-Z0-9]*)(/[a-zA-Z][a-zA-Z0-9]*)*$`)

func checkDeclaredFeatures(l *check.List, list []string) {
	for i, name := range list {
		at := statusPath.Child("declaredFeatures").Index(i)
		if len(name) > validation.DNS1123SubdomainMaxLength {
			l.Invalid(at, name, fmt.Sprintf("invalid feature name %q: must be no more than %d characters", name, validation.DNS1123SubdomainMaxLength))
		} else if !featureName.MatchString(name) {
			l.Invalid(at, name, fmt.Sprintf("invalid feature name %q: must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric characters and slashes", name))
		}
		if i > 0 && list[i-1] == name {
			l.Duplicate(at, name)
		} else if i > 0 && list[i-1] > name {
			l.Invalid(at, name, "list must be sorted alphabetically")
		}
	}
}

func checkNodeAmounts(l *check.List, n *corev1.Node) {
	for name, q := range check.Sorted(n.Status.Capacity) {
		podspec.CheckQuantity(l, field.NewPath("status", "capacity", string(name)), name, q)
	}
	for name, q := range check.Sorted(n.Status.Allocatable) {
		podspec.CheckQuantity(l, field.NewPath("status", "allocatable", string(name)), name, q)
	}
}

func checkTaints(l *check.List, taints []corev1.Taint) {
	type key struct {
		effect corev1.TaintEffect
		key    string
	}
	seen := map[key]bool{}
	for i, t := range taints {
		at := field.NewPath("metadata", "taints").Index(i)
		l.LabelName(at.Child("key"), t.Key)
		if msgs := validation.IsValidLabelValue(t.Value); len(msgs) != 0 {
			l.Invalid(at.Child("value"), t.Value, strings.Join(msgs, ";"))
		}
		if t.Effect == "" {
			l.Required(at.Child("effect"), "")
		} else {
			podspec.CheckTaintEffect(l, at.Child("effect"), t.Effect)
		}
		if k := (key{t.Effect, t.Key}); seen[k] {
			err := field.Duplicate(at, t)
			err.Detail = "taints must be unique by key and effect pair"
			l.Errors = append(l.Errors, err)
		} else {
			seen[k] = true
		}
	}
}

func validateNodeUpdate(n, old *corev1.Node) field.ErrorList {
	l := &check.List{Errors: validateNode(n)}
	seen := map[corev1.NodeAddress]bool{}
	for i, a := range n.Status.Addresses {
		if seen[a] {
			l.Duplicate(statusPath.Child("addresses").Index(i), a)
		}
		seen[a] = true
	}
	if len(old.Spec.PodCIDRs) > 0 && !slices.Equal(old.Spec.PodCIDRs, n.Spec.PodCIDRs) {
		l.Forbidden(specPath.Child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid")
	}
	if was, now := old.Spec.ProviderID, n.Spec.ProviderID; was != "" && now != was {
		text := "field cannot be modified once set"
		if now == "" {
			text = "field cannot be cleared once set"
		}
		l.Invalid(specPath.Child("providerID"), nil, text)
	}
	if n.Spec.DoNotUseExternalID != old.Spec.DoNotUseExternalID {
		l.Forbidden(specPath.Child("externalID"), "may not be updated")
	}
	return l.Errors
}

func nodeWarnings(n, _ *corev1.Node) []string {
	var out []string
	if n.Spec.DoNotUseExternalID != "" {
		out = append(out, "spec.externalID: this field is deprecated, and is unused by Kubernetes")
	}
	return out
}

func nodeColumns() []metav1.TableColumnDefinition {
	info, status := corev1.NodeSystemInfo{}.SwaggerDoc(), corev1.NodeStatus{}.SwaggerDoc()
	return []metav1.TableColumnDefinition{
		api.Column("Status", "string", "The status of the node"),
		api.Column("Roles", "string", "The roles of the node"),
		api.AgeColumn(),
		api.Column("Version", "string", info["kubeletVersion"]),
		api.Wide("Internal-IP", status["addresses"]),
		api.Wide("External-IP", status["addresses"]),
		api.Wide("OS-Image", info["osImage"]),
		api.Wide("Kernel-Version", info["kernelVersion"]),
		api.Wide("Container-Runtime", info["containerRuntimeVersion"]),
	}
}

func nodeCells(n *corev1.Node, now metav1.Time) []any {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	info := &n.Status.NodeInfo
	kernel := orUnknown(info.KernelVersion)
	if info.Architecture != "" {
		kernel += " (" + info.Architecture + ")"
	}
	return []any{
		n.Name, status, api.OrNone(nodeRoles(n)), api.Age(n.CreationTimestamp, now), info.KubeletVersion,
		nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP),
		orUnknown(info.OSImage), kernel, orUnknown(info.ContainerRuntimeVersion),
	}
}

func nodeRoles(n *corev1.Node) []string {
	roles := sets.Set[string]{}
	for k, v := range n.Labels {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok && role != "" {
			roles.Insert(role)
		} else if k == "kubernetes.io/role" && v != "" {
			roles.Insert(v)
		}
	}
	return sets.List(roles)
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return "<none>"
}

func orUnknown(s string) string {
	if s == "" {
		return "<unknown>"
	}
	return s
}

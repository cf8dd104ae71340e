package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

const requestsPrefix = "requests."

// countedObjects are the quota names of objects, which have whole counts.
var countedObjects = NameSet("pods", "resourcequotas", "services", "replicationcontrollers", "secrets",
	"configmaps", "persistentvolumeclaims", "services.nodeports", "services.loadbalancers")

var quantityNames = NameSet("cpu", "memory", "ephemeral-storage", "requests.cpu", "requests.memory",
	"requests.ephemeral-storage", "limits.cpu", "limits.memory", "limits.ephemeral-storage", "requests.storage")

// NameSet is a set of resource names.
func NameSet(names ...corev1.ResourceName) map[corev1.ResourceName]bool {
	m := make(map[corev1.ResourceName]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

func IsNative(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

// IsExtended tells the names of resources that are not Kubernetes's own.
func IsExtended(name corev1.ResourceName) bool {
	return !IsNative(name) && !strings.HasPrefix(string(name), requestsPrefix) &&
		len(validation.IsQualifiedName(requestsPrefix+string(name))) == 0
}

// OvercommitAllowed tells whether limits of a resource may exceed its requests.
func OvercommitAllowed(name corev1.ResourceName) bool { return IsNative(name) && !IsHugePages(name) }

func isQuotaHugePages(name corev1.ResourceName) bool {
	return IsHugePages(name) || strings.HasPrefix(string(name), requestsPrefix+corev1.ResourceHugePagesPrefix)
}

// IsStandardQuota tells the names a quota may bound without a domain in them.
func IsStandardQuota(name corev1.ResourceName) bool {
	return countedObjects[name] || quantityNames[name] || isQuotaHugePages(name)
}

func isStandardContainer(name corev1.ResourceName) bool {
	return name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || IsHugePages(name)
}

// CheckResourceName checks what every resource name must satisfy.
func CheckResourceName(l *check.List, p *field.Path, name corev1.ResourceName) bool {
	if msgs := validation.IsQualifiedName(string(name)); len(msgs) > 0 {
		l.Messages(p, name, msgs)
		return false
	}
	if !strings.Contains(string(name), "/") && !IsStandardQuota(name) && name != corev1.ResourceStorage {
		l.Invalid(p, name, "must be a standard resource type or fully qualified")
		return false
	}
	return true
}

// CheckContainerResourceName checks a resource name in a container's requests or limits.
func CheckContainerResourceName(l *check.List, p *field.Path, name corev1.ResourceName) {
	CheckResourceName(l, p, name)
	switch {
	case !strings.Contains(string(name), "/"):
		if !isStandardContainer(name) {
			l.Invalid(p, name, "must be a standard resource for containers")
		}
	case !IsNative(name) && !IsExtended(name):
		l.Invalid(p, name, "doesn't follow extended resource name standard")
	}
}

// CheckQuantity checks an amount of a resource: not negative, and whole where
// the resource is counted.
func CheckQuantity(l *check.List, p *field.Path, name corev1.ResourceName, q resource.Quantity) {
	l.NonnegativeQuantity(p, q)
	if (countedObjects[name] || IsExtended(name)) && q.MilliValue()%1000 != 0 {
		l.Invalid(p, q, "must be an integer")
	}
}

func checkHugePages(l *check.List, p *field.Path, name corev1.ResourceName, q resource.Quantity) {
	size, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
	if err != nil || size.Sign() <= 0 || size.MilliValue()%1000 != 0 || q.Value()%size.Value() != 0 {
		l.Invalid(p, q.String(), q.String()+" is not positive integer multiple of "+string(name))
	}
}

// IsHugePages tells the names of huge pages, whatever their size.
func IsHugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

package podspec

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

// What the downward API offers in variables, in files, and of resources.
var (
	envFieldPaths = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
		"spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	fileFieldPaths = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	resourceFields = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory",
		"requests.cpu", "requests.ephemeral-storage", "requests.memory"}
	downwardLabels = sets.New("metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace",
		"metadata.uid", "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "spec.schedulerName",
		"status.phase", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs")
	byteDivisors = sets.New("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
)

func checkEnv(l *check.List, p *field.Path, vars []corev1.EnvVar) {
	for i := range vars {
		v, at := &vars[i], p.Index(i)
		if v.Name == "" {
			l.Required(at.Child("name"), "")
		} else {
			l.Messages(at.Child("name"), v.Name, validation.IsRelaxedEnvVarName(v.Name))
		}
		if v.ValueFrom != nil {
			checkEnvSource(l, at.Child("valueFrom"), v)
		}
	}
}

func checkEnvSource(l *check.List, p *field.Path, v *corev1.EnvVar) {
	n, from := 0, v.ValueFrom
	if from.FieldRef != nil {
		n++
		checkFieldRef(l, p.Child("fieldRef"), from.FieldRef, envFieldPaths)
	}
	if from.ResourceFieldRef != nil {
		n++
		checkResourceRef(l, p.Child("resourceFieldRef"), from.ResourceFieldRef, false)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		n++
		checkKeyRef(l, p.Child("configMapKeyRef"), r.Name, r.Key)
	}
	if r := from.SecretKeyRef; r != nil {
		n++
		checkKeyRef(l, p.Child("secretKeyRef"), r.Name, r.Key)
	}
	if from.FileKeyRef != nil {
		n++
		checkFileKeyRef(l, p.Child("fileKeyRef"), from.FileKeyRef)
	}
	switch {
	case n == 0:
		l.Invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case v.Value != "":
		l.Invalid(p, "", "may not be specified when `value` is not empty")
	case n > 1:
		l.Invalid(p, "", "may not have more than one field specified at a time")
	}
}

func checkKeyRef(l *check.List, p *field.Path, name, key string) {
	l.Messages(p.Child("name"), name, apivalidation.NameIsDNSSubdomain(name, false))
	if key == "" {
		l.Required(p.Child("key"), "")
		return
	}
	l.Messages(p.Child("key"), key, validation.IsConfigMapKey(key))
}

func checkFileKeyRef(l *check.List, p *field.Path, r *corev1.FileKeySelector) {
	if r.Key == "" {
		l.Required(p.Child("key"), "")
	} else {
		l.Messages(p.Child("key"), r.Key, validation.IsRelaxedEnvVarName(r.Key))
	}
	if r.VolumeName == "" {
		l.Required(p.Child("volumeName"), "")
	} else {
		l.Label(p.Child("volumeName"), r.VolumeName)
	}
	if r.Path == "" {
		l.Required(p.Child("path"), "")
	} else {
		l.NoBacksteps(p.Child("path"), r.Path)
	}
}

func checkFieldRef(l *check.List, p *field.Path, r *corev1.ObjectFieldSelector, allowed []string) {
	if r.APIVersion == "" {
		l.Required(p.Child("apiVersion"), "")
		return
	}
	if r.FieldPath == "" {
		l.Required(p.Child("fieldPath"), "")
		return
	}
	path, subscript, subscripted := splitSubscript(r.FieldPath)
	if path == "spec.host" {
		path = "spec.nodeName"
	}
	problem := ""
	switch {
	case r.APIVersion != "v1":
		problem = "unsupported pod version: " + r.APIVersion
	case subscripted && path != "metadata.annotations" && path != "metadata.labels":
		problem = "field label does not support subscript: " + r.FieldPath
	case !subscripted && !downwardLabels.Has(path):
		problem = "field label not supported: " + r.FieldPath
	}
	switch {
	case problem != "":
		l.Invalid(p.Child("fieldPath"), r.FieldPath, "error converting fieldPath: "+problem)
	case path == "metadata.annotations" && subscripted:
		l.QualifiedName(p, strings.ToLower(subscript))
	case subscripted:
		l.QualifiedName(p, subscript)
	case !slices.Contains(allowed, path):
		l.Errors = append(l.Errors, field.NotSupported(p.Child("fieldPath"), path, allowed))
	}
}

// splitSubscript splits metadata.labels['key'] into its two parts.
func splitSubscript(path string) (before, key string, ok bool) {
	inner, found := strings.CutSuffix(path, "']")
	if !found {
		return path, "", false
	}
	before, key, ok = strings.Cut(inner, "['")
	if !ok || before == "" {
		return path, "", false
	}
	return before, key, true
}

func checkResourceRef(l *check.List, p *field.Path, r *corev1.ResourceFieldSelector, inVolume bool) {
	hugePages := strings.HasPrefix(r.Resource, "requests.hugepages-") || strings.HasPrefix(r.Resource, "limits.hugepages-")
	switch {
	case inVolume && r.ContainerName == "":
		l.Required(p.Child("containerName"), "")
	case r.Resource == "":
		l.Required(p.Child("resource"), "")
	case !hugePages && !slices.Contains(resourceFields, r.Resource):
		l.Errors = append(l.Errors, field.NotSupported(p.Child("resource"), r.Resource, resourceFields))
	}
	if r.Divisor.IsZero() {
		return
	}
	d, kind := r.Divisor.String(), ""
	switch _, name, _ := strings.Cut(r.Resource, "."); {
	case name == "cpu":
		if d != "1" && d != "1m" {
			l.Invalid(p.Child("divisor"), r.Resource, "only divisor's values 1m and 1 are supported with the cpu resource")
		}
		return
	case name == "memory":
		kind = "memory"
	case name == "ephemeral-storage":
		kind = "local ephemeral storage"
	case hugePages:
		kind = "hugepages"
	}
	if kind != "" && !byteDivisors.Has(d) {
		l.Invalid(p.Child("divisor"), r.Resource, fmt.Sprintf("only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the %s resource", kind))
	}
}

func checkEnvFrom(l *check.List, p *field.Path, sources []corev1.EnvFromSource) {
	for i, s := range sources {
		at := p.Index(i)
		if s.Prefix != "" {
			l.Messages(at.Child("prefix"), s.Prefix, validation.IsRelaxedEnvVarName(s.Prefix))
		}
		n := 0
		for _, ref := range []struct{ field, name string }{
			{"configMapRef", name(s.ConfigMapRef != nil, func() string { return s.ConfigMapRef.Name })},
			{"secretRef", name(s.SecretRef != nil, func() string { return s.SecretRef.Name })},
		} {
			switch ref.name {
			case unset:
				continue
			case "":
				l.Required(at.Child(ref.field, "name"), "")
			default:
				l.Messages(at.Child(ref.field, "name"), ref.name, apivalidation.NameIsDNSSubdomain(ref.name, true))
			}
			n++
		}
		switch {
		case n == 0:
			l.Invalid(p, "", "must specify one of: `configMapRef` or `secretRef`")
		case n > 1:
			l.Invalid(p, "", "may not have more than one field specified at a time")
		}
	}
}

// unset stands for a reference that is not there, which no name can equal.
const unset = "\x00"

func name(set bool, get func() string) string {
	if !set {
		return unset
	}
	return get()
}

package storage

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

var specPath = field.NewPath("spec")

func storageClassResource() *api.Resource {
	doc := storagev1.StorageClass{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "storageclasses", Singular: "storageclass", Kind: "StorageClass",
		ShortNames: []string{"sc"},
		Versions: []api.Version{api.Versioned[storagev1.StorageClass, storagev1.StorageClassList]("v1", func(c *storagev1.StorageClass) {
			api.SetIfNil(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			api.SetIfNil(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		})},
		Strategy: api.Strategy{
			Validate: api.Check(validateClass),
			ValidateUpdate: api.CheckUpdate(func(c, old *storagev1.StorageClass) field.ErrorList {
				l := &check.List{Errors: validateClass(c)}
				l.Immutable(field.NewPath("parameters"), c.Parameters, old.Parameters)
				l.Fixed(field.NewPath("provisioner"), c.Provisioner, old.Provisioner)
				l.Fixed(field.NewPath("reclaimPolicy"), c.ReclaimPolicy, old.ReclaimPolicy)
				l.Fixed(field.NewPath("volumeBindingMode"), c.VolumeBindingMode, old.VolumeBindingMode)
				return l.Errors
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Provisioner", "string", doc["provisioner"]),
			api.Column("ReclaimPolicy", "string", doc["reclaimPolicy"]),
			api.Column("VolumeBindingMode", "string", doc["volumeBindingMode"]),
			api.Column("AllowVolumeExpansion", "string", doc["allowVolumeExpansion"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *storagev1.StorageClass, now metav1.Time) []any {
			name, policy, mode := c.Name, "Delete", "Immediate"
			if c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" || c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true" {
				name += " (default)"
			}
			if c.ReclaimPolicy != nil {
				policy = string(*c.ReclaimPolicy)
			}
			if c.VolumeBindingMode != nil {
				mode = string(*c.VolumeBindingMode)
			}
			expand := c.AllowVolumeExpansion != nil && *c.AllowVolumeExpansion
			return []any{name, c.Provisioner, policy, mode, expand, api.Age(c.CreationTimestamp, now)}
		}),
	}
}

const (
	maxParameters     = 512
	maxParametersSize = 256 * 1024
)

func checkDriver(l *check.List, p *field.Path, name string) {
	if name == "" {
		l.Required(p, "")
		return
	}
	l.QualifiedName(p, strings.ToLower(name))
}

func checkParameters(l *check.List, params map[string]string, allowEmpty bool) {
	p, size := field.NewPath("parameters"), 0
	if len(params) > maxParameters {
		l.TooLong(p, maxParameters)
		return
	}
	for k, v := range params {
		if k == "" {
			l.Invalid(p, k, "field can not be empty.")
		}
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		l.TooLong(p, maxParametersSize)
	}
	if !allowEmpty && len(params) == 0 {
		l.Required(p, "must contain at least one key/value pair")
	}
}

func validateClass(c *storagev1.StorageClass) field.ErrorList {
	l := &check.List{}
	checkDriver(l, field.NewPath("provisioner"), c.Provisioner)
	checkParameters(l, c.Parameters, true)
	if r := c.ReclaimPolicy; r != nil && *r != "" {
		check.OneOf(l, field.NewPath("reclaimPolicy"), *r, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)
	}
	if m := c.VolumeBindingMode; m == nil {
		l.Required(field.NewPath("volumeBindingMode"), "")
	} else {
		check.OneOf(l, field.NewPath("volumeBindingMode"), *m, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)
	}
	// Upstream compares each term with as many empty ones first.
	terms := make([]map[string]sets.Set[string], len(c.AllowedTopologies))
	for i, t := range c.AllowedTopologies {
		at := field.NewPath("allowedTopologies").Index(i)
		term := checkTopology(l, at, t.MatchLabelExpressions)
		for _, other := range terms {
			if !api.Changed(term, other) {
				l.Duplicate(at.Child("matchLabelExpressions"), "")
			}
		}
		terms = append(terms, term)
	}
	return l.Errors
}

func checkTopology(l *check.List, p *field.Path, list []corev1.TopologySelectorLabelRequirement) map[string]sets.Set[string] {
	keys := map[string]sets.Set[string]{}
	for i, r := range list {
		at := p.Child("matchLabelExpressions").Index(i)
		if len(r.Values) == 0 {
			l.Required(at.Child("values"), "")
		}
		values := sets.Set[string]{}
		for j, v := range r.Values {
			if values.Has(v) {
				l.Duplicate(at.Child("values").Index(j), v)
			}
			values.Insert(v)
		}
		l.LabelName(at.Child("key"), r.Key)
		if keys[r.Key] != nil {
			l.Duplicate(at.Child("key"), r.Key)
		} else {
			keys[r.Key] = values
		}
	}
	return keys
}

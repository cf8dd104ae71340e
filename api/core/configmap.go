package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func configMapResource() *api.Resource {
	return &api.Resource{
		Name: "configmaps", Singular: "configmap", Kind: "ConfigMap",
		ShortNames: []string{"cm"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[corev1.ConfigMap, corev1.ConfigMapList]("v1", defaultConfigMap)},
		Strategy: api.Strategy{
			Validate:       api.Check(validateConfigMap),
			ValidateUpdate: api.CheckUpdate(validateConfigMapUpdate),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Data", "string", corev1.ConfigMap{}.SwaggerDoc()["data"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(c *corev1.ConfigMap, now metav1.Time) []any {
			return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), api.Age(c.CreationTimestamp, now)}
		}),
	}
}

func validateConfigMap(c *corev1.ConfigMap) field.ErrorList {
	l, size := &check.List{}, 0
	for key, value := range check.Sorted(c.Data) {
		at := field.NewPath("data").Key(key)
		l.Messages(at, key, validation.IsConfigMapKey(key))
		if _, ok := c.BinaryData[key]; ok {
			l.Invalid(at, key, "duplicate of key present in binaryData")
		}
		size += len(value)
	}
	for key, value := range check.Sorted(c.BinaryData) {
		l.Messages(field.NewPath("binaryData").Key(key), key, validation.IsConfigMapKey(key))
		size += len(value)
	}
	if size > corev1.MaxSecretSize {
		l.TooLong(field.NewPath(""), corev1.MaxSecretSize)
	}
	return l.Errors
}

const whenImmutable = "field is immutable when `immutable` is set"

func validateConfigMapUpdate(c, old *corev1.ConfigMap) field.ErrorList {
	l := &check.List{}
	if isTrue(old.Immutable) {
		l.ForbidIf(field.NewPath("immutable"), !isTrue(c.Immutable), whenImmutable)
		l.ForbidIf(field.NewPath("data"), api.Changed(c.Data, old.Data), whenImmutable)
		l.ForbidIf(field.NewPath("binaryData"), api.Changed(c.BinaryData, old.BinaryData), whenImmutable)
	}
	l.Add(validateConfigMap(c))
	return l.Errors
}

func isTrue(b *bool) bool { return b != nil && *b }

package core

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func secretResource() *api.Resource {
	doc := corev1.Secret{}.SwaggerDoc()
	return &api.Resource{
		Name: "secrets", Singular: "secret", Kind: "Secret",
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[corev1.Secret, corev1.SecretList]("v1", defaultSecret)},
		Strategy: api.Strategy{
			PrepareForUpdate: api.OnUpdate(func(s, old *corev1.Secret) {
				api.SetIfEmpty(&s.Type, old.Type) // kept for updates that leave it out
			}),
			Validate:       api.Check(validateSecret),
			ValidateUpdate: api.CheckUpdate(validateSecretUpdate),
			Selectable: api.Select(func(s *corev1.Secret) fields.Set {
				return fields.Set{"type": string(s.Type)}
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Type", "string", doc["type"]),
			api.Column("Data", "string", doc["data"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(s *corev1.Secret, now metav1.Time) []any {
			return []any{s.Name, string(s.Type), int64(len(s.Data)), api.Age(s.CreationTimestamp, now)}
		}),
	}
}

func validateSecret(s *corev1.Secret) field.ErrorList {
	l, size, data := &check.List{}, 0, field.NewPath("data")
	for key, value := range check.Sorted(s.Data) {
		l.Messages(data.Key(key), key, validation.IsConfigMapKey(key))
		size += len(value)
	}
	if size > corev1.MaxSecretSize {
		l.TooLong(data, corev1.MaxSecretSize)
	}
	need := func(keys ...string) {
		for _, key := range keys {
			if _, ok := s.Data[key]; !ok {
				l.Required(data.Key(key), "")
			}
		}
	}
	needJSON := func(key string) {
		need(key)
		if raw, ok := s.Data[key]; ok {
			if err := json.Unmarshal(raw, &map[string]any{}); err != nil {
				l.Invalid(data.Key(key), "<secret contents redacted>", err.Error())
			}
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			l.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "")
		}
	case corev1.SecretTypeDockercfg:
		needJSON(corev1.DockerConfigKey)
	case corev1.SecretTypeDockerConfigJson:
		needJSON(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			need(corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			l.Required(data.Key(corev1.SSHAuthPrivateKey), "")
		}
	case corev1.SecretTypeTLS:
		need(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return l.Errors
}

func validateSecretUpdate(s, old *corev1.Secret) field.ErrorList {
	l := &check.List{}
	l.Immutable(field.NewPath("type"), s.Type, old.Type)
	if isTrue(old.Immutable) {
		l.ForbidIf(field.NewPath("immutable"), !isTrue(s.Immutable), whenImmutable)
		l.ForbidIf(field.NewPath("data"), api.Changed(s.Data, old.Data), whenImmutable)
	}
	l.Add(validateSecret(s))
	return l.Errors
}

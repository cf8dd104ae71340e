// Package apiextensions describes CustomResourceDefinitions: their strategy,
// their validation with upstream's texts, and what the server decides about
// them (names, conditions). What a definition makes is in api/customresource.
package apiextensions

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/object/wire"
)

// Group and Name name the resource.
const (
	Group = apiextensionsv1.GroupName
	Name  = "customresourcedefinitions"
)

// CRD is the served and stored type.
type CRD = apiextensionsv1.CustomResourceDefinition

var (
	specPath   = field.NewPath("spec")
	statusPath = field.NewPath("status")
)

// Resources lists the group's resources.
func Resources() []*api.Resource {
	created := metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]
	wide := func(name, kind, about string) metav1.TableColumnDefinition {
		return metav1.TableColumnDefinition{Name: name, Type: kind, Description: about, Priority: 1}
	}
	return []*api.Resource{{
		Group: Group, Name: Name, Singular: "customresourcedefinition", Kind: "CustomResourceDefinition",
		ShortNames: []string{"crd", "crds"}, Categories: []string{"api-extensions"},
		Versions:      []api.Version{api.Versioned[CRD, apiextensionsv1.CustomResourceDefinitionList]("v1", apiextensionsv1.SetObjectDefaults_CustomResourceDefinition)},
		StoragePrefix: Group + "/" + Name,
		DecodeJSON:    decodeJSON,
		Strategy: api.Strategy{
			PrepareForCreate: api.On(func(c *CRD) {
				c.Status, c.Generation = apiextensionsv1.CustomResourceDefinitionStatus{}, 1
				noteStored(c)
			}),
			PrepareForUpdate: api.OnUpdate(func(c, old *CRD) {
				c.Status = *old.Status.DeepCopy()
				api.BumpGeneration(c, old, api.Changed(c.Spec, old.Spec))
				noteStored(c)
			}),
			Validate: func(ctx context.Context, obj api.Object) field.ErrorList { return validate(ctx, obj.(*CRD), nil) },
			ValidateUpdate: func(ctx context.Context, obj, old api.Object) field.ErrorList {
				return validate(ctx, obj.(*CRD), old.(*CRD))
			},
			Warnings:                api.Warn(warnings),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusView(func(c, old *CRD) {
			c.Spec = old.Spec
		}, func(c, _ *CRD) field.ErrorList {
			l := &check.List{}
			in, err := internal(c)
			if err != nil {
				return field.ErrorList{field.InternalError(statusPath, err)}
			}
			checkNames(l, statusPath.Child("acceptedNames"), &in.Status.AcceptedNames)
			return l.Errors
		})},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Scope", "string", "Cluster/Namespaced"),
			api.Column("Versions", "string", "Served versions"),
			api.Column("Created At", "date", created),
			wide("Group", "string", "API group"),
			wide("Kind", "string", "CustomResource kind"),
			wide("ShortNames", "string", "Short names"),
			wide("Established", "boolean", "Established status"),
		},
		Cells: api.Row(func(c *CRD, _ metav1.Time) []any {
			var versions []string
			for _, v := range c.Spec.Versions {
				switch {
				case v.Served && v.Storage:
					versions = append(versions, v.Name+"(storage)")
				case v.Served:
					versions = append(versions, v.Name)
				}
			}
			slices.Sort(versions)
			return []any{c.Name, string(c.Spec.Scope), strings.Join(versions, ","), c.CreationTimestamp.UTC().Format(time.RFC3339),
				c.Spec.Group, c.Spec.Names.Kind, strings.Join(c.Spec.Names.ShortNames, ","), apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Established)}
		}),
	}}
}

// Scheme knows the group's types.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	s.AddKnownTypes(apiextensionsv1.SchemeGroupVersion, &CRD{}, &apiextensionsv1.CustomResourceDefinitionList{})
	return s
}

// noteStored records the storage version among those objects may be stored in.
func noteStored(c *CRD) {
	for _, v := range c.Spec.Versions {
		if v.Storage {
			if !slices.Contains(c.Status.StoredVersions, v.Name) {
				c.Status.StoredVersions = append(c.Status.StoredVersions, v.Name)
			}
			return
		}
	}
}

// internal is the form the checks work on: what all versions share has moved
// to the top, which is where messages point.
func internal(c *CRD) (*apiextensions.CustomResourceDefinition, error) {
	out := &apiextensions.CustomResourceDefinition{}
	return out, apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(c, out, nil)
}

// InternalSchema is a version's schema in the form the schema libraries take; nil for none.
func InternalSchema(v *apiextensionsv1.CustomResourceValidation) (*apiextensions.JSONSchemaProps, error) {
	if v == nil || v.OpenAPIV3Schema == nil {
		return nil, nil
	}
	out := &apiextensions.JSONSchemaProps{}
	return out, apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.OpenAPIV3Schema, out, nil)
}

// decodeJSON reads a definition another API server stored: kube-apiserver
// writes JSON of version v1beta1.
func decodeJSON(value []byte) (api.Object, error) {
	var kind metav1.TypeMeta
	if err := json.Unmarshal(value, &kind); err != nil {
		return nil, err
	}
	out := &CRD{}
	switch kind.APIVersion {
	case Group + "/v1":
		return out, json.Unmarshal(value, out)
	case Group + "/v1beta1":
	default:
		return nil, fmt.Errorf("no version %q of CustomResourceDefinition is known", kind.APIVersion)
	}
	old, hub := &v1beta1.CustomResourceDefinition{}, &apiextensions.CustomResourceDefinition{}
	if err := json.Unmarshal(value, old); err != nil {
		return nil, err
	}
	v1beta1.SetObjectDefaults_CustomResourceDefinition(old)
	if err := v1beta1.Convert_v1beta1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(old, hub, nil); err != nil {
		return nil, err
	}
	return out, apiextensionsv1.Convert_apiextensions_CustomResourceDefinition_To_v1_CustomResourceDefinition(hub, out, nil)
}

// Outline decodes a stored definition without its schemas and field managers,
// which are most of it: enough to tell what is served under which names.
func Outline(value []byte) (*CRD, error) {
	raw := wire.Raw(value)
	if raw == nil {
		obj, err := decodeJSON(value)
		if err != nil {
			return nil, err
		}
		c := obj.(*CRD)
		c.ManagedFields = nil
		for i := range c.Spec.Versions {
			c.Spec.Versions[i].Schema = nil
		}
		return c, nil
	}
	raw, err := wire.Without(raw, 2, 7, 4) // spec.versions.schema
	if err == nil {
		raw, err = wire.Without(raw, 1, 17) // metadata.managedFields
	}
	c := &CRD{}
	if err == nil {
		err = c.Unmarshal(raw)
	}
	return c, err
}

package customresource

import (
	"bytes"
	"encoding/json"
	"reflect"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/skiff-project/skiff/api"
)

// scaleOf reads and writes replicas where the definition says they are.
func (v *edition) scaleOf(sc *v1.CustomResourceSubresourceScale) *api.Scale {
	number := func(u *unstructured.Unstructured, at string) int32 {
		n, _, _ := unstructured.NestedInt64(u.Object, path(at)...)
		return int32(n)
	}
	return &api.Scale{
		Get: func(obj api.Object) (spec autoscalingv1.ScaleSpec, status autoscalingv1.ScaleStatus) {
			u := obj.(*unstructured.Unstructured)
			spec.Replicas, status.Replicas = number(u, sc.SpecReplicasPath), number(u, sc.StatusReplicasPath)
			if sc.LabelSelectorPath != nil && *sc.LabelSelectorPath != "" {
				status.Selector, _, _ = unstructured.NestedString(u.Object, path(*sc.LabelSelectorPath)...)
			}
			return spec, status
		},
		Set: func(obj api.Object, n int32) {
			u := obj.(*unstructured.Unstructured)
			unstructured.SetNestedField(u.Object, int64(n), path(sc.SpecReplicasPath)...) //nolint:errcheck // validation tells of what is in the way
		},
		Custom: &api.CustomScale{
			Path: sc.SpecReplicasPath, Paths: v.d.replicasPaths(),
			Has: func(obj api.Object) bool {
				_, found, err := unstructured.NestedInt64(obj.(*unstructured.Unstructured).Object, path(sc.SpecReplicasPath)...)
				return err == nil && found
			},
		},
	}
}

// replicasPaths are where the versions have their replicas, nil for one without a scale.
func (d *Definition) replicasPaths() managedfields.ResourcePathMappings {
	paths := managedfields.ResourcePathMappings{}
	for _, v := range d.versions {
		at := v.kind.GroupVersion().String()
		paths[at] = nil
		if sc := v.scale(); sc != nil {
			for _, name := range path(sc.SpecReplicasPath) {
				paths[at] = append(paths[at], fieldpath.FieldNameElement(name))
			}
		}
	}
	return paths
}

// table makes the columns a definition asks for; without any, the age.
func table(columns []v1.CustomResourceColumnDefinition) ([]metav1.TableColumnDefinition, func(api.Object, metav1.Time) []any) {
	if len(columns) == 0 {
		columns = []v1.CustomResourceColumnDefinition{{
			Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
		}}
	}
	heads := make([]metav1.TableColumnDefinition, len(columns))
	for i, c := range columns {
		about := c.Description
		if about == "" {
			about = "Custom resource definition column (in JSONPath format): " + c.JSONPath
		}
		heads[i] = metav1.TableColumnDefinition{Name: c.Name, Type: c.Type, Format: c.Format, Description: about, Priority: c.Priority}
	}
	return heads, func(obj api.Object, now metav1.Time) []any {
		row := make([]any, 1, 1+len(columns))
		row[0] = obj.GetName()
		for i := range columns {
			row = append(row, cell(obj.(*unstructured.Unstructured), &columns[i], now))
		}
		return row
	}
}

func cell(u *unstructured.Unstructured, c *v1.CustomResourceColumnDefinition, now metav1.Time) any {
	p := jsonpath.New(c.Name).AllowMissingKeys(true)
	if p.Parse("{"+c.JSONPath+"}") != nil {
		return nil
	}
	results, err := p.FindResults(u.Object)
	if err != nil || len(results) == 0 || len(results[0]) == 0 {
		return nil
	}
	value := results[0][0].Interface()
	if c.Type == "string" {
		var text bytes.Buffer
		if p.PrintResults(&text, []reflect.Value{reflect.ValueOf(value)}) != nil {
			return nil
		}
		return text.String()
	}
	return typedCell(c.Type, value, now)
}

func typedCell(kind string, value any, now metav1.Time) any {
	switch v := value.(type) {
	case int64:
		switch kind {
		case "integer":
			return v
		case "number":
			return float64(v)
		}
	case float64:
		switch kind {
		case "integer":
			return int64(v)
		case "number":
			return v
		}
	case bool:
		if kind == "boolean" {
			return v
		}
	case string:
		if kind != "date" {
			return nil
		}
		var t metav1.Time
		if data, err := json.Marshal(v); err != nil || t.UnmarshalJSON(data) != nil {
			return "<invalid>"
		}
		return api.Age(t, now)
	}
	return nil
}

package apps

import (
	"encoding/json"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

func controllerRevisionResource() *api.Resource {
	doc := appsv1.ControllerRevision{}.SwaggerDoc()
	return &api.Resource{
		Group: Group, Name: "controllerrevisions", Singular: "controllerrevision", Kind: "ControllerRevision",
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[appsv1.ControllerRevision, appsv1.ControllerRevisionList]("v1", nil)},
		Strategy: api.Strategy{
			Validate: api.Check(validateRevision),
			ValidateUpdate: api.CheckUpdate(func(r, old *appsv1.ControllerRevision) field.ErrorList {
				l := &check.List{}
				l.Nonnegative(field.NewPath("revision"), r.Revision)
				l.Immutable(field.NewPath("data"), r.Data, old.Data)
				return l.Errors
			}),
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Controller", "string", "Controller of the object"),
			api.Column("Revision", "string", doc["revision"]),
			api.AgeColumn(),
		},
		Cells: api.Row(func(r *appsv1.ControllerRevision, now metav1.Time) []any {
			owner := "<none>"
			if ref := metav1.GetControllerOf(r); ref != nil {
				gv, _ := schema.ParseGroupVersion(ref.APIVersion)
				owner = strings.ToLower(gv.WithKind(ref.Kind).GroupKind().String()) + "/" + ref.Name
			}
			return []any{r.Name, owner, r.Revision, api.Age(r.CreationTimestamp, now)}
		}),
	}
}

func validateRevision(r *appsv1.ControllerRevision) field.ErrorList {
	l, at := &check.List{}, field.NewPath("data")
	l.Nonnegative(field.NewPath("revision"), r.Revision)
	var v any
	if r.Data.Raw == nil {
		l.Required(at, "data is mandatory")
	} else if err := json.Unmarshal(r.Data.Raw, &v); err != nil {
		l.Invalid(at, "<value omitted>", fmt.Sprintf("error parsing data: %v", err))
	} else if v == nil {
		l.Required(at, "data is mandatory")
	} else if _, isObject := v.(map[string]any); !isObject {
		l.Required(at, "data must be a valid JSON object")
	}
	return l.Errors
}

package apps

import (
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
				l := &check.List{Errors: validateRevision(r)}
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
	l := &check.List{}
	if len(r.Data.Raw) == 0 && r.Data.Object == nil {
		l.Required(field.NewPath("data"), "data is mandatory")
	}
	l.Nonnegative(field.NewPath("revision"), r.Revision)
	return l.Errors
}

package api

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Scale maps a scalable object to and from autoscaling/v1 Scale.
type Scale struct {
	// Get returns spec.replicas, status.replicas and the selector as text; metadata is filled by the pipeline.
	Get func(obj Object) (autoscalingv1.ScaleSpec, autoscalingv1.ScaleStatus)
	// Set writes spec.replicas.
	Set func(obj Object, replicas int32)
	// Custom is what differs for a custom resource; nil: none.
	Custom *CustomScale
}

// CustomScale is what a definition tells of the scale of its objects.
type CustomScale struct {
	Path string                // of the replicas, as the definition has it
	Has  func(obj Object) bool // whether an object tells its replicas
	// Paths are those of all versions, by apiVersion; nil where a version has no scale.
	Paths managedfields.ResourcePathMappings
}

// ScaleKind is the kind of the objects that scale subresources show.
func ScaleKind() schema.GroupVersionKind { return autoscalingv1.SchemeGroupVersion.WithKind("Scale") }

// Of is the Scale of an object; they share nothing.
func (s *Scale) Of(obj Object) *autoscalingv1.Scale {
	out := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{
		Name: obj.GetName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(), CreationTimestamp: obj.GetCreationTimestamp(),
	}}
	out.Spec, out.Status = s.Get(obj)
	out.SetGroupVersionKind(ScaleKind())
	return out
}

// Managers turns who manages obj, of resource r and written in version gv, into who manages its Scale, and back.
func (s *Scale) Managers(r *Resource, gv schema.GroupVersion, obj Object) *managedfields.ScaleHandler {
	paths := managedfields.ResourcePathMappings{}
	if s.Custom != nil {
		paths = s.Custom.Paths
	} else {
		for i := range r.Versions {
			paths[schema.GroupVersion{Group: r.Group, Version: r.Versions[i].Name}.String()] = fieldpath.MakePathOrDie("spec", "replicas")
		}
	}
	return managedfields.NewScaleHandler(obj.GetManagedFields(), gv, paths)
}

// Resource describes Scales as objects of their own. Their table tells more of built-in resources than of custom ones.
func (s *Scale) Resource() *Resource {
	r := &Resource{
		Group: autoscalingv1.GroupName, Name: "scales", Singular: "scale", Kind: "Scale", Namespaced: true,
		Versions: []Version{{Name: "v1", New: func() Object { return &autoscalingv1.Scale{} }}},
		Cells: Row(func(o *autoscalingv1.Scale, now metav1.Time) []any {
			desired := any(int64(o.Spec.Replicas))
			if s.Custom != nil && o.Spec.Replicas == 0 {
				desired = nil // the column is read from JSON, which leaves a zero out
			}
			return []any{o.Name, desired, int64(o.Status.Replicas), Age(o.CreationTimestamp, now)}
		}),
	}
	age := AgeColumn()
	if s.Custom != nil {
		age.Type = "date"
		r.Columns = []metav1.TableColumnDefinition{
			Column("Desired", "integer", "Number of desired replicas"), Column("Available", "integer", "Number of actual replicas"), age,
		}
		return r
	}
	r.WholeTable = true // its first column has no format
	r.Columns = []metav1.TableColumnDefinition{
		Column("Name", "string", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
		Column("Desired", "integer", autoscalingv1.ScaleSpec{}.SwaggerDoc()["replicas"]),
		Column("Available", "integer", autoscalingv1.ScaleStatus{}.SwaggerDoc()["replicas"]), age,
	}
	return r
}

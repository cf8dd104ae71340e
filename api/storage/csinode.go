package storage

import (
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

func csiNodeResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "csinodes", Singular: "csinode", Kind: "CSINode",
		Versions: []api.Version{api.Versioned[storagev1.CSINode, storagev1.CSINodeList]("v1", nil)},
		Strategy: api.Strategy{
			// What a driver says of its storage's health is behind a feature gate that is off by default upstream.
			PrepareForCreate:        api.On(func(n *storagev1.CSINode) { n.Status = storagev1.CSINodeStatus{} }),
			PrepareForUpdate:        api.OnUpdate(func(n, old *storagev1.CSINode) { n.Status = old.Status }),
			Validate:                api.Check(validateCSINode),
			ValidateUpdate:          api.CheckUpdate(validateCSINodeUpdate),
			DenyUnconditionalUpdate: true,
		},
		Subresources: []api.Subresource{api.StatusOnly(func(n, old *storagev1.CSINode) { n.Spec, n.Status = old.Spec, old.Status }, nil)},
		Columns: []metav1.TableColumnDefinition{
			api.Column("Drivers", "integer", "Drivers indicates the number of CSI drivers registered on the node"),
			api.AgeColumn(),
		},
		Cells: api.Row(func(n *storagev1.CSINode, now metav1.Time) []any {
			return []any{n.Name, int64(len(n.Spec.Drivers)), api.Age(n.CreationTimestamp, now)}
		}),
	}
}

const maxNodeID = 256

func validateCSINode(n *storagev1.CSINode) field.ErrorList {
	l, names := &check.List{}, sets.Set[string]{}
	for i, d := range n.Spec.Drivers {
		at := specPath.Child("drivers").Index(i)
		podspec.CheckCSIDriverName(l, at.Child("name"), d.Name)
		if d.NodeID == "" {
			l.Required(at.Child("nodeID"), d.NodeID)
		} else if len(d.NodeID) > maxNodeID {
			l.Invalid(at.Child("nodeID"), d.NodeID, "must be 256 characters or less")
		}
		if a := d.Allocatable; a != nil && a.Count != nil {
			l.Nonnegative(at.Child("allocatable", "count"), int64(*a.Count))
		}
		if names.Has(d.Name) {
			l.Duplicate(at.Child("name"), d.Name)
		}
		names.Insert(d.Name)
		keys := sets.Set[string]{}
		for _, k := range d.TopologyKeys {
			if k == "" {
				l.Required(at, k)
			}
			if keys.Has(k) {
				l.Duplicate(at, k)
			}
			keys.Insert(k)
			l.QualifiedName(at, k)
		}
	}
	return l.Errors
}

func validateCSINodeUpdate(n, old *storagev1.CSINode) field.ErrorList {
	l := &check.List{Errors: validateCSINode(n)}
	for _, was := range old.Spec.Drivers {
		for _, now := range n.Spec.Drivers {
			if now.Name == was.Name {
				now.Allocatable, was.Allocatable = nil, nil
				l.Immutable(specPath.Child("drivers"), now, was)
			}
		}
	}
	return l.Errors
}

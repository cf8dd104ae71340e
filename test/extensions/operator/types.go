package main

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	group = "demo.example.com"
	// colour is where a v1beta1 Site keeps what only v1 has a field for.
	colour = group + "/colour"
)

var (
	stored = schema.GroupVersion{Group: group, Version: "v1"}
	older  = schema.GroupVersion{Group: group, Version: "v1beta1"}
)

// Site is version v1, the one that is stored: pages in a ConfigMap of its own.
type Site struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   SiteSpec   `json:"spec"`
	Status SiteStatus `json:"status,omitempty"`
}

type SiteSpec struct {
	Host   string `json:"host"`
	Pages  int32  `json:"pages"`
	Colour string `json:"colour,omitempty"`
}

type SiteStatus struct {
	Pages      int32              `json:"pages,omitempty"`
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// OldSite is version v1beta1: the page count has another name, and there is no colour.
type OldSite struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec struct {
		Host  string `json:"host"`
		Count int32  `json:"count"`
	} `json:"spec"`
	Status SiteStatus `json:"status,omitempty"`
}

type SiteList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Site `json:"items"`
}

func (s *Site) DeepCopyObject() runtime.Object {
	out := *s
	s.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.Conditions = append([]metav1.Condition(nil), s.Status.Conditions...)
	return &out
}

func (s *OldSite) DeepCopyObject() runtime.Object {
	out := *s
	s.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Status.Conditions = append([]metav1.Condition(nil), s.Status.Conditions...)
	return &out
}

func (l *SiteList) DeepCopyObject() runtime.Object {
	out := *l
	out.Items = make([]Site, len(l.Items))
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopyObject().(*Site)
	}
	return &out
}

func addTypes(scheme *runtime.Scheme) {
	scheme.AddKnownTypes(stored, &Site{}, &SiteList{})
	scheme.AddKnownTypeWithName(older.WithKind("Site"), &OldSite{})
	metav1.AddToGroupVersion(scheme, stored)
	metav1.AddToGroupVersion(scheme, older)
}

func toOld(_ context.Context, from *Site, to *OldSite) error {
	from.ObjectMeta.DeepCopyInto(&to.ObjectMeta)
	to.Spec.Host, to.Spec.Count, to.Status = from.Spec.Host, from.Spec.Pages, from.Status
	if from.Spec.Colour != "" {
		metav1.SetMetaDataAnnotation(&to.ObjectMeta, colour, from.Spec.Colour)
	}
	return nil
}

func fromOld(_ context.Context, from *OldSite, to *Site) error {
	from.ObjectMeta.DeepCopyInto(&to.ObjectMeta)
	to.Spec = SiteSpec{Host: from.Spec.Host, Pages: from.Spec.Count, Colour: from.Annotations[colour]}
	to.Status = from.Status
	delete(to.Annotations, colour)
	return nil
}

package customresource

import (
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// model is the version's OpenAPI schema; see api.Version. Version 2 cannot say
// all that version 3 can.
func (v *edition) model(v2 bool) (*spec.Schema, bool, error) {
	s, err := v.structural()
	if err != nil || s == nil || v2 && (s.XPreserveUnknownFields || v.d.Outline.Spec.PreserveUnknownFields) {
		return nil, true, err
	}
	s = s.Unfold()
	if v2 {
		s = openapiv2.ToStructuralOpenAPIV2(s)
	}
	return s.ToKubeOpenAPI(), false, nil
}

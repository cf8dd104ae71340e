// Package config is the configuration files of authentication and
// authorization, apiserver.config.k8s.io's AuthenticationConfiguration and
// AuthorizationConfiguration: it reads and checks them, and evaluates what
// they say about a token's claims and about a request. It does no I/O.
package config

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const group = "apiserver.config.k8s.io"

// decode reads YAML or JSON of a kind strictly. The versions it may be of are
// alike, field by field.
func decode(data []byte, kind string, into any) error {
	if len(data) == 0 {
		return errors.New("empty config data")
	}
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(text, &meta); err != nil {
		return err
	}
	gv, err := schema.ParseGroupVersion(meta.APIVersion)
	if err != nil {
		return err
	}
	switch known := gv.Group == group && (gv.Version == "v1" || gv.Version == "v1beta1" || gv.Version == "v1alpha1"); {
	case meta.Kind == "":
		return fmt.Errorf("Object 'Kind' is missing in '%s'", data) //nolint:staticcheck // upstream's words
	case known && meta.Kind != kind:
		return fmt.Errorf("expected %s, got %s", kind, meta.Kind)
	case !known:
		return fmt.Errorf("no kind %q is registered for version %q", meta.Kind, meta.APIVersion)
	}
	strict, err := kjson.UnmarshalStrict(text, into)
	if err != nil {
		return err
	}
	if len(strict) > 0 {
		return runtime.NewStrictDecodingError(strict)
	}
	return nil
}

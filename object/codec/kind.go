package codec

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/object/wire"
)

// PeekKind reads only the kind a body claims to be.
func PeekKind(media string, body []byte) (schema.GroupVersionKind, error) {
	var tm struct{ APIVersion, Kind string }
	switch media {
	case Protobuf:
		env, err := wire.Open(body)
		if err != nil {
			return schema.GroupVersionKind{}, err
		}
		tm.APIVersion, tm.Kind = env.APIVersion, env.Kind
	case YAML:
		if err := yaml.Unmarshal(body, &tm); err != nil {
			return schema.GroupVersionKind{}, err
		}
	default:
		if err := json.Unmarshal(body, &tm); err != nil {
			return schema.GroupVersionKind{}, err
		}
	}
	if tm.APIVersion == "" {
		return schema.GroupVersionKind{Kind: tm.Kind}, nil
	}
	gv, err := schema.ParseGroupVersion(tm.APIVersion)
	return gv.WithKind(tm.Kind), err
}

// Summary shows the first n bytes of a body: as text if it is JSON, else in hex.
func Summary(data []byte, n int) string {
	switch {
	case len(data) == 0:
		return "<empty>"
	case data[0] == '{':
		if len(data) > n {
			return string(data[:n]) + " ..."
		}
		return string(data)
	case len(data) > n:
		return fmt.Sprintf("%x ...", data[:n])
	}
	return fmt.Sprintf("%x", data)
}

package codec

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Configuration decodes the body of an apply, which is YAML. With strict, twice
// is an error that names the keys that are given twice, of which the last counts.
// Numbers are int64 or float64, as everywhere in unstructured content.
func Configuration(body []byte, strict bool) (config map[string]any, twice, err error) {
	if config := plainJSON(body); config != nil {
		return config, nil, nil
	}
	config = map[string]any{}
	if err := yaml.Unmarshal(body, &config); err != nil {
		return nil, nil, err
	}
	data, err := json.Marshal(config)
	if err != nil {
		return nil, nil, err
	}
	config = map[string]any{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &config); err != nil {
		return nil, nil, err
	}
	if strict {
		twice = yaml.UnmarshalStrict(body, &map[string]any{})
	}
	return config, twice, nil
}

// plainJSON decodes a JSON object, as most clients send, if a YAML parser,
// which takes ten times as long, would find the same in it; else it returns nil.
func plainJSON(body []byte) (config map[string]any) {
	if body = bytes.TrimLeft(body, " \n"); len(body) == 0 || body[0] != '{' || !utf8.Valid(body) {
		return nil
	}
	twice, err := kjson.UnmarshalStrict(body, &config, kjson.DisallowDuplicateFields)
	if err != nil || len(twice) > 0 || !sameInYAML(config) {
		return nil
	}
	return config
}

// sameInYAML leaves out fractions, which YAML makes whole numbers of where it
// can, and the key by which it merges.
func sameInYAML(v any) bool {
	switch v := v.(type) {
	case float64:
		return false
	case []any:
		for _, e := range v {
			if !sameInYAML(e) {
				return false
			}
		}
	case map[string]any:
		for k, e := range v {
			if k == "<<" || !sameInYAML(e) {
				return false
			}
		}
	}
	return true
}

// Package codec turns request bodies into typed objects and typed objects
// into bytes, in JSON, YAML and protobuf, with upstream's error texts.
package codec

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured/unstructuredscheme"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/types"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/object/quantities"
	"github.com/skiff-project/skiff/object/wire"
)

// Media types of request and response bodies.
const (
	JSON     = "application/json"
	YAML     = "application/yaml"
	Protobuf = "application/vnd.kubernetes.protobuf"
)

// Codec decodes and encodes the types of one scheme. It is immutable and safe
// for concurrent use.
type Codec struct {
	scheme                             scheme
	quantities                         quantities.Checker
	json, jsonStrict, yaml, yamlStrict *json.Serializer
}

// scheme makes objects and knows their kinds.
type scheme interface {
	runtime.ObjectCreater
	runtime.ObjectTyper
}

// New returns a codec for the types in scheme.
func New(s *runtime.Scheme) *Codec { return with(s) }

// Unstructured returns a codec for objects of any kind as maps: JSON and YAML only.
func Unstructured() *Codec {
	return with(struct {
		runtime.ObjectCreater
		runtime.ObjectTyper
	}{unstructuredscheme.NewUnstructuredCreator(), unstructuredscheme.NewUnstructuredObjectTyper()})
}

func with(t scheme) *Codec {
	mk := func(yaml, strict bool) *json.Serializer {
		return json.NewSerializerWithOptions(json.DefaultMetaFactory, t, t, json.SerializerOptions{Yaml: yaml, Strict: strict})
	}
	return &Codec{scheme: t, json: mk(false, false), jsonStrict: mk(false, true), yaml: mk(true, false), yamlStrict: mk(true, true)}
}

// Request is one body to decode.
type Request struct {
	Media  string // JSON, YAML or Protobuf
	Strict bool   // report unknown and duplicate fields
	Body   []byte
	Want   schema.GroupVersionKind // kind assumed where the body does not say
}

// Decode decodes a body into into, whose kind is the wanted one. It returns
// the object decoded (another than into when the body says another kind), the
// kind found and an error. A strict decoding error (see
// runtime.AsStrictDecodingError) comes with a usable object.
func (c *Codec) Decode(r Request, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if r.Media == Protobuf {
		return c.decodeProtobuf(r, into)
	}
	if err := c.checkQuantities(r, into); err != nil {
		return nil, &r.Want, err
	}
	switch r.Media {
	case YAML:
		if r.Strict {
			return c.yamlStrict.Decode(r.Body, &r.Want, into)
		}
		return c.yaml.Decode(r.Body, &r.Want, into)
	}
	if obj, gvk, err, done := decodeFast(r, into); done {
		return obj, gvk, err
	}
	if r.Strict {
		return c.jsonStrict.Decode(r.Body, &r.Want, into)
	}
	return c.json.Decode(r.Body, &r.Want, into)
}

// checkQuantities checks the body as into, and as what it says it is.
func (c *Codec) checkQuantities(r Request, into runtime.Object) error {
	check := c.quantities.JSON
	if r.Media == YAML {
		check = c.quantities.YAML
	}
	if err := check(reflect.TypeOf(into), r.Body); err != nil || !quantities.Suspect(r.Body) {
		return err
	}
	gvk, err := PeekKind(r.Media, r.Body)
	if err != nil || gvk == r.Want {
		return nil //nolint:nilerr // who decodes it says what is wrong
	}
	other, err := c.scheme.New(gvk)
	if err != nil {
		return nil //nolint:nilerr // nor is it decoded
	}
	return check(reflect.TypeOf(other), r.Body)
}

// CheckPatch refuses a patch of an object like obj for a quantity that would take minutes to read.
func (c *Codec) CheckPatch(kind types.PatchType, obj runtime.Object, body []byte) error {
	check := c.quantities.JSON
	switch kind {
	case types.JSONPatchType:
		check = c.quantities.Patch
	case types.ApplyYAMLPatchType:
		check = c.quantities.YAML
	}
	return check(reflect.TypeOf(obj), body)
}

// decodeFast decodes JSON of the expected kind in one pass. Everything out of
// the ordinary is left to the serializer, for its error texts; done is false then.
func decodeFast(r Request, into runtime.Object) (_ runtime.Object, _ *schema.GroupVersionKind, err error, done bool) {
	if _, ok := into.(runtime.Unstructured); ok {
		return nil, nil, nil, false
	}
	var strict []error
	if r.Strict {
		strict, err = kjson.UnmarshalStrict(r.Body, into)
	} else {
		err = kjson.UnmarshalCaseSensitivePreserveInts(r.Body, into)
	}
	gvk := into.GetObjectKind().GroupVersionKind()
	if gvk.Version == "" && gvk.Group == "" {
		gvk.Group, gvk.Version = r.Want.Group, r.Want.Version
	}
	if gvk.Kind == "" {
		gvk.Kind = r.Want.Kind
	}
	if err != nil || gvk != r.Want {
		resettable, ok := into.(interface{ Reset() })
		if ok {
			resettable.Reset()
		}
		return nil, nil, nil, false
	}
	if len(strict) > 0 {
		return into, &gvk, runtime.NewStrictDecodingError(strict), true
	}
	return into, &gvk, nil, true
}

func (c *Codec) decodeProtobuf(r Request, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	env, err := wire.Open(r.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
	}
	gvk := r.Want
	if env.APIVersion != "" || env.Kind != "" {
		gv, err := schema.ParseGroupVersion(env.APIVersion)
		if err != nil {
			return nil, nil, err
		}
		gvk = gv.WithKind(env.Kind)
		if gvk.Kind == "" {
			gvk.Kind = r.Want.Kind
		}
		if env.APIVersion == "" {
			gvk.Group, gvk.Version = r.Want.Group, r.Want.Version
		}
	}
	target := into
	if gvk != r.Want {
		if target, err = c.scheme.New(gvk); err != nil {
			return nil, &gvk, err
		}
	}
	m, ok := target.(interface{ Unmarshal([]byte) error })
	if !ok {
		return nil, &gvk, fmt.Errorf("object %T does not implement the protobuf marshalling interface and cannot be decoded", target)
	}
	if err := c.quantities.Protobuf(reflect.TypeOf(target), env.Raw); err != nil {
		return nil, &gvk, err
	}
	if err := m.Unmarshal(env.Raw); err != nil {
		return nil, &gvk, err
	}
	target.GetObjectKind().SetGroupVersionKind(gvk)
	return target, &gvk, nil
}

// AppendJSON appends obj as one line of JSON.
func AppendJSON(dst []byte, obj any) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	if err := stdjson.NewEncoder(buf).Encode(obj); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// ToJSON returns as JSON what is encoded in media; of other media it knows nothing and returns "".
func (c *Codec) ToJSON(media string, data []byte) ([]byte, error) {
	switch media {
	case JSON:
		return data, nil
	case YAML:
		return yaml.YAMLToJSON(data)
	case Protobuf:
		obj, _, err := c.decodeProtobuf(Request{Body: data}, nil)
		if err != nil {
			return nil, err
		}
		return AppendJSON(nil, obj)
	}
	return []byte(`""`), nil
}

// Pretty returns obj as indented JSON.
func Pretty(obj any) ([]byte, error) { return stdjson.MarshalIndent(obj, "", "  ") }

// ToYAML returns obj as YAML.
func ToYAML(obj any) ([]byte, error) {
	data, err := stdjson.Marshal(obj)
	if err != nil {
		return nil, err
	}
	return yaml.JSONToYAML(data)
}

// JSONWithKind returns the JSON of an object, given its JSON without kind and
// apiVersion, with both put in front, where Kubernetes types have them.
func JSONWithKind(kind, apiVersion string, bare []byte) []byte {
	out := make([]byte, 0, len(bare)+len(kind)+len(apiVersion)+28)
	out = append(out, `{"kind":"`...)
	out = append(out, kind...)
	out = append(out, `","apiVersion":"`...)
	out = append(out, apiVersion...)
	out = append(out, '"')
	if len(bare) > 2 && bare[1] != '}' {
		out = append(out, ',')
	}
	return append(out, bare[1:]...)
}

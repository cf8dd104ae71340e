// Package transcode turns the protobuf form of an object into JSON without
// making the object: what encoding/json says of the decoded one, byte for
// byte, at a tenth of the cost.
//
// A Plan is made once for a Go type, from its json and protobuf tags. Writing
// follows the plan: one pass over a message finds its fields, another writes
// them in the order of the Go struct.
package transcode

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Plan is how objects of one type are written. Safe for concurrent use.
type Plan struct{ root *message }

// Plans makes plans; what types share is made once. Safe for concurrent use;
// the zero value is ready.
type Plans struct {
	mu   sync.Mutex
	made map[reflect.Type]*message
}

// ErrNoPlan is returned, wrapped, for a type with a form that is not known here.
var ErrNoPlan = errors.New("no plan")

// For returns the plan of an object's type: a struct, with its metadata in field 1.
func (p *Plans) For(t reflect.Type) (*Plan, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := maps.Clone(p.made)
	if p.made == nil {
		p.made = map[reflect.Type]*message{}
	}
	m, err := p.message(t)
	if err != nil {
		p.made = before // without what is half made
		return nil, fmt.Errorf("%w: %s: %w", ErrNoPlan, t, err)
	}
	return &Plan{m}, nil
}

type form uint8

const (
	formMessage form = iota
	formString
	formBytes
	formBool
	formInt
	formInt32
	formMap
	formItems // a message that is a list: its field 1
	formTime
	formMicroTime
	formDuration
	formQuantity
	formIntOrString
	formRaw
	formFields
)

// emptyWhenAbsent tells the forms that omitempty knows an empty value of.
func (f form) emptyWhenAbsent() bool {
	return formString <= f && f <= formItems
}

// known are the types that write themselves.
var known = map[reflect.Type]form{
	reflect.TypeFor[metav1.Time]():          formTime,
	reflect.TypeFor[metav1.MicroTime]():     formMicroTime,
	reflect.TypeFor[metav1.Duration]():      formDuration,
	reflect.TypeFor[resource.Quantity]():    formQuantity,
	reflect.TypeFor[intstr.IntOrString]():   formIntOrString,
	reflect.TypeFor[runtime.RawExtension](): formRaw,
	reflect.TypeFor[metav1.FieldsV1]():      formFields,
}

// value is how a value is written.
type value struct {
	form form
	msg  *message // of formMessage
	elem *value   // of formMap and formItems
}

// wire is the wire type of a value: a varint or bytes.
func (v *value) wire() byte {
	switch v.form {
	case formBool, formInt, formInt32:
		return 0
	}
	return 2
}

type field struct {
	value
	key      string // `"name":`
	repeated bool
	pointer  bool
	inline   bool // its fields are its parent's
	omit     bool // left out when empty
	absent   bool // left out when it is not there
	omitZero bool // of a time: left out when zero
}

// message is a struct's fields in the order of the struct.
type message struct {
	fields  []field
	byTag   []int16 // by field number: index into fields, -1 for none
	version int     // of an ObjectMeta: the index of resourceVersion; else -1
}

var (
	objectMeta = reflect.TypeFor[metav1.ObjectMeta]()
	typeMeta   = reflect.TypeFor[metav1.TypeMeta]()
)

func (p *Plans) message(t reflect.Type) (*message, error) {
	if m, ok := p.made[t]; ok {
		return m, nil
	}
	m := &message{version: -1}
	p.made[t] = m // now: it may hold others of its kind
	for i := range t.NumField() {
		sf := t.Field(i)
		if sf.Type == typeMeta && sf.Anonymous || sf.Tag.Get("json") == "-" {
			continue // protobuf has no place for it
		}
		f, number, err := p.field(sf)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", sf.Name, err)
		}
		for len(m.byTag) <= number {
			m.byTag = append(m.byTag, -1)
		}
		m.byTag[number] = int16(len(m.fields))
		if t == objectMeta && sf.Name == "ResourceVersion" {
			m.version = len(m.fields)
		}
		m.fields = append(m.fields, f)
	}
	return m, nil
}

const maxNumber = 1 << 10 // of a field; the largest today is below 50

func (p *Plans) field(sf reflect.StructField) (f field, number int, err error) {
	name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
	proto := strings.Split(sf.Tag.Get("protobuf"), ",")
	if len(proto) < 2 || !sf.IsExported() {
		return f, 0, errors.New("it has no protobuf form")
	}
	if number, err = strconv.Atoi(proto[1]); err != nil || number < 1 || number > maxNumber {
		return f, 0, fmt.Errorf("protobuf tag %q", sf.Tag.Get("protobuf"))
	}
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "omitempty":
			f.omit = true
		case "omitzero":
			f.omitZero = true
		case "inline", "":
		default:
			return f, 0, fmt.Errorf("json option %q", o)
		}
	}
	t := sf.Type
	if f.repeated = t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 && !isMessage(t); f.repeated {
		t = t.Elem()
	}
	if f.pointer = t.Kind() == reflect.Pointer; f.pointer {
		t = t.Elem()
	}
	if f.value, err = p.value(t); err != nil {
		return f, 0, err
	}
	if f.inline = sf.Anonymous && name == ""; f.inline && (f.form != formMessage || f.pointer || f.repeated) {
		return f, 0, errors.New("it is embedded")
	}
	f.absent = f.omit && (f.pointer || f.repeated || f.form.emptyWhenAbsent())
	if name == "" {
		name = sf.Name
	}
	f.key = string(appendString(nil, []byte(name))) + ":"
	if f.omitZero && f.form != formTime {
		return f, 0, errors.New("json option omitzero")
	}
	return f, number, nil
}

func (p *Plans) value(t reflect.Type) (v value, err error) {
	if form, ok := known[t]; ok {
		return value{form: form}, nil
	}
	for _, own := range []reflect.Type{reflect.TypeFor[json.Marshaler](), reflect.TypeFor[encoding.TextMarshaler]()} {
		if t.Implements(own) || reflect.PointerTo(t).Implements(own) {
			return v, fmt.Errorf("%s writes itself", t)
		}
	}
	switch t.Kind() {
	case reflect.String:
		return value{form: formString}, nil
	case reflect.Bool:
		return value{form: formBool}, nil
	case reflect.Int64:
		return value{form: formInt}, nil
	case reflect.Int32:
		return value{form: formInt32}, nil
	case reflect.Struct:
		v.msg, err = p.message(t)
		return v, err
	case reflect.Map:
		if t.Key().Kind() == reflect.String {
			elem, err := p.value(t.Elem())
			return value{form: formMap, elem: &elem}, err
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return value{form: formBytes}, nil
		}
		if isMessage(t) {
			elem, err := p.value(t.Elem())
			return value{form: formItems, elem: &elem}, err
		}
	}
	return v, fmt.Errorf("%s is not known", t)
}

// isMessage tells a list that is a message of its own from a repeated field.
func isMessage(t reflect.Type) bool {
	_, ok := reflect.New(t).Interface().(interface{ Unmarshal([]byte) error })
	return ok
}

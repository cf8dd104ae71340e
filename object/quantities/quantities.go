// Package quantities refuses quantities that take minutes to read: the library
// that reads them computes with every digit, and with every zero that an
// exponent stands for. Nothing that is measured has a hundredth as many.
//
// Bodies are looked at before they are decoded. Most have nothing in them that
// looks so, which a glance tells; the others are followed by their Go type, as
// a label or an annotation may hold anything.
package quantities

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/object/transcode"
)

// Bounds of a quantity: characters, and what stands behind an "e".
const (
	maxLength   = 1000
	maxExponent = 9999
)

// longExponent is how many digits one has that is over the bound, at least.
const longExponent = 5

// Checker checks bodies of any types. The zero value is ready, and safe for concurrent use.
type Checker struct {
	plans transcode.Plans
	holds sync.Map // of reflect.Type: whether there are quantities in it
}

// JSON checks an object of type t, or a merge or strategic merge patch of one.
// A body that is no JSON is left to who decodes it.
func (c *Checker) JSON(t reflect.Type, body []byte) error {
	if !suspectText(body) || !c.has(t) {
		return nil
	}
	return follow(t, body)
}

// YAML checks an object of type t, or the configuration of an apply.
func (c *Checker) YAML(t reflect.Type, body []byte) error {
	if !Suspect(body) || !c.has(t) {
		return nil
	}
	body, err := yaml.YAMLToJSON(body)
	if err != nil {
		return nil //nolint:nilerr // who decodes it says what is wrong
	}
	return follow(t, body)
}

// Protobuf checks the message of an object of type t.
func (c *Checker) Protobuf(t reflect.Type, raw []byte) error {
	if !suspect(raw) || !c.has(t) {
		return nil
	}
	plan, err := c.plans.For(indirect(t))
	if err != nil {
		return err
	}
	body, err := plan.AppendJSON(nil, raw, 0)
	if err != nil {
		return nil //nolint:nilerr // who decodes it says what is wrong
	}
	return follow(t, body)
}

// Patch checks a JSON patch of an object of type t.
func (c *Checker) Patch(t reflect.Type, body []byte) error {
	if !suspectText(body) || !c.has(t) {
		return nil
	}
	var ops []map[string]json.RawMessage // whose keys are as they are written
	if json.Unmarshal(body, &ops) != nil {
		return nil
	}
	for _, op := range ops {
		var path string
		if json.Unmarshal(op["path"], &path) != nil {
			continue
		}
		at := t
		for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
			if path != "" {
				at = inside(at, unescape.Replace(name))
			}
		}
		if err := follow(at, op["value"]); err != nil {
			return err
		}
	}
	return nil
}

// unescape is RFC 6901's.
var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// suspectText is suspect for JSON, in which any character may be escaped.
func suspectText(body []byte) bool { return suspect(body) || bytes.Contains(body, []byte(`\u00`)) }

// Suspect tells whether a body in JSON or YAML, which has more ways to escape
// a character, is looked at more closely.
func Suspect(body []byte) bool { return suspect(body) || bytes.IndexByte(body, '\\') >= 0 }

// suspect tells whether there is a long number, or a long exponent, anywhere.
func suspect(body []byte) bool {
	isDigit := func(i int) bool { return body[i]-'0' <= 9 }
	for i := longExponent - 1; i < len(body); i += longExponent { // a run of so many has one of these
		if !isDigit(i) {
			continue
		}
		first, last := i, i
		for first > 0 && isDigit(first-1) {
			first--
		}
		for last+1 < len(body) && isDigit(last+1) {
			last++
		}
		i = last
		if last-first+1 > maxLength/4 { // a point, or a sign, may part them
			return true
		}
		if last-first+1 < longExponent || first == 0 {
			continue
		}
		e := first - 1
		if e > 0 && (body[e] == '+' || body[e] == '-') {
			e--
		}
		if e > 0 && body[e]|0x20 == 'e' && (isDigit(e-1) || body[e-1] == '.') {
			return true
		}
	}
	return false
}

// follow reads a JSON value along a type, and checks the quantities in it. A
// key that is given twice counts twice: it is decoded as often.
func follow(t reflect.Type, body []byte) error {
	w := walker{Decoder: json.NewDecoder(bytes.NewReader(body))}
	w.UseNumber()
	if err := w.value(t); !errors.Is(err, errNotJSON) {
		return err
	}
	return nil // who decodes it says what is wrong
}

type walker struct {
	*json.Decoder
	path []string
}

// maxDepth is as deep as decoders go.
const maxDepth = 10_000

var errNotJSON = errors.New("not JSON, or too deep")

func (w *walker) value(t reflect.Type) error {
	token, err := w.Token()
	if err != nil || len(w.path) > maxDepth {
		return errNotJSON
	}
	switch token := token.(type) {
	case json.Delim:
		for i := 0; w.More(); i++ {
			key := strconv.Itoa(i)
			if token == '{' {
				name, err := w.Token()
				if err != nil {
					return errNotJSON
				}
				key = name.(string)
			}
			w.path = append(w.path, key)
			if err := w.value(inside(t, key)); err != nil {
				return err
			}
			w.path = w.path[:len(w.path)-1]
		}
		if _, err := w.Token(); err != nil {
			return errNotJSON
		}
	case string:
		return w.check(t, token)
	case json.Number:
		return w.check(t, token.String())
	}
	return nil
}

var quantity = reflect.TypeFor[resource.Quantity]()

func (w *walker) check(t reflect.Type, text string) error {
	if t == nil || indirect(t) != quantity {
		return nil
	}
	path := strings.Join(w.path, ".")
	if len(text) > maxLength {
		return fmt.Errorf("%s: a quantity of %d characters: there may be %d", path, len(text), maxLength)
	}
	if i := strings.IndexAny(text, "eE"); i >= 0 && i+1 < len(text) {
		n, err := strconv.Atoi(text[i+1:])
		if errors.Is(err, strconv.ErrRange) || err == nil && (n > maxExponent || n < -maxExponent) {
			return fmt.Errorf("%s: a quantity with the exponent %s: it may be from -%d to %d", path, text[i+1:], maxExponent, maxExponent)
		}
	}
	return nil
}

// inside is the type of what an object or list of type t has under a key; nil: nobody knows.
func inside(t reflect.Type, key string) reflect.Type {
	if t == nil {
		return nil
	}
	switch t = indirect(t); t.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array:
		return t.Elem()
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			if strings.Contains(opts, "inline") || f.Anonymous && name == "" {
				if found := inside(f.Type, key); found != nil {
					return found
				}
			} else if name == key {
				return f.Type
			}
		}
	}
	return nil
}

func indirect(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// has tells whether a type has quantities somewhere.
func (c *Checker) has(t reflect.Type) bool {
	if known, ok := c.holds.Load(t); ok {
		return known.(bool)
	}
	found := reaches(t, map[reflect.Type]bool{})
	c.holds.Store(t, found)
	return found
}

func reaches(t reflect.Type, seen map[reflect.Type]bool) bool {
	t = indirect(t)
	if t == quantity {
		return true
	}
	if seen[t] {
		return false
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array:
		return reaches(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if reaches(t.Field(i).Type, seen) {
				return true
			}
		}
	}
	return false
}

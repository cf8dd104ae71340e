package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// configFile is one of upstream's component configurations: which fields there
// are, and what becomes of them. Each line of fields is a path and
//
//	--flag      it sets that flag, unless it is given on the command line
//	!--flag     the same, where a zero means something
//	~           it is harmless
//	= a | b     only these values are there; an unset or zero one always is
//	! a | b     the same, but for a field whose zero value means something
//
// A path stands for everything below it, in a list for each item.
type configFile struct {
	apiVersion, kind string
	fields           string
	// custom sets what does not fit a line: it is called with a path's value.
	custom map[string]func(value any) error
}

// load reads a file into the program's flags. Unknown fields are errors.
func (p *program) load(file string, c configFile) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	tree := map[string]any{}
	if err := yaml.UnmarshalStrict(data, &tree); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if tree["apiVersion"] != c.apiVersion || tree["kind"] != c.kind {
		return fmt.Errorf("%s: it is a %v %v, not a %s %s", file, tree["apiVersion"], tree["kind"], c.apiVersion, c.kind)
	}
	delete(tree, "apiVersion")
	delete(tree, "kind")
	rules := map[string]string{}
	for line := range strings.Lines(c.fields) {
		if path, rule, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			rules[path] = strings.TrimSpace(rule)
		}
	}
	r := configReader{p: p, custom: c.custom, rules: rules, commandLine: map[string]bool{}}
	for name := range rules {
		if flag, ok := strings.CutPrefix(strings.TrimPrefix(rules[name], "!"), "--"); ok {
			r.commandLine[flag] = p.given(flag)
		}
	}
	if err := r.walk("", tree); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

type configReader struct {
	p           *program
	custom      map[string]func(any) error
	rules       map[string]string
	commandLine map[string]bool // flags given there, which win
}

func (r *configReader) walk(path string, v any) error {
	if set, ok := r.custom[path]; ok {
		if zero(v) {
			return nil
		}
		if err := set(v); err != nil {
			return fmt.Errorf("field %s: %w", path, err)
		}
		return nil
	}
	if rule, ok := r.rules[path]; ok {
		if err := r.apply(path, rule, v); err != nil {
			return fmt.Errorf("field %s: %w", path, err)
		}
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok && v == nil && r.parent(path) {
		return nil
	}
	if !ok || path != "" && !r.parent(path) {
		return fmt.Errorf("unknown field %q", path)
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		below := key
		if path != "" {
			below = path + "." + key
		}
		if err := r.walk(below, m[key]); err != nil {
			return err
		}
	}
	return nil
}

// parent says whether there are fields below path.
func (r *configReader) parent(path string) bool {
	below := func(name string) bool { return strings.HasPrefix(name, path+".") }
	for name := range r.rules {
		if below(name) {
			return true
		}
	}
	for name := range r.custom {
		if below(name) {
			return true
		}
	}
	return false
}

func (r *configReader) apply(path, rule string, v any) error {
	rule, meant := strings.CutPrefix(rule, "!")
	if flag, ok := strings.CutPrefix(rule, "--"); ok {
		if v == nil || r.commandLine[flag] || zero(v) && v != false && !meant {
			return nil
		}
		text, err := flagText(v)
		if err != nil {
			return err
		}
		if err := r.p.fs.Set(flag, text); err != nil {
			return fmt.Errorf("%v: %w", v, err)
		}
		return nil
	}
	if rule == "~" || v == nil {
		return nil
	}
	list := strings.TrimSpace(strings.TrimPrefix(rule, "="))
	if !meant && zero(v) {
		return nil
	}
	text, err := flagText(v)
	if err != nil {
		return err
	}
	allowed := strings.Split(list, " | ")
	if list == "" {
		return fmt.Errorf("%s is not supported: leave it out", text)
	}
	if !slices.Contains(allowed, text) {
		return fmt.Errorf("%s is not supported: leave it out or give %s", text, alternatives(allowed))
	}
	return nil
}

// zero says whether a value is what Go's zero value is written as.
func zero(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case bool:
		return !v
	case string:
		return v == "" || v == "0" || v == "0s"
	case float64:
		return v == 0
	case []any:
		return len(v) == 0
	case map[string]any:
		for _, item := range v {
			if !zero(item) {
				return false
			}
		}
		return true
	}
	return false
}

// flagText is a value as a flag takes it: lists and maps joined by commas.
func flagText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case []any:
		var items []string
		for _, item := range v {
			text, err := flagText(item)
			if err != nil {
				return "", err
			}
			items = append(items, text)
		}
		return strings.Join(items, ","), nil
	case map[string]any:
		var items []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			text, err := flagText(v[key])
			if err != nil {
				return "", err
			}
			items = append(items, key+"="+text)
		}
		return strings.Join(items, ","), nil
	}
	text, err := json.Marshal(v)
	return string(text), err
}

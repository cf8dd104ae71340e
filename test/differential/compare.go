package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:embed known.txt
var knownText string

// exception is a difference that stays, and why.
type exception struct {
	request, difference *regexp.Regexp
	reason, text        string
}

// parseKnown reads lines of two regular expressions (of the request's name and
// of the difference) and a reason, with " | " between them.
func parseKnown(text string) ([]exception, error) {
	var list []exception
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, " | ")
		if len(parts) != 3 {
			return nil, fmt.Errorf("known.txt: %q is not three parts with ' | ' between them", line)
		}
		req, err1 := regexp.Compile(parts[0])
		diff, err2 := regexp.Compile(parts[1])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("known.txt: %q: %w", line, err)
		}
		list = append(list, exception{req, diff, parts[2], line})
	}
	return list, nil
}

// compare lists how two answers differ, once what must differ is removed.
func compare(upstream, skiff answer, shown func(any) any) []string {
	if upstream.err != nil || skiff.err != nil {
		return []string{fmt.Sprintf("error: %v != %v", upstream.err, skiff.err)}
	}
	var list []string
	if upstream.code != skiff.code {
		list = append(list, fmt.Sprintf("code: %d %s != %d %s", upstream.code, brief(upstream.body), skiff.code, brief(skiff.body)))
		return list
	}
	if a, b := normal(upstream.warnings), normal(skiff.warnings); !reflect.DeepEqual(a, b) {
		list = append(list, fmt.Sprintf("warnings: %s != %s", show(a), show(b)))
	}
	if a, b := upstream.header.Get("Content-Type"), skiff.header.Get("Content-Type"); a != b {
		list = append(list, fmt.Sprintf("content type: %s != %s", a, b))
	}
	a, b := parse(upstream), parse(skiff)
	if shown != nil {
		a, b = shown(a), shown(b)
	}
	differ("", a, b, &list)
	return list
}

// brief is the message of a Status, or the beginning of another body.
func brief(body []byte) string {
	var s struct {
		Kind, Message string
	}
	if json.Unmarshal(body, &s) == nil && s.Kind == "Status" {
		return s.Message
	}
	return string(body[:min(len(body), 200)])
}

// parse is a body as JSON values, several documents as a list, and anything
// else as text.
func parse(a answer) any {
	body := a.body
	if strings.HasPrefix(a.header.Get("Content-Type"), "application/yaml") {
		if asJSON, err := yaml.YAMLToJSON(body); err == nil {
			body = asJSON
		}
	}
	var docs []any
	for d := json.NewDecoder(strings.NewReader(string(body))); ; {
		var v any
		err := d.Decode(&v)
		if err != nil {
			if d.More() || len(docs) == 0 && len(body) > 0 {
				return clean(string(body))
			}
			break
		}
		docs = append(docs, clean(v))
	}
	if len(docs) == 1 {
		return docs[0]
	}
	return docs
}

// What differs from server to server.
var replacements = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<uid>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[-+]\d{4} UTC|Z)?( m=\+[\d.]+)?`), "<time>"},
	{regexp.MustCompile(`hash=[0-9A-F]+`), "hash=<hash>"},
	{regexp.MustCompile(`192\.0\.2\.1:\d+`), "<address>"},
	{regexp.MustCompile(`Key: /registry/`), "Key: /"}, // which a dry run of upstream's leaves out
	{regexp.MustCompile(`some-[a-z0-9]{5}`), "some-<random>"},
	{regexp.MustCompile(`selfType\d+`), "selfType<hash>"},
	{regexp.MustCompile(`kube-api-access-[a-z0-9]{5}`), "kube-api-access-<random>"},
	{regexp.MustCompile(`X509SHA256=[0-9a-f]+`), "X509SHA256=<hash>"},
	{regexp.MustCompile(`^(\d+[smhd])+$`), "<age>"},
	{regexp.MustCompile(`(resourceVersion\\*":\\*"|current: |in record \(|in object meta: )\d+`), "${1}<version>"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "<address>"},
	{regexp.MustCompile(`0xc[0-9a-f]{8,}`), "<pointer>"},
}

// ownManager matches the managers of what upstream's server writes for itself.
var ownManager = regexp.MustCompile(`^(kube-apiserver|api-priority-and-fairness-\S+|apiextensions-apiserver|kube-aggregator|kubernetes-service-cidr-controller)$`)

// clean removes what differs from server to server: UIDs, times, versions, what
// upstream's server owns of fields itself, and the order of causes and of rules
// of a review, which is any where upstream goes through a map.
func clean(v any) any {
	switch v := v.(type) {
	case string:
		for _, r := range replacements {
			v = r.pattern.ReplaceAllString(v, r.with)
		}
		return v
	case []any:
		for i := range v {
			v[i] = clean(v[i])
		}
	case map[string]any:
		for _, key := range []string{"uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "time", "continue"} {
			if s, ok := v[key].(string); ok && s != "" {
				v[key] = "<" + key + ">"
			}
		}
		if prefix, ok := v["generateName"].(string); ok {
			if name, ok := v["name"].(string); ok && strings.HasPrefix(name, prefix) {
				v["name"] = prefix + "<random>"
			}
		}
		for _, key := range []string{"resourceRules", "nonResourceRules"} {
			rules, _ := v[key].([]any)
			slices.SortFunc(rules, func(a, b any) int { return strings.Compare(show(a), show(b)) })
		}
		if entries, ok := v["managedFields"].([]any); ok {
			v["managedFields"] = slices.DeleteFunc(entries, func(e any) bool {
				m, _ := e.(map[string]any)
				name, _ := m["manager"].(string)
				return ownManager.MatchString(name)
			})
			if len(v["managedFields"].([]any)) == 0 {
				delete(v, "managedFields")
			}
		}
		sortCauses(v)
		for k := range v {
			v[k] = clean(v[k])
		}
	}
	return v
}

// valueShown is an object inside a cause, which upstream shows as its own
// internal type has it, and changed a comparison of two of those.
var (
	valueShown = regexp.MustCompile(`(?s)^((Invalid|Unsupported|Duplicate) value: )(null|[{\[].*[}\]])(: |$)`)
	changed    = regexp.MustCompile(`(?s)\n@@ .*`)
)

// sortCauses puts the causes of a Status in order, each once, without what upstream's
// internal types show in them, and leaves of the message what does not repeat them.
func sortCauses(v map[string]any) {
	details, _ := v["details"].(map[string]any)
	causes, _ := details["causes"].([]any)
	if v["kind"] != "Status" || v["reason"] != "Invalid" {
		return
	}
	for _, c := range causes {
		if c, ok := c.(map[string]any); ok {
			text, _ := c["message"].(string)
			c["message"] = changed.ReplaceAllString(valueShown.ReplaceAllString(text, "$1<value>$4"), "<changes>")
		}
	}
	slices.SortFunc(causes, func(a, b any) int { return strings.Compare(show(a), show(b)) })
	details["causes"] = slices.CompactFunc(causes, func(a, b any) bool { return show(a) == show(b) })
	message, _ := v["message"].(string)
	v["message"], _, _ = strings.Cut(message, " is invalid: ")
}

func normal(list []string) any {
	out := []any{}
	for _, s := range list {
		out = append(out, clean(s))
	}
	slices.SortFunc(out, func(a, b any) int { return strings.Compare(a.(string), b.(string)) }) // upstream goes through maps
	return out
}

// differ adds what differs below a path.
func differ(path string, a, b any, list *[]string) {
	if reflect.DeepEqual(a, b) {
		return
	}
	am, ok1 := a.(map[string]any)
	bm, ok2 := b.(map[string]any)
	if ok1 && ok2 {
		keys := slices.Sorted(maps.Keys(am))
		for k := range bm {
			if _, ok := am[k]; !ok {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		for _, k := range keys {
			x, ok := am[k]
			y, ok2 := bm[k]
			switch {
			case !ok:
				*list = append(*list, fmt.Sprintf("%s.%s: none != %s", path, k, show(y)))
			case !ok2:
				*list = append(*list, fmt.Sprintf("%s.%s: %s != none", path, k, show(x)))
			default:
				differ(path+"."+k, x, y, list)
			}
		}
		return
	}
	al, ok1 := a.([]any)
	bl, ok2 := b.([]any)
	if ok1 && ok2 && path == ".details.causes" {
		for _, c := range without(al, bl) {
			*list = append(*list, "cause missing: "+show(c))
		}
		for _, c := range without(bl, al) {
			*list = append(*list, "cause too much: "+show(c))
		}
		return
	}
	if ok1 && ok2 && len(al) == len(bl) {
		for i := range al {
			differ(fmt.Sprintf("%s[%d]", path, i), al[i], bl[i], list)
		}
		return
	}
	*list = append(*list, fmt.Sprintf("%s: %s != %s", path, show(a), show(b)))
}

// without is what a list has more than another.
func without(list, other []any) []any {
	var out []any
	for _, v := range list {
		if i := slices.IndexFunc(other, func(o any) bool { return reflect.DeepEqual(v, o) }); i >= 0 {
			other = slices.Delete(slices.Clone(other), i, i+1)
			continue
		}
		out = append(out, v)
	}
	return out
}

func show(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	if len(text) > 600 {
		text = append(text[:600], "…"...)
	}
	return string(text)
}

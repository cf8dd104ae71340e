package codec

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// What is decoded as JSON is what the YAML parser makes of it.
func TestConfiguration(t *testing.T) {
	for _, tt := range []struct {
		body string
		json bool // it is decoded as JSON
	}{
		{`{"a":{"b":[1,-2,"x",true,null,{}],"c":"é\n\"q\" \\"},"n":9007199254740993}`, true},
		{" \n{\"a\": \"1e3\", \"b\": \"~\", \"c\": \"null\", \"d\": \"\"}\n", true},
		{`{}`, true},
		{`{"a":1.0}`, false},
		{`{"a":1e3}`, false},
		{`{"a":18446744073709551615}`, false},
		{`{"a":1,"a":2}`, false},
		{`{"<<":{"a":1}}`, false},
		{`{a: b}`, false},
		{"a: b\n", false},
		{`{"a":1} {"b":2}`, false},
		{"{\"a\":\"\xff\"}", false},
		{`null`, false},
		{``, false},
	} {
		if got := plainJSON([]byte(tt.body)) != nil; got != tt.json {
			t.Errorf("%q is decoded as JSON: %v", tt.body, got)
		}
		if !tt.json {
			continue
		}
		got, twice, err := Configuration([]byte(tt.body), true)
		if err != nil || twice != nil {
			t.Errorf("%q: %v, %v", tt.body, err, twice)
		}
		data, err := yaml.YAMLToJSON([]byte(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		text, _ := json.Marshal(got)
		decode := func(s string, into *any) {
			d := json.NewDecoder(strings.NewReader(s))
			d.UseNumber()
			if err := d.Decode(into); err != nil {
				t.Fatal(err)
			}
		}
		decode(string(text), &a)
		decode(string(data), &b)
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%q: %s, want %s", tt.body, text, data)
		}
	}
	config, twice, err := Configuration([]byte("a: 1.0\na: 2.5\n"), true)
	if err != nil || config["a"] != 2.5 || twice == nil || !strings.Contains(twice.Error(), `"a" already set`) {
		t.Errorf("%v, %v, %v", config, twice, err)
	}
	if config, _, err := Configuration([]byte(`{"a":1.0}`), true); err != nil || config["a"] != int64(1) {
		t.Errorf("1.0 is %T %v, %v", config["a"], config["a"], err)
	}
}

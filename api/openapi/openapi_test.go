package openapi_test

import (
	"encoding/json"
	"strings"
	"testing"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/managedfields"
	kubeproto "k8s.io/kube-openapi/pkg/util/proto"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/api/openapi"
)

func builder(t *testing.T) *openapi.Builder {
	t.Helper()
	b, err := openapi.New(openapi.Config{Resources: all.Resources(), Version: "1.37"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dig(t *testing.T, v any, path ...string) any {
	t.Helper()
	for i, p := range path {
		m, ok := v.(map[string]any)
		if !ok || m[p] == nil {
			t.Fatalf("nothing at %s (%s missing)", strings.Join(path[:i], " / "), p)
		}
		v = m[p]
	}
	return v
}

func TestV3DocumentsParseAndDescribePods(t *testing.T) {
	b := builder(t)
	for path := range openapi.Documents(all.Resources()) {
		raw, err := b.V3(path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if _, err := openapi.ProtoV3(raw); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	raw, _ := b.V3("api/v1")
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	containers := dig(t, doc, "components", "schemas", "io.k8s.api.core.v1.PodSpec", "properties", "containers")
	for key, want := range map[string]string{
		"x-kubernetes-patch-strategy": `"merge"`, "x-kubernetes-patch-merge-key": `"name"`,
		"x-kubernetes-list-type": `"map"`, "x-kubernetes-list-map-keys": `["name"]`,
	} {
		if got, _ := json.Marshal(dig(t, containers, key)); string(got) != want {
			t.Errorf("containers: %s = %s, want %s", key, got, want)
		}
	}
	patch := dig(t, doc, "paths", "/api/v1/namespaces/{namespace}/pods/{name}", "patch")
	text, _ := json.Marshal(patch)
	if !strings.Contains(string(text), `"fieldValidation"`) {
		t.Errorf("patch of pods does not offer fieldValidation: %s", text)
	}
	dig(t, doc, "paths", "/api/v1/namespaces/{namespace}/pods/{name}/status", "put")
	quantity, _ := json.Marshal(dig(t, doc, "components", "schemas", "io.k8s.apimachinery.pkg.api.resource.Quantity", "oneOf"))
	if string(quantity) != `[{"type":"string"},{"type":"number"}]` {
		t.Errorf("Quantity is %s", quantity)
	}
}

// What kubectl explain shows, and what clients generated from the documents ask for.
func TestTypesSayWhatUsersRead(t *testing.T) {
	b := builder(t)
	for _, c := range []struct{ doc, path, want string }{
		{"api/v1", "io.k8s.api.core.v1.PodSpec properties restartPolicy enum", `["Always","Never","OnFailure"]`},
		{"api/v1", "io.k8s.api.core.v1.ContainerPort properties protocol default", `"TCP"`},
		{"apis/apps/v1", "io.k8s.api.apps.v1.DeploymentSpec required", `["selector","template"]`},
		{"apis/apps/v1", "io.k8s.api.core.v1.AppArmorProfile x-kubernetes-unions",
			`[{"discriminator":"type","fields-to-discriminateBy":{"localhostProfile":"LocalhostProfile"}}]`},
		{"apis/apiextensions.k8s.io/v1", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec properties scope description",
			`"scope indicates whether the defined custom resource is cluster- or namespace-scoped. Allowed values are ` + "`Cluster` and `Namespaced`" + `."`},
		{"apis/authentication.k8s.io/v1", "io.k8s.api.authentication.v1.TokenReviewSpec properties audiences x-kubernetes-list-type", `"atomic"`},
	} {
		raw, err := b.V3(c.doc)
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		path := append([]string{"components", "schemas"}, strings.Fields(c.path)...)
		if got, _ := json.Marshal(dig(t, doc, path...)); string(got) != c.want {
			t.Errorf("%s is %s, want %s", c.path, got, c.want)
		}
	}
}

func TestV2IsWhatClientsParse(t *testing.T) {
	b := builder(t)
	raw, err := b.V2()
	if err != nil {
		t.Fatal(err)
	}
	bin, err := openapi.ProtoV2(raw)
	if err != nil {
		t.Fatal(err)
	}
	doc := &openapiv2.Document{}
	if err := proto.Unmarshal(bin, doc); err != nil {
		t.Fatal(err)
	}
	parsed, err := kubeproto.NewOpenAPIData(doc)
	if err != nil {
		t.Fatal(err)
	}
	if parsed.LookupModel("io.k8s.api.apps.v1.Deployment") == nil {
		t.Error("no model of deployments")
	}
	for _, name := range parsed.ListModels() {
		if parsed.LookupModel(name) == nil {
			t.Errorf("model %s cannot be read", name)
		}
	}
	t.Logf("version 2: %d bytes of JSON, %d of protobuf, %d models", len(raw), len(bin), len(parsed.ListModels()))
}

// Custom resources are told in the words of each version, and objects in them have what objects have.
func TestCustomResourcesAreTold(t *testing.T) {
	widget := &api.Resource{Group: "example.com", Name: "widgets", Kind: "Widget", Namespaced: true, Codec: struct{ api.Codec }{}, Versions: []api.Version{{
		Name: "v1", Model: func(bool) (*spec.Schema, bool, error) {
			s := &spec.Schema{}
			err := json.Unmarshal([]byte(`{"type":"object","properties":{"size":{"type":"integer","default":1},
				"inner":{"type":"object","x-kubernetes-embedded-resource":true}}}`), s)
			return s, false, err
		},
	}}}
	b, err := openapi.New(openapi.Config{Resources: []*api.Resource{widget}, Version: "1.37"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		build                        func() ([]byte, error)
		at, path, want, lacks, patch string
	}{
		{b.V2, "definitions", "properties size", `{"type":"integer"}`, "#/components/", "parameters"},
		{func() ([]byte, error) { return b.V3("apis/example.com/v1") }, "components schemas", "properties size",
			`{"default":1,"type":"integer"}`, `"group":"apiextensions.k8s.io"`, "requestBody"},
	} {
		raw, err := c.build()
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		model := append(strings.Fields(c.at), "com.example.v1.Widget")
		if got, _ := json.Marshal(dig(t, doc, append(model, strings.Fields(c.path)...)...)); string(got) != c.want {
			t.Errorf("%s is %s, want %s", c.path, got, c.want)
		}
		if got, _ := json.Marshal(dig(t, doc, append(model, "properties", "inner", "required")...)); string(got) != `["kind","apiVersion"]` {
			t.Errorf("an embedded object requires %s", got)
		}
		dig(t, doc, append(model, "properties", "inner", "properties", "metadata")...)
		dig(t, doc, "paths", "/apis/example.com/v1/namespaces/{namespace}/widgets/{name}", "patch", c.patch)
		if strings.Contains(string(raw), c.lacks) {
			t.Errorf("has %s:\n%s", c.lacks, raw)
		}
		if paths := doc["paths"].(map[string]any); paths["/apis/example.com/v1/"] != nil {
			t.Error("tells of discovery, as upstream does not")
		}
	}
}

func TestModelsServeApply(t *testing.T) {
	models, err := builder(t).Models()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := managedfields.NewTypeConverter(models, false); err != nil {
		t.Fatal(err)
	}
}

package config

import (
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	psconfig "k8s.io/pod-security-admission/admission/api"
)

// files is a folder by path.
type files map[string]string

func (f files) read(path string) ([]byte, error) {
	if text, ok := f[path]; ok {
		return []byte(text), nil
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}

func TestLoad(t *testing.T) {
	got, err := Load("/etc/admission.yaml", files{
		"/etc/admission.yaml": `
apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: EventRateLimit
  path: limits/events.yaml
- name: PodNodeSelector
  path: /selectors.yaml
- name: PodSecurity
  path: ignored where there is a configuration
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    defaults: {enforce: baseline, enforce-version: v1.30}
    exemptions: {usernames: [root], namespaces: [kube-system], runtimeClasses: [vm]}
- name: ResourceQuota
  configuration:
    apiVersion: apiserver.config.k8s.io/v1
    kind: ResourceQuotaConfiguration
    limitedResources:
    - resource: pods
      matchContains: [cpu]
      matchScopes:
      - {scopeName: PriorityClass, operator: In, values: [high]}
`,
		"/etc/limits/events.yaml": `{"apiVersion": "eventratelimit.admission.k8s.io/v1alpha1", "kind": "Configuration",
			"limits": [{"type": "Server", "qps": 5, "burst": 10, "cacheSize": -1}, {"type": "User", "qps": 1, "burst": 2, "cacheSize": 3}]}`,
		"/selectors.yaml": `
podNodeSelectorPluginConfig:
  clusterDefaultNodeSelector: env=prod
  ns1: kind=gpu, zone=z1
`,
	}.read)
	if err != nil {
		t.Fatal(err)
	}
	want := Plugins{
		EventLimits:   []EventLimit{{Type: Server, QPS: 5, Burst: 10, CacheSize: -1}, {Type: User, QPS: 1, Burst: 2, CacheSize: 3}},
		NodeSelectors: map[string]string{ClusterDefault: "env=prod", "ns1": "kind=gpu, zone=z1"},
		PodSecurity: &psconfig.PodSecurityConfiguration{
			Defaults:   psconfig.PodSecurityDefaults{Enforce: "baseline", EnforceVersion: "v1.30", Audit: "privileged", AuditVersion: "latest", Warn: "privileged", WarnVersion: "latest"},
			Exemptions: psconfig.PodSecurityExemptions{Usernames: []string{"root"}, Namespaces: []string{"kube-system"}, RuntimeClasses: []string{"vm"}},
		},
		LimitedResources: []LimitedResource{{Resource: "pods", MatchContains: []string{"cpu"}, MatchScopes: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{"high"}}}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What upstream still takes besides, or takes as nothing.
func TestLoadOtherForms(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       Plugins
	}{
		{"the older version", "{apiVersion: apiserver.k8s.io/v1alpha1, kind: AdmissionConfiguration}", Plugins{}},
		{"no configuration", "{apiVersion: apiserver.config.k8s.io/v1, kind: AdmissionConfiguration, plugins: [{name: PodSecurity}, {name: EventRateLimit, configuration: null}]}", Plugins{}},
		{"the plugin's own file", "podNodeSelectorPluginConfig: {ns1: a=b}", Plugins{NodeSelectors: map[string]string{"ns1": "a=b"}}},
	} {
		if got, err := Load("f", files{"f": c.text}.read); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// Errors name the file, the plugin, the field, and what is right.
func TestLoadErrors(t *testing.T) {
	const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n"
	inline := func(name, configuration string) string {
		return head + fmt.Sprintf("plugins: [{name: %s, configuration: %s}]", name, configuration)
	}
	events := func(limits string) string {
		return inline("EventRateLimit", "{apiVersion: eventratelimit.admission.k8s.io/v1alpha1, kind: Configuration, limits: "+limits+"}")
	}
	security := func(rest string) string {
		return inline("PodSecurity", "{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, "+rest+"}")
	}
	quota := func(rest string) string {
		return inline("ResourceQuota", "{apiVersion: apiserver.config.k8s.io/v1, kind: ResourceQuotaConfiguration, "+rest+"}")
	}
	for _, c := range []struct{ name, text, want string }{
		{"not YAML", "a: [", "/etc/f: yaml: line 1: did not find expected node content"},
		{"not an object", "[]", "/etc/f: it is no object"},
		{"empty", "", `/etc/f: its apiVersion and kind are " ", not "apiserver.config.k8s.io/v1 AdmissionConfiguration"`},
		{"another kind", "{apiVersion: v1, kind: Pod}", `/etc/f: its apiVersion and kind are "v1 Pod", not "apiserver.config.k8s.io/v1 AdmissionConfiguration"`},
		{"an unknown field", head + "plugin: []", `/etc/f: strict decoding error: unknown field "plugin"`},
		{"a field of the wrong type", head + "plugins: {}", "/etc/f: json: cannot unmarshal object into Go struct field"},
		{"a key twice", head + "plugins: []\nplugins: []", `key "plugins" already set in map`},
		{"twice", head + "plugins: [{name: PodSecurity}, {name: PodSecurity}]", "/etc/f: plugins[1] (PodSecurity): it is there twice: leave one out"},
		{"no configuration to take", head + "plugins: [{name: NamespaceLifecycle}]",
			"/etc/f: plugins[0] (NamespaceLifecycle): that plugin takes no configuration here: leave it out; EventRateLimit, PodNodeSelector, PodSecurity, ResourceQuota do"},
		{"webhooks' is not there", head + "plugins: [{name: ImagePolicyWebhook, path: x}]", "/etc/f: plugins[0] (ImagePolicyWebhook): that plugin takes no configuration here"},
		{"no such file", head + "plugins: [{name: PodSecurity, path: other}]", "/etc/f: plugins[0].path: open /etc/other: file does not exist"},
		{"in a file of its own", head + "plugins: [{name: PodSecurity, path: own}]", `/etc/own: strict decoding error: unknown field "defaults.enforced"`},

		{"events: another kind", inline("EventRateLimit", "{}"), `/etc/f: plugins[0] (EventRateLimit): its apiVersion and kind are " ", not "eventratelimit.admission.k8s.io/v1alpha1 Configuration"`},
		{"events: no limits", events("[]"), "/etc/f: plugins[0] (EventRateLimit): limits: Invalid value: []: must not be empty"},
		{"events: type", events("[{type: Pod, qps: 1, burst: 1}]"), `limits[0].type: Unsupported value: "Pod": supported values: "Namespace", "Server", "SourceAndObject", "User"`},
		{"events: rates", events("[{type: User, burst: -1, cacheSize: -1}]"),
			"[limits[0].burst: Invalid value: -1: must be positive, limits[0].qps: Invalid value: 0: must be positive, limits[0].cacheSize: Invalid value: -1: must not be negative]"},
		{"events: an unknown field", events("[{type: User, rate: 1}]"), `unknown field "limits[0].rate"`},

		{"selectors: an unknown field", inline("PodNodeSelector", "{kind: x}"), `/etc/f: plugins[0] (PodNodeSelector): strict decoding error: unknown field "kind"`},
		{"selectors: no namespace", inline("PodNodeSelector", "{podNodeSelectorPluginConfig: {A_B: a=b}}"), `podNodeSelectorPluginConfig[A_B]: Invalid value: "A_B": neither clusterDefaultNodeSelector nor a namespace`},
		{"selectors: no labels", inline("PodNodeSelector", `{podNodeSelectorPluginConfig: {a: "b in (c)"}}`),
			`podNodeSelectorPluginConfig[a]: Invalid value: "b in (c)": labels are given as key=value,key=value: invalid selector: [b in (c)]`},

		{"security: level", security("defaults: {enforce: strict}"), `/etc/f: plugins[0] (PodSecurity): defaults.enforce: Invalid value: "strict": must be one of privileged, baseline, restricted`},
		{"security: version", security("defaults: {warn-version: v9}"), `defaults.warn-version: Invalid value: "v9"`},
		{"security: exempt", security("exemptions: {namespaces: [a, a], usernames: ['']}"), `[exemptions.namespaces[1]: Duplicate value: "a", exemptions.usernames[0]: Invalid value: "": username must not be empty]`},

		{"quota: no resource", quota("limitedResources: [{matchContains: [cpu]}]"), "/etc/f: plugins[0] (ResourceQuota): limitedResources[0].resource: Required value"},
		{"quota: an unknown field", quota("limited: []"), `unknown field "limited"`},
	} {
		own := "{apiVersion: pod-security.admission.config.k8s.io/v1beta1, kind: PodSecurityConfiguration, defaults: {enforced: baseline}}"
		if _, err := Load("/etc/f", files{"/etc/f": c.text, "/etc/own": own}.read); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.name, err, c.want)
		}
	}
	if _, err := Load("/none", files{}.read); err == nil || err.Error() != "open /none: file does not exist" {
		t.Errorf("no file: %v", err)
	}
}

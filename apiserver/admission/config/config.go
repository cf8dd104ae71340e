// Package config is the configuration of admission plugins, the file of
// --admission-control-config-file: it reads and checks an
// AdmissionConfiguration with what it holds for each plugin. Files are read by
// the function it is given, and nothing else is done.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	psconfig "k8s.io/pod-security-admission/admission/api"
	psv1 "k8s.io/pod-security-admission/admission/api/v1"
	psvalidation "k8s.io/pod-security-admission/admission/api/validation"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Plugins is what plugins are told. Its zero value is the default of all but
// EventRateLimit, which has none.
type Plugins struct {
	EventLimits      []EventLimit
	NodeSelectors    map[string]string // PodNodeSelector's: ClusterDefault and whitelists by namespace
	PodSecurity      *psconfig.PodSecurityConfiguration
	LimitedResources []LimitedResource // ResourceQuota's
	Tolerations      TolerationSeconds // DefaultTolerationSeconds'; no file has it
}

// TolerationSeconds are how long pods that do not say stay on a node that is not ready or not reachable; nil: 300.
type TolerationSeconds struct{ NotReady, Unreachable *int64 }

// ClusterDefault is the key of the selector of namespaces that have none.
const ClusterDefault = "clusterDefaultNodeSelector"

// EventLimit lets Burst writes of events through at once and QPS a second,
// for each of what Type tells apart.
type EventLimit struct {
	Type      LimitType `json:"type"`
	QPS       int32     `json:"qps"`
	Burst     int32     `json:"burst"`
	CacheSize int32     `json:"cacheSize,omitempty"` // how many are told apart, the last used ones; 0: 4096
}

// LimitType says which events share a limit.
type LimitType string

// The types.
const (
	Server          LimitType = "Server" // all
	Namespace       LimitType = "Namespace"
	User            LimitType = "User"
	SourceAndObject LimitType = "SourceAndObject"
)

// LimitedResource is what may be used only where a ResourceQuota covers it:
// names of usage that contain one of MatchContains, objects in one of MatchScopes.
type LimitedResource struct {
	APIGroup      string                                     `json:"apiGroup,omitempty"`
	Resource      string                                     `json:"resource"`
	MatchContains []string                                   `json:"matchContains,omitempty"`
	MatchScopes   []corev1.ScopedResourceSelectorRequirement `json:"matchScopes,omitempty"`
}

type admissionConfiguration struct {
	metav1.TypeMeta `json:",inline"`
	Plugins         []struct {
		Name          string          `json:"name"`
		Path          string          `json:"path"`
		Configuration json.RawMessage `json:"configuration"`
	} `json:"plugins"`
}

// Load reads a file, and those it names, with read. Errors name the file and
// the field. The file may also be the PodNodeSelector's configuration itself, as it once was.
func Load(file string, read func(string) ([]byte, error)) (Plugins, error) {
	var p Plugins
	data, err := read(file)
	if err != nil {
		return p, err
	}
	var legacy map[string]any
	if yaml.Unmarshal(data, &legacy) == nil && legacy["kind"] == nil && legacy["podNodeSelectorPluginConfig"] != nil {
		return p, at(file, p.nodeSelectors(data))
	}
	var c admissionConfiguration
	if err := decode(data, &c, "apiserver.config.k8s.io/v1 AdmissionConfiguration", "apiserver.k8s.io/v1alpha1 AdmissionConfiguration"); err != nil {
		return p, at(file, err)
	}
	var seen []string
	for i, plugin := range c.Plugins {
		where := fmt.Sprintf("%s: plugins[%d] (%s)", file, i, plugin.Name)
		if slices.Contains(seen, plugin.Name) {
			return p, fmt.Errorf("%s: it is there twice: leave one out", where)
		}
		seen = append(seen, plugin.Name)
		take := p.takers()[plugin.Name]
		if take == nil {
			return p, fmt.Errorf("%s: that plugin takes no configuration here: leave it out; %s do", where, strings.Join(Names(), ", "))
		}
		data := []byte(plugin.Configuration)
		switch {
		case len(data) > 0 && string(data) != "null":
		case plugin.Path == "":
			continue
		default:
			if where = plugin.Path; !filepath.IsAbs(where) {
				where = filepath.Join(filepath.Dir(file), where)
			}
			if data, err = read(where); err != nil {
				return p, fmt.Errorf("%s: plugins[%d].path: %w", file, i, err)
			}
		}
		if err := at(where, take(data)); err != nil {
			return p, err
		}
	}
	return p, nil
}

// Names are the plugins that take a configuration.
func Names() []string {
	return []string{"EventRateLimit", "PodNodeSelector", "PodSecurity", "ResourceQuota"}
}

func (p *Plugins) takers() map[string]func([]byte) error {
	return map[string]func([]byte) error{
		"EventRateLimit": p.eventLimits, "PodNodeSelector": p.nodeSelectors, "PodSecurity": p.podSecurity, "ResourceQuota": p.limitedResources,
	}
}

func (p *Plugins) eventLimits(data []byte) error {
	var c struct {
		metav1.TypeMeta `json:",inline"`
		Limits          []EventLimit `json:"limits"`
	}
	if err := decode(data, &c, "eventratelimit.admission.k8s.io/v1alpha1 Configuration"); err != nil {
		return err
	}
	p.EventLimits = c.Limits
	path := field.NewPath("limits")
	var errs field.ErrorList
	if len(c.Limits) == 0 {
		errs = append(errs, field.Invalid(path, c.Limits, "must not be empty"))
	}
	types := []LimitType{Namespace, Server, SourceAndObject, User}
	for i, l := range c.Limits {
		path := path.Index(i)
		if !slices.Contains(types, l.Type) {
			errs = append(errs, field.NotSupported(path.Child("type"), l.Type, types))
		}
		if l.Burst <= 0 {
			errs = append(errs, field.Invalid(path.Child("burst"), l.Burst, "must be positive"))
		}
		if l.QPS <= 0 {
			errs = append(errs, field.Invalid(path.Child("qps"), l.QPS, "must be positive"))
		}
		if l.Type != Server && l.CacheSize < 0 {
			errs = append(errs, field.Invalid(path.Child("cacheSize"), l.CacheSize, "must not be negative"))
		}
	}
	return errs.ToAggregate()
}

// nodeSelectors also reads the selectors: upstream leaves that to each pod's creation.
func (p *Plugins) nodeSelectors(data []byte) error {
	var c struct {
		Selectors map[string]string `json:"podNodeSelectorPluginConfig"`
	}
	if err := decode(data, &c); err != nil {
		return err
	}
	p.NodeSelectors = c.Selectors
	var errs field.ErrorList
	for _, name := range slices.Sorted(maps.Keys(c.Selectors)) {
		selector, path := c.Selectors[name], field.NewPath("podNodeSelectorPluginConfig").Key(name)
		if bad := validation.ValidateNamespaceName(name, false); name != ClusterDefault && len(bad) > 0 {
			errs = append(errs, field.Invalid(path, name, "neither "+ClusterDefault+" nor a namespace: "+strings.Join(bad, ", ")))
		}
		if _, err := labels.ConvertSelectorToLabelsMap(selector); err != nil {
			errs = append(errs, field.Invalid(path, selector, "labels are given as key=value,key=value: "+err.Error()))
		}
	}
	return errs.ToAggregate()
}

func (p *Plugins) podSecurity(data []byte) error {
	const group, kind = "pod-security.admission.config.k8s.io/", " PodSecurityConfiguration"
	var c psv1.PodSecurityConfiguration
	if err := decode(data, &c, group+"v1"+kind, group+"v1beta1"+kind, group+"v1alpha1"+kind); err != nil {
		return err
	}
	psv1.SetDefaults_PodSecurityDefaults(&c.Defaults)
	p.PodSecurity = &psconfig.PodSecurityConfiguration{
		Defaults: psconfig.PodSecurityDefaults(c.Defaults), Exemptions: psconfig.PodSecurityExemptions(c.Exemptions),
	}
	return psvalidation.ValidatePodSecurityConfiguration(p.PodSecurity).ToAggregate()
}

func (p *Plugins) limitedResources(data []byte) error {
	var c struct {
		metav1.TypeMeta  `json:",inline"`
		LimitedResources []LimitedResource `json:"limitedResources"`
	}
	const beta = "resourcequota.admission.k8s.io/"
	if err := decode(data, &c, "apiserver.config.k8s.io/v1 ResourceQuotaConfiguration", beta+"v1beta1 Configuration", beta+"v1alpha1 Configuration"); err != nil {
		return err
	}
	p.LimitedResources = c.LimitedResources
	var errs field.ErrorList
	for i, l := range c.LimitedResources {
		if l.Resource == "" {
			errs = append(errs, field.Required(field.NewPath("limitedResources").Index(i).Child("resource"), ""))
		}
	}
	return errs.ToAggregate()
}

// decode reads YAML or JSON strictly. It must be of one of kinds ("group/version
// Kind"), which are alike field by field; with none, it has no kind.
func decode(data []byte, into any, kinds ...string) error {
	text, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(text, &meta); err != nil {
		return errors.New("it is no object")
	}
	if got := meta.APIVersion + " " + meta.Kind; len(kinds) > 0 && !slices.Contains(kinds, got) {
		return fmt.Errorf("its apiVersion and kind are %q, not %q", got, kinds[0])
	}
	strict, err := kjson.UnmarshalStrict(text, into)
	if err != nil {
		return err
	}
	if len(strict) > 0 {
		return runtime.NewStrictDecodingError(strict)
	}
	return nil
}

func at(where string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	return nil
}

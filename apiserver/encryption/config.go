package encryption

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// Configuration is apiserver.config.k8s.io/v1 EncryptionConfiguration.
type Configuration struct {
	metav1.TypeMeta `json:",inline"`
	Resources       []Rule `json:"resources"`
}

// Rule says how some resources are stored: sealed by the first provider,
// opened by whichever can.
type Rule struct {
	Resources []string   `json:"resources"`
	Providers []Provider `json:"providers"`
}

// Provider is one of its fields.
type Provider struct {
	AESGCM    *Keys     `json:"aesgcm,omitempty"`
	AESCBC    *Keys     `json:"aescbc,omitempty"`
	Secretbox *Keys     `json:"secretbox,omitempty"`
	Identity  *struct{} `json:"identity,omitempty"`
	KMS       *KMS      `json:"kms,omitempty"`
}

// Keys are a provider's; the first seals.
type Keys struct {
	Keys []Key `json:"keys"`
}

// Key is a named key; Secret is its base64.
type Key struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
}

// KMS is a plug-in on a unix socket.
type KMS struct {
	APIVersion string           `json:"apiVersion,omitempty"`
	Name       string           `json:"name"`
	CacheSize  *int32           `json:"cachesize,omitempty"`
	Endpoint   string           `json:"endpoint"`
	Timeout    *metav1.Duration `json:"timeout,omitempty"`
}

const (
	apiVersion = "apiserver.config.k8s.io/v1"
	kind       = "EncryptionConfiguration"
)

// Generate makes a configuration that seals Secrets with a new key of that
// name, and reads what is stored in the clear.
func Generate(keyName string) []byte {
	c := Configuration{
		TypeMeta: metav1.TypeMeta{APIVersion: apiVersion, Kind: kind},
		Resources: []Rule{{
			Resources: []string{"secrets"},
			Providers: []Provider{{AESGCM: &Keys{[]Key{newKey(keyName)}}}, {Identity: &struct{}{}}},
		}},
	}
	return c.YAML()
}

// newKey makes a key of 32 random bytes.
func newKey(name string) Key {
	return Key{Name: name, Secret: base64.StdEncoding.EncodeToString(random(32))}
}

// YAML is the text of the file.
func (c *Configuration) YAML() []byte {
	data, err := yaml.Marshal(c)
	if err != nil {
		panic(fmt.Sprintf("encryption: a configuration cannot be written: %v", err))
	}
	return data
}

// HashOf identifies a configuration file: "sha256:…".
func HashOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// RuleOf is the index of the rule whose first provider seals a resource; -1: none does.
func (c *Configuration) RuleOf(gr schema.GroupResource) int {
	for _, pattern := range patterns(gr) {
		for i, rule := range c.Resources {
			for _, name := range rule.Resources {
				if schema.ParseGroupResource(name) == pattern {
					return i
				}
			}
		}
	}
	return -1
}

// patterns are what a configuration may call a resource, the nearest first.
func patterns(gr schema.GroupResource) [3]schema.GroupResource {
	return [...]schema.GroupResource{gr, {Group: gr.Group, Resource: "*"}, everything}
}

func (p *Provider) keys() *Keys {
	for _, k := range []*Keys{p.AESGCM, p.AESCBC, p.Secretbox} {
		if k != nil {
			return k
		}
	}
	return nil
}

// AddKey puts a new key before those that seal a resource, and returns the
// rule it is in and its name.
func (c *Configuration) AddKey(gr schema.GroupResource) (rule int, name string, err error) {
	if rule = c.RuleOf(gr); rule < 0 {
		return 0, "", fmt.Errorf("%s are not encrypted: no rule names them", gr)
	}
	k := c.Resources[rule].Providers[0].keys()
	if k == nil {
		return 0, "", fmt.Errorf("%s are not encrypted by a key of this file: the first provider of their rule has none", gr)
	}
	for n := len(k.Keys) + 1; ; n++ {
		name = fmt.Sprintf("key%d", n)
		if !slices.ContainsFunc(k.Keys, func(k Key) bool { return k.Name == name }) {
			break
		}
	}
	k.Keys = append([]Key{newKey(name)}, k.Keys...)
	return rule, name, nil
}

// DropOldKeys leaves of the provider that seals for a rule only the first key.
func (c *Configuration) DropOldKeys(rule int) {
	if k := c.Resources[rule].Providers[0].keys(); k != nil {
		k.Keys = k.Keys[:1]
	}
}

// Parse reads and checks a configuration file. The error tells all that is wrong.
func Parse(data []byte) (*Configuration, error) {
	var c Configuration
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return nil, fmt.Errorf("encryption configuration: %w", err)
	}
	if c.APIVersion != apiVersion || c.Kind != kind {
		return nil, fmt.Errorf("encryption configuration: it is a %s %s, not a %s %s", c.APIVersion, c.Kind, apiVersion, kind)
	}
	for i := range c.Resources {
		for j := range c.Resources[i].Providers {
			if k := c.Resources[i].Providers[j].KMS; k != nil {
				k.setDefaults()
			}
		}
	}
	if errs := c.validate(); len(errs) > 0 {
		return nil, fmt.Errorf("encryption configuration: %w", errs.ToAggregate())
	}
	return &c, nil
}

func (k *KMS) setDefaults() {
	if k.Timeout == nil {
		k.Timeout = &metav1.Duration{Duration: 3 * time.Second}
	}
	if k.APIVersion == "" {
		k.APIVersion = "v1"
	}
}

func (c *Configuration) validate() (errs field.ErrorList) {
	root := field.NewPath("resources")
	if len(c.Resources) == 0 {
		return field.ErrorList{field.Required(root, "at least one resources is required")}
	}
	plugins := map[string]bool{}
	for i, rule := range c.Resources {
		r, p := root.Index(i).Child("resources"), root.Index(i).Child("providers")
		if len(rule.Resources) == 0 {
			errs = append(errs, field.Required(r, fmt.Sprintf("at least one %s is required", r)))
		}
		errs = append(errs, overlaps(rule.Resources, r)...)
		for j, name := range rule.Resources {
			if msg := wrongResource(name); msg != "" {
				errs = append(errs, field.Invalid(r.Index(j), name, msg))
			}
		}
		if len(rule.Providers) == 0 {
			errs = append(errs, field.Required(p, fmt.Sprintf("at least one %s is required", p)))
		}
		for j := range rule.Providers {
			errs = append(errs, rule.Providers[j].validate(p.Index(j), plugins)...)
		}
	}
	return errs
}

// overlaps finds resources of one list that another of the list covers.
func overlaps(names []string, at *field.Path) (errs field.ErrorList) {
	var overlap, duplicate bool
	for i, a := range names {
		for _, b := range names[i+1:] {
			x, y := schema.ParseGroupResource(a), schema.ParseGroupResource(b)
			switch {
			case x == y:
				duplicate = true
			case x == everything || y == everything, x.Group == y.Group && (x.Resource == "*" || y.Resource == "*"):
				overlap = true
			}
		}
	}
	if duplicate {
		errs = append(errs, field.Invalid(at, names, "the same resource cannot be specified multiple times"))
	}
	if overlap {
		errs = append(errs, field.Invalid(at, names, "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked"))
	}
	return errs
}

var everything = schema.GroupResource{Group: "*", Resource: "*"}

func wrongResource(name string) string {
	gr := schema.ParseGroupResource(name)
	switch {
	case strings.ToLower(name) != name:
		return "resource name should not contain capital letters"
	case name == "*":
		return "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
	case slices.Contains([]string{"apiserveripinfo", "serviceipallocations", "servicenodeportallocations"}, name):
		return "resources which do not have REST API/s cannot be encrypted"
	case gr.Group == "events.k8s.io":
		return "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
	case gr.Group == "extensions":
		return "'extensions' group has been removed and cannot be used for encryption"
	case gr.Group == "*" && gr.Resource != "*":
		return "encrypting the same resource across groups is not supported"
	}
	return ""
}

// validate never shows a secret.
func (p *Provider) validate(at *field.Path, plugins map[string]bool) field.ErrorList {
	found := 0
	for _, set := range []bool{p.KMS != nil, p.AESGCM != nil, p.AESCBC != nil, p.Secretbox != nil, p.Identity != nil} {
		if set {
			found++
		}
	}
	switch {
	case found == 0:
		return field.ErrorList{field.Invalid(at, "{}", errNoProvider.Error())}
	case found > 1:
		return field.ErrorList{field.Invalid(at, "REDACTED", "more than one provider specified in a single element, should split into different list elements")}
	case p.KMS != nil:
		return p.KMS.validate(at.Child("kms"), plugins)
	case p.AESGCM != nil:
		return p.AESGCM.validate(at.Child("aesgcm", "keys"), 16, 24, 32)
	case p.AESCBC != nil:
		return p.AESCBC.validate(at.Child("aescbc", "keys"), 16, 24, 32)
	case p.Secretbox != nil:
		return p.Secretbox.validate(at.Child("secretbox", "keys"), 32)
	}
	return nil
}

var errNoProvider = errors.New("provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity")

func (k *Keys) validate(at *field.Path, lengths ...int) (errs field.ErrorList) {
	if len(k.Keys) == 0 {
		return field.ErrorList{field.Required(at, "at least one keys is required")}
	}
	for i, key := range k.Keys {
		if key.Name == "" {
			errs = append(errs, field.Required(at.Index(i).Child("name"), "name is a mandatory field for a key"))
		}
		secret := at.Index(i).Child("secret")
		raw, err := base64.StdEncoding.DecodeString(key.Secret)
		switch {
		case key.Secret == "":
			errs = append(errs, field.Required(secret, "secret is a mandatory field for a key"))
		case err != nil:
			errs = append(errs, field.Invalid(secret, "REDACTED", "secrets must be base64 encoded"))
		case !slices.Contains(lengths, len(raw)):
			errs = append(errs, field.Invalid(secret, "REDACTED", fmt.Sprintf("secret is not of the expected length, got %d, expected one of %v", len(raw), lengths)))
		}
	}
	return errs
}

func (k *KMS) validate(at *field.Path, plugins map[string]bool) (errs field.ErrorList) {
	invalid := func(name string, value any, msg string) {
		errs = append(errs, field.Invalid(at.Child(name), value, msg))
	}
	switch {
	case k.Name == "":
		errs = append(errs, field.Required(at.Child("name"), "name is a mandatory field for a provider"))
	case strings.Contains(k.Name, ":"):
		invalid("name", k.Name, fmt.Sprintf("invalid KMS provider name %s, must not contain ':'", k.Name))
	case plugins[k.Name]:
		invalid("name", k.Name, fmt.Sprintf("duplicate KMS provider name %s, names must be unique", k.Name))
	}
	plugins[k.Name] = true
	if k.Timeout.Duration <= 0 {
		invalid("timeout", k.Timeout.Duration.String(), "timeout should be a positive value")
	}
	u, err := url.Parse(k.Endpoint)
	switch {
	case k.Endpoint == "":
		invalid("endpoint", "", "endpoint is a mandatory field for a kms")
	case err != nil:
		invalid("endpoint", k.Endpoint, fmt.Sprintf("invalid endpoint for kms provider, error: %v", err))
	case u.Scheme != "unix":
		invalid("endpoint", k.Endpoint, fmt.Sprintf("unsupported scheme %q for KMS provider, only unix is supported", u.Scheme))
	}
	switch {
	case k.APIVersion == "v1":
		invalid("apiVersion", k.APIVersion, "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.")
	case k.APIVersion != "v2":
		invalid("apiVersion", k.APIVersion, fmt.Sprintf("unsupported apiVersion %s for KMS provider, only v1 and v2 are supported", "apiVersion"))
	case k.CacheSize != nil:
		invalid("cachesize", *k.CacheSize, "cachesize is not supported in v2")
	}
	return errs
}

// build makes the transformers of a valid configuration.
func build(c *Configuration, log *slog.Logger) (*configured, error) {
	out := &configured{byResource: map[schema.GroupResource]*chain{}}
	for _, rule := range c.Resources {
		var list []prefixed
		for _, p := range rule.Providers {
			t, err := p.build(out, log)
			if err != nil {
				return nil, err
			}
			list = append(list, t)
		}
		for _, name := range rule.Resources {
			gr := schema.ParseGroupResource(name)
			for _, earlier := range []schema.GroupResource{{Group: gr.Group, Resource: "*"}, everything} {
				if out.byResource[earlier] != nil {
					return nil, fmt.Errorf("encryption configuration: resource %q is masked by earlier rule %q", shown(gr), shown(earlier))
				}
			}
			if out.byResource[gr] == nil {
				out.byResource[gr] = &chain{none: errors.New("no matching prefix found")}
			}
			out.byResource[gr].list = append(out.byResource[gr].list, list...)
		}
	}
	return out, nil
}

func shown(gr schema.GroupResource) string {
	if gr.Group == "" && gr.Resource == "*" {
		return "*."
	}
	return gr.String()
}

func (p *Provider) build(c *configured, log *slog.Logger) (prefixed, error) {
	keyed := func(name, family string, keys *Keys, make func([]byte) (transformer, error)) (prefixed, error) {
		ch := &chain{none: fmt.Errorf("no matching key was found for the provided %s transformer", family)}
		for _, k := range keys.Keys {
			raw, err := base64.StdEncoding.DecodeString(k.Secret)
			if err != nil {
				return prefixed{}, err
			}
			t, err := make(raw)
			if err != nil {
				return prefixed{}, err
			}
			ch.list = append(ch.list, prefixed{k.Name + ":", t})
		}
		return prefixed{Prefix + name + ":v1:", ch}, nil
	}
	switch {
	case p.AESGCM != nil:
		return keyed("aesgcm", "AES", p.AESGCM, newGCM)
	case p.AESCBC != nil:
		return keyed("aescbc", "AES", p.AESCBC, newCBC)
	case p.Secretbox != nil:
		return keyed("secretbox", "Secretbox", p.Secretbox, newBox)
	case p.KMS != nil:
		k, err := newKMS(p.KMS, log)
		if err != nil {
			return prefixed{}, err
		}
		c.kms = append(c.kms, k)
		return prefixed{Prefix + "kms:v2:" + p.KMS.Name + ":", k}, nil
	}
	return prefixed{"", identity{}}, nil
}

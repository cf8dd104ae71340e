package cli

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/apiserver/authconfig"
	"github.com/skiff-project/skiff/apiserver/authwebhook"
	"github.com/skiff-project/skiff/auth/config"
)

// authFlags are upstream's of who requests come from and who decides about them.
type authFlags struct {
	opts      authconfig.Options
	anonymous bool
	bootstrap bool
	tokens    authwebhook.TokenConfig
	oidc      struct {
		url, client, ca, username, usernamePrefix, groups, groupsPrefix string
		algorithms                                                      []string
		required                                                        requiredClaims
	}
	modes []string
	hook  config.AccessWebhook
	file  string // kubeconfig of hook
}

func (f *authFlags) add(p *program) {
	fs, t, o, h := p.fs, &f.tokens, &f.oidc, &f.hook
	fs.StringVar(&f.opts.AuthenticationFile, "authentication-config", "",
		"AuthenticationConfiguration with issuers of tokens and who is anonymous, followed while the server runs (default: none)")
	fs.BoolVar(&f.anonymous, "anonymous-auth", false, "requests without a credential are system:anonymous's (default: those of the health endpoints)")
	fs.StringVar(&f.opts.TokenFile, "token-auth-file", "", "lines of token, user, UID and, quoted, groups with commas between: read at the start (default: none)")
	fs.BoolVar(&f.bootstrap, "enable-bootstrap-token-auth", false, "accept tokens of Secrets in kube-system, by which nodes join")
	fs.StringVar(&o.url, "oidc-issuer-url", "", "https URL of an OpenID issuer whose tokens are accepted (default: none)")
	fs.StringVar(&o.client, "oidc-client-id", "", "audience its tokens must be for")
	fs.StringVar(&o.ca, "oidc-ca-file", "", "authority of its certificate (default: the host's)")
	fs.StringVar(&o.username, "oidc-username-claim", "sub", "claim with the user's name")
	fs.StringVar(&o.usernamePrefix, "oidc-username-prefix", "", "what names are prefixed with; - is nothing (default: the issuer's URL and #, but nothing for email)")
	fs.StringVar(&o.groups, "oidc-groups-claim", "", "claim with the user's group or groups (default: none)")
	fs.StringVar(&o.groupsPrefix, "oidc-groups-prefix", "", "what groups are prefixed with")
	fs.StringSliceVar(&o.algorithms, "oidc-signing-algs", []string{"RS256"}, "algorithms its tokens may be signed with")
	fs.Var(&o.required, "oidc-required-claim", "claim=value its tokens must have; may be there more than once")
	fs.StringVar(&t.Kubeconfig, "authentication-token-webhook-config-file", "", "kubeconfig of a server that is asked who a token belongs to (default: none)")
	fs.StringVar(&t.Version, "authentication-token-webhook-version", "v1beta1", "of the TokenReviews it is sent: v1 or v1beta1")
	fs.DurationVar(&t.CacheTTL, "authentication-token-webhook-cache-ttl", 2*time.Minute, "how long its answers are good")
	fs.StringVar(&f.opts.AuthorizationFile, "authorization-config", "",
		"AuthorizationConfiguration with the authorizers, followed while the server runs (default: none)")
	fs.StringSliceVar(&f.modes, "authorization-mode", []string{config.Node, config.RBAC}, "authorizers in their order: Node, RBAC, Webhook, AlwaysAllow and AlwaysDeny")
	fs.StringVar(&f.file, "authorization-webhook-config-file", "", "kubeconfig of the server that mode Webhook asks")
	fs.StringVar(&h.SubjectAccessReviewVersion, "authorization-webhook-version", "v1beta1", "of the SubjectAccessReviews it is sent: v1 or v1beta1")
	fs.DurationVar(&h.AuthorizedTTL.Duration, "authorization-webhook-cache-authorized-ttl", 5*time.Minute, "how long an answer that allows is good")
	fs.DurationVar(&h.UnauthorizedTTL.Duration, "authorization-webhook-cache-unauthorized-ttl", 30*time.Second, "how long another answer is good")
}

func (f *authFlags) settle(p *program) (authconfig.Options, error) {
	o := f.opts
	o.NoBootstrapTokens = !f.bootstrap
	for flag, v := range map[string]string{"authentication-token-webhook-version": f.tokens.Version, "authorization-webhook-version": f.hook.SubjectAccessReviewVersion} {
		if v != "v1" && v != "v1beta1" {
			return o, fmt.Errorf("--%s: %q is neither v1 nor v1beta1", flag, v)
		}
	}
	if f.tokens.Kubeconfig != "" {
		o.Tokens = &f.tokens
	}
	if err := f.settleModes(p, &o); err != nil {
		return o, err
	}
	if p.given("anonymous-auth") {
		o.Anonymous, o.AnonymousFlag = &config.Anonymous{Enabled: f.anonymous}, true
	}
	if o.AuthorizationFile == "" && slices.Contains(f.modes, config.AlwaysAllow) {
		o.Anonymous = &config.Anonymous{} // as upstream: everybody may do everything, but somebody they must be
	}
	return o, f.settleIssuer(p, &o)
}

// settleModes makes authorizers of modes.
func (f *authFlags) settleModes(p *program, o *authconfig.Options) error {
	if o.AuthorizationFile != "" {
		for _, flag := range []string{"mode", "webhook-config-file", "webhook-version", "webhook-cache-authorized-ttl", "webhook-cache-unauthorized-ttl"} {
			if p.given("authorization-" + flag) {
				return errors.New("--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined")
			}
		}
		return nil
	}
	for i, m := range f.modes {
		switch {
		case m == "ABAC":
			return errors.New("--authorization-mode: ABAC is not supported")
		case !slices.Contains(config.Types(), m):
			return fmt.Errorf("authorization-mode %q is not a valid mode", m)
		case slices.Contains(f.modes[:i], m):
			return fmt.Errorf("authorization-mode %q has mode specified more than once", f.modes)
		case m == config.Webhook && f.file == "":
			return errors.New("authorization-mode Webhook's authorization config file not passed")
		}
		z := config.Authorizer{Type: m, Name: strings.ToLower(m)}
		if m == config.Webhook {
			yes, h := true, f.hook
			h.CacheAuthorizedRequests, h.CacheUnauthorizedRequests = &yes, &yes
			h.Timeout, h.FailurePolicy = metav1.Duration{Duration: 30 * time.Second}, "NoOpinion"
			h.ConnectionInfo = config.ConnectionInfo{Type: "KubeConfigFile", KubeConfigFile: &f.file}
			z.Name, z.Webhook = "default", &h
		}
		o.Authorizers = append(o.Authorizers, z)
	}
	if len(f.modes) == 0 {
		return errors.New("at least one authorization-mode must be passed")
	}
	if f.file != "" && !slices.Contains(f.modes, config.Webhook) {
		return errors.New("cannot specify --authorization-webhook-config-file without mode Webhook")
	}
	return nil
}

// settleIssuer makes the issuer of the --oidc flags.
func (f *authFlags) settleIssuer(p *program, o *authconfig.Options) error {
	some := false
	for _, flag := range []string{"issuer-url", "client-id", "ca-file", "username-claim", "username-prefix", "groups-claim", "groups-prefix", "signing-algs", "required-claim"} {
		some = some || p.given("oidc-"+flag)
	}
	c := f.oidc
	switch {
	case !some:
		return nil
	case o.AuthenticationFile != "":
		return errors.New("authentication-config file and oidc-* flags are mutually exclusive")
	case c.url == "" || c.client == "":
		return errors.New("oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set")
	}
	prefix := c.usernamePrefix
	if prefix == "" && c.username != "email" {
		prefix = c.url + "#"
	}
	if prefix == "-" {
		prefix = ""
	}
	jwt := config.JWT{
		Issuer:        config.Issuer{URL: c.url, Audiences: []string{c.client}},
		ClaimMappings: config.ClaimMappings{Username: config.PrefixedClaimOrExpression{Claim: c.username, Prefix: &prefix}},
	}
	if c.groups != "" {
		jwt.ClaimMappings.Groups = config.PrefixedClaimOrExpression{Claim: c.groups, Prefix: &c.groupsPrefix}
	}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return fmt.Errorf("--oidc-ca-file: %w", err)
		}
		jwt.Issuer.CertificateAuthority = string(pem)
	}
	for _, name := range slices.Sorted(maps.Keys(c.required)) {
		jwt.ClaimValidationRules = append(jwt.ClaimValidationRules, config.ClaimValidationRule{Claim: name, RequiredValue: c.required[name]})
	}
	o.JWT, o.Algorithms = []config.JWT{jwt}, c.algorithms
	return nil
}

// requiredClaims is a flag that is given once for each claim; a value may have commas in it.
type requiredClaims map[string]string

func (r *requiredClaims) String() string { return "" }
func (r *requiredClaims) Type() string   { return "mapStringString" }

func (r *requiredClaims) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("malformed pair, expect string=string")
	}
	if *r == nil {
		*r = requiredClaims{}
	}
	(*r)[strings.TrimSpace(name)] = strings.TrimSpace(value)
	return nil
}

package config

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	authnHead = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"
	authzHead = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n"
)

// jwt is a configuration of one issuer, from the fields given over good ones.
func jwt(issuer, rest string) string {
	if issuer == "" {
		issuer = "url: https://x, audiences: [a]"
	}
	if !strings.Contains(rest, "username:") {
		rest += "\n  claimMappings: {username: {claim: sub, prefix: ''}}"
	}
	return authnHead + "jwt:\n- issuer: {" + issuer + "}\n  " + strings.TrimSpace(rest) + "\n"
}

func compileText(text string) ([]*Claims, error) {
	c, err := ParseAuthentication([]byte(text))
	if err != nil {
		return nil, err
	}
	return c.Compile([]string{"https://own"})
}

func TestAuthenticationThatIsRefused(t *testing.T) {
	mapping := func(m string) string { return "claimMappings: {" + m + "}" }
	extra := func(e string) string { return mapping("username: {claim: sub, prefix: ''}, extra: [" + e + "]") }
	for _, c := range []struct{ text, want string }{
		{"", "empty config data"},
		{"kind: AuthenticationConfiguration\napiVersion: apiserver.config.k8s.io/v2\n", `no kind "AuthenticationConfiguration" is registered for version "apiserver.config.k8s.io/v2"`},
		{authzHead, "expected AuthenticationConfiguration, got AuthorizationConfiguration"},
		{authnHead + "jwts: []\n", `strict decoding error: unknown field "jwts"`},
		{authnHead + "jwt: []\njwt: []\n", `"jwt" already set in map`},
		{authnHead + "anonymous: {enabled: false, conditions: [{path: /x}]}\n", "anonymous.conditions: Invalid value: [{\"path\":\"/x\"}]: enabled should be set to true when conditions are defined"},
		{authnHead + "jwt: [" + strings.Repeat("{},", 65) + "]\n", "jwt: Too many: 65: must have at most 64 items"},
		{jwt("audiences: [a]", ""), "jwt[0].issuer.url: Required value"},
		{jwt("url: http://x, audiences: [a]", ""), `jwt[0].issuer.url: Invalid value: "http://x": URL scheme must be https`},
		{jwt("url: https://u:p@x, audiences: [a]", ""), "URL must not contain a username or password"},
		{jwt("url: 'https://x?q', audiences: [a]", ""), "URL must not contain a query"},
		{jwt("url: 'https://x#f', audiences: [a]", ""), "URL must not contain a fragment"},
		{jwt("url: 'https://%zz', audiences: [a]", ""), `parse "https://%zz": invalid URL escape "%zz"`},
		{jwt("url: https://own, audiences: [a]", ""), "URL must not overlap with disallowed issuers: [https://own]"},
		{jwt("url: https://x, discoveryURL: https://x/, audiences: [a]", ""), "jwt[0].issuer.discoveryURL: Invalid value: \"https://x/\": discoveryURL must be different from URL"},
		{jwt("url: https://x", ""), "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required"},
		{jwt("url: https://x, audiences: ['']", ""), "jwt[0].issuer.audiences[0]: Required value"},
		{jwt("url: https://x, audiences: [a, a], audienceMatchPolicy: MatchAny", ""), `jwt[0].issuer.audiences[1]: Duplicate value: "a"`},
		{jwt("url: https://x, audiences: [a, b]", ""), "audienceMatchPolicy must be MatchAny for multiple audiences"},
		{jwt("url: https://x, audiences: [a], audienceMatchPolicy: All", ""), "audienceMatchPolicy must be empty or MatchAny for single audience"},
		{jwt("url: https://x, audiences: [a], certificateAuthority: none", ""), `jwt[0].issuer.certificateAuthority: Invalid value: "<omitted>": data does not contain any valid RSA or ECDSA certificates`},
		{jwt("url: https://x, audiences: [a], egressSelectorType: etcd", ""), "egress selector must be either controlplane or cluster"},
		{jwt("url: https://x, audiences: [a], egressSelectorType: cluster", ""), "egress selectors are not supported"},
		{jwt("", "claimValidationRules: [{claim: a, expression: b}]"), "claimValidationRules[0]: Invalid value: \"a\": claim and expression can't both be set"},
		{jwt("", "claimValidationRules: [{}]"), "claimValidationRules[0]: Required value: claim or expression is required"},
		{jwt("", "claimValidationRules: [{claim: a, message: b}]"), "message: Invalid value: \"b\": may not be specified when claim is set"},
		{jwt("", "claimValidationRules: [{claim: a}, {claim: a}]"), `claimValidationRules[1].claim: Duplicate value: "a"`},
		{jwt("", "claimValidationRules: [{expression: 'true', requiredValue: x}]"), "may not be specified when expression is set"},
		{jwt("", "claimValidationRules: [{expression: 'true'}, {expression: 'true'}]"), `claimValidationRules[1].expression: Duplicate value: "true"`},
		{jwt("", "claimValidationRules: [{expression: claims.x}]"), `claimValidationRules[0].expression: Invalid value: "claims.x": must evaluate to bool`},
		{jwt("", "claimValidationRules: [{expression: foo}]"), "compilation failed: ERROR: <input>:1:1: undeclared reference to 'foo'"},
		{jwt("", mapping("username: {}")), "jwt[0].claimMappings.username: Required value: claim or expression is required"},
		{jwt("", mapping("username: {claim: sub}")), "username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"},
		{jwt("", mapping("username: {claim: sub, expression: claims.sub}")), "username: Invalid value: \"\": claim and expression can't both be set"},
		{jwt("", mapping("username: {expression: claims.sub, prefix: x}")), "username.prefix: Invalid value: \"x\": may not be specified when expression is set"},
		{jwt("", mapping("username: {claim: sub, prefix: ''}, groups: {claim: g}")), "groups.prefix: Required value"},
		{jwt("", mapping("username: {claim: sub, prefix: ''}, uid: {claim: u, expression: claims.u}")), "uid: Invalid value: \"\": claim and expression can't both be set"},
		{jwt("", mapping("username: {expression: claims.email}")), "claims.email_verified must be used in claimMappings.username.expression"},
		{jwt("", mapping("username: {expression: 'claims.?email.orValue(\"\")'}")), "claims.email_verified must be used"},
		{jwt("", extra("{key: a, valueExpression: '\"x\"'}")), `extra[0].key: Invalid value: "a": must be a domain-prefixed path (such as "acme.io/foo")`},
		{jwt("", extra("{key: b.c/D, valueExpression: '\"x\"'}")), "must be lowercase"},
		{jwt("", extra("{key: x.k8s.io/d, valueExpression: '\"x\"'}")), "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"},
		{jwt("", extra("{key: b.c/d, valueExpression: '\"x\"'}, {key: b.c/d, valueExpression: '\"x\"'}")), `extra[1].key: Duplicate value: "b.c/d"`},
		{jwt("", extra("{key: b.c/d}")), "extra[0].valueExpression: Required value"},
		{jwt("", "userValidationRules: [{}]"), "userValidationRules[0].expression: Required value"},
		{jwt("", "userValidationRules: [{expression: user.name == 'x'}]"), "undefined field 'name'"},
		{jwt("", "userValidationRules: [{expression: user.username}]"), "must evaluate to bool"},
		{jwt("", "") + "- issuer: {url: https://x, audiences: [a]}\n  claimMappings: {username: {claim: sub, prefix: ''}}\n", `jwt[1].issuer.url: Duplicate value: "https://x"`},
		{jwt("url: https://x, discoveryURL: https://d, audiences: [a]", "") + "- issuer: {url: https://y, discoveryURL: https://d, audiences: [a]}\n  claimMappings: {username: {claim: sub, prefix: ''}}\n",
			`jwt[1].issuer.discoveryURL: Duplicate value: "https://d"`},
	} {
		if _, err := compileText(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v\nwant %s", c.text, err, c.want)
		}
	}
}

func TestAuthenticationThatIsGood(t *testing.T) {
	for _, text := range []string{
		authnHead, // no issuer yet
		strings.Replace(jwt("", ""), "io/v1\n", "io/v1beta1\n", 1),
		strings.Replace(jwt("", ""), "io/v1\n", "io/v1alpha1\n", 1),
		authnHead + "anonymous: {enabled: true, conditions: [{path: /livez}]}\n",
		jwt("", "claimMappings: {username: {expression: 'claims.email_verified ? claims.email : claims.sub'}}"),
		jwt("", "claimMappings: {username: {expression: claims.email}, extra: [{key: a.b/c, valueExpression: 'string(claims.?email_verified.orValue(true))'}]}"),
		jwt("", "claimValidationRules: [{expression: 'claims.?email_verified.orValue(true) == true'}]\n  claimMappings: {username: {expression: claims.email}}"),
		jwt("", "claimMappings: {username: {expression: claims.user.email}}"), // another email
	} {
		if _, err := compileText(text); err != nil {
			t.Errorf("%s\n%v", text, err)
		}
	}
}

func TestUsersOfClaims(t *testing.T) {
	const jane = `{"sub":"jane","email":"j@x","groups":["a","b"],"role":"dev","num":7,"ok":true,"jti":"42","a.b":{"c.d":["e"]},"empty":"","list":["x",""]}`
	expr := func(rest string) string { return "claimMappings: {username: {expression: claims.sub}" + rest + "}" }
	for _, c := range []struct{ rest, claims, want string }{
		{"claimMappings: {username: {claim: sub, prefix: 'x:'}, groups: {claim: groups, prefix: 'g:'}, uid: {claim: sub}}", jane,
			`x:jane jane [g:a g:b] {"authentication.kubernetes.io/credential-id":["JTI=42"]}`},
		{"claimMappings: {username: {claim: sub, prefix: ''}, groups: {claim: role, prefix: ''}}", jane, `jane  [dev] {"authentication.kubernetes.io/credential-id":["JTI=42"]}`},
		{"claimMappings: {username: {claim: sub, prefix: ''}, groups: {claim: none, prefix: 'x'}}", `{"sub":"j"}`, `j  [] null`},
		{"claimMappings: {username: {claim: sub, prefix: ''}, groups: {claim: num, prefix: ''}}", jane, `oidc: parse groups claim "num": json: cannot unmarshal number into Go value of type string`},
		{"claimMappings: {username: {claim: none, prefix: ''}}", jane, `oidc: parse username claims "none": claim not present`},
		{"claimMappings: {username: {claim: num, prefix: ''}}", jane, `oidc: parse username claims "num": json: cannot unmarshal number`},
		{"claimMappings: {username: {claim: sub, prefix: ''}, uid: {claim: num}}", jane, `oidc: parse uid claim "num"`},
		{"claimMappings: {username: {claim: email, prefix: ''}}", `{"email":"j@x"}`, "j@x  [] null"},
		{"claimMappings: {username: {claim: email, prefix: ''}}", `{"email":"j@x","email_verified":true}`, "j@x  [] null"},
		{"claimMappings: {username: {claim: email, prefix: ''}}", `{"email":"j@x","email_verified":false}`, "oidc: email not verified"},
		{"claimMappings: {username: {claim: email, prefix: ''}}", `{"email":"j@x","email_verified":"yes"}`, "oidc: parse 'email_verified' claim: json: cannot"},
		{expr(""), `{"sub":"jane"}`, "jane  [] null"},
		{expr(""), `{"sub":""}`, "oidc: empty username via CEL expression is not allowed"},
		{expr(""), `{"sub":7}`, "oidc: error evaluating username claim expression: username claim expression must return a string"},
		{expr(""), `{}`, "oidc: error evaluating username claim expression: expression 'claims.sub' resulted in error: no such key: sub"},
		{expr(", groups: {expression: 'dyn(claims.groups).map(g, \"x:\" + g)'}, uid: {expression: claims.email}"), jane, `jane j@x [x:a x:b]`},
		{expr(", groups: {expression: claims.role}"), jane, `jane  [dev]`},
		{expr(", groups: {expression: claims.list}"), jane, `jane  [x]`},
		{expr(", groups: {expression: claims.empty}"), jane, `jane  []`},
		{expr(", groups: {expression: 'null'}"), jane, `jane  []`},
		{expr(", groups: {expression: claims.num}"), jane, "oidc: error evaluating group claim expression: expression must return a string or a list of strings"},
		{expr(", groups: {expression: '[1, 2]'}"), jane, "expression must return a string or a list of strings"},
		{expr(", groups: {expression: 'claims.a__dot__b.c__dot__d'}"), jane, "jane  [e]"},
		{expr(", groups: {expression: 'claims[\"a.b\"][\"c.d\"]'}"), jane, "jane  [e]"},
		{expr(", uid: {expression: claims.num}"), jane, "oidc: error evaluating uid claim expression: uid claim expression must return a string"},
		{expr(", extra: [{key: a.b/c, valueExpression: claims.role}, {key: a.b/d, valueExpression: '(has(claims.numo) && claims.numo) ? \"true\":\"\"'}]"), `{"sub":"j","role":"x"}`, `j  [] {"a.b/c":["x"]}`},
		{expr(", extra: [{key: a.b/c, valueExpression: claims.num}]"), jane, "oidc: error evaluating extra claim expression: claims.num: expression must return a string or a list of strings"},
		{"claimValidationRules: [{claim: role, requiredValue: dev}, {expression: 'claims.num == 7'}]", `{"sub":"j","role":"dev","num":7}`, "j  [] null"},
		{"claimValidationRules: [{claim: role, requiredValue: ops}]", jane, "oidc: required claim role value does not match. Got = dev, want = ops"},
		{"claimValidationRules: [{claim: none}]", jane, "oidc: required claim none not present in ID token"},
		{"claimValidationRules: [{claim: groups, requiredValue: a}]", jane, "oidc: parse claim groups: json: cannot unmarshal array"},
		{"claimValidationRules: [{expression: claims.num < 7, message: too many}]", jane, "oidc: error evaluating claim validation expression: validation expression 'claims.num < 7' failed: too many"},
		{"claimValidationRules: [{expression: 'sets.equivalent(claims.groups, [\"b\", \"a\"])'}]", `{"sub":"j","groups":["a","b"]}`, "j  [] null"},
		{"userValidationRules: [{expression: '!user.username.startsWith(\"system:\")', message: reserved}]", `{"sub":"system:x"}`,
			"oidc: error evaluating user info validation rule: validation expression '!user.username.startsWith(\"system:\")' failed: reserved"},
		{"claimMappings: {username: {claim: sub, prefix: ''}, groups: {claim: groups, prefix: ''}}\n  userValidationRules: [{expression: 'user.groups.all(g, g != \"b\")'}]", jane, "user.groups.all"},
		{"claimMappings: {username: {claim: sub, prefix: ''}, extra: [{key: a.b/c, valueExpression: '\"v\"'}]}\n  userValidationRules: [{expression: 'user.extra[\"a.b/c\"] == [\"v\"]'}]", `{"sub":"j"}`, `j  [] {"a.b/c":["v"]}`},
	} {
		all, err := compileText(jwt("", c.rest))
		if err != nil {
			t.Errorf("%s: %v", c.rest, err)
			continue
		}
		var raw RawClaims
		if err := json.Unmarshal([]byte(c.claims), &raw); err != nil {
			t.Fatal(err)
		}
		u, err := all[0].User(t.Context(), raw)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			extra, _ := json.Marshal(u.Extra)
			got = u.Name + " " + u.UID + " [" + strings.Join(u.Groups, " ") + "] " + string(extra)
		}
		if !strings.Contains(got, c.want) || err != nil && u.Name != "" {
			t.Errorf("%s\n%s\ngot  %s\nwant %s", c.rest, c.claims, got, c.want)
		}
	}
}

const webhookText = `authorizers:
- type: Webhook
  name: w
  webhook: {timeout: 3s, subjectAccessReviewVersion: v1, matchConditionSubjectAccessReviewVersion: v1, failurePolicy: Deny,
    connectionInfo: {type: KubeConfigFile, kubeConfigFile: /dev/null}, matchConditions: [{expression: "request.user == 'x'"}]}
- {type: RBAC, name: rbac}
`

func TestAuthorizationThatIsRefused(t *testing.T) {
	with := func(old, new string) string { return authzHead + strings.Replace(webhookText, old, new, 1) }
	for _, c := range []struct{ text, want string }{
		{"", "authorizers: Required value: at least one authorization mode must be defined"},
		{authnHead, "failed to load AuthorizationConfiguration from file: expected AuthorizationConfiguration, got AuthenticationConfiguration"},
		{authzHead + "authorizer: []", `failed to load AuthorizationConfiguration from file: strict decoding error: unknown field "authorizer"`},
		{with("type: RBAC", "type: ''"), "authorizers[1].type: Required value"},
		{with("type: RBAC", "type: Root"), `authorizers[1].type: Unsupported value: "Root": supported values: "ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"`},
		{with("type: RBAC", "type: ABAC"), "authorizer type ABAC is not supported"},
		{with("name: rbac", "name: ''"), "authorizers[1].name: Required value"},
		{with("name: rbac", "name: w"), `authorizers[1].name: Duplicate value: "w"`},
		{with("name: rbac", "name: R_"), "authorizers[1].name: Invalid value: \"R_\": authorizer name is invalid: a lowercase RFC 1123 subdomain"},
		{with("name: rbac", "name: r"), "expected name rbac for authorizer RBAC instead of r"},
		{authzHead + webhookText + "- {type: RBAC, name: again}\n", `authorizers[2].type: Duplicate value: "RBAC"`},
		{with("name: rbac", "name: rbac, webhook: {}"), "authorizers[1].webhook: Invalid value: \"non-null\": may only be specified when type=Webhook"},
		{authzHead + "authorizers: [{type: Webhook, name: w}]", "authorizers[0].webhook: Required value: required when type=Webhook"},
		{with("timeout: 3s, ", ""), "authorizers[0].timeout: Required value"},
		{with("timeout: 3s", "timeout: 31s"), `authorizers[0].timeout: Invalid value: "31s": must be > 0s and <= 30s`},
		{with("timeout: 3s", "timeout: 3s, authorizedTTL: -1s"), `authorizers[0].authorizedTTL: Invalid value: "-1s": must be > 0s`},
		{with("timeout: 3s", "timeout: 3s, unauthorizedTTL: -1s"), `authorizers[0].unauthorizedTTL: Invalid value: "-1s": must be > 0s`},
		{with("subjectAccessReviewVersion: v1, ", ""), "authorizers[0].subjectAccessReviewVersion: Required value"},
		{with("subjectAccessReviewVersion: v1,", "subjectAccessReviewVersion: v2,"), `authorizers[0].subjectAccessReviewVersion: Unsupported value: "v2": supported values: "v1", "v1beta1"`},
		{with("matchConditionSubjectAccessReviewVersion: v1, ", ""), "matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified"},
		{with("matchConditionSubjectAccessReviewVersion: v1,", "matchConditionSubjectAccessReviewVersion: v1beta1,"), `matchConditionSubjectAccessReviewVersion: Unsupported value: "v1beta1": supported values: "v1"`},
		{with("failurePolicy: Deny", "failurePolicy: Fail"), `authorizers[0].failurePolicy: Unsupported value: "Fail": supported values: "NoOpinion", "Deny"`},
		{with("type: KubeConfigFile, ", ""), "authorizers[0].connectionInfo.type: Required value"},
		{with("type: KubeConfigFile", "type: File"), `connectionInfo.type: Unsupported value: "File"`},
		{with("type: KubeConfigFile, kubeConfigFile: /dev/null", "type: InClusterConfig"), `connectionInfo.type: Unsupported value: "InClusterConfig": supported values: "KubeConfigFile"`},
		{with("kubeConfigFile: /dev/null", "kubeConfigFile: ''"), "connectionInfo.kubeConfigFile: Required value"},
		{with("kubeConfigFile: /dev/null", "kubeConfigFile: x"), "must be an absolute path"},
		{with("kubeConfigFile: /dev/null", "kubeConfigFile: /none"), "error loading file: stat /none: no such file or directory"},
		{with("kubeConfigFile: /dev/null", "kubeConfigFile: /dev/zero"), "must be a regular file"},
		{with(`"request.user == 'x'"`, "' '"), "authorizers[0].matchConditions[0].expression: Required value"},
		{with(`"request.user == 'x'"`, "request.user"), `authorizers[0].matchConditions[0].expression: Invalid value: "request.user": must evaluate to bool but got string`},
		{with(`"request.user == 'x'"`, "request.name == 'x'"), "compilation failed: ERROR: <input>:1:8: undefined field 'name'"},
		{with(`[{expression: "request.user == 'x'"}]`, `[{expression: 'true'}, {expression: 'true'}]`), `authorizers[0].matchConditions[1].expression: Duplicate value: "true"`},
		{with(`[{expression: "request.user == 'x'"}]`, "["+strings.Repeat("{expression: 'true'},", 65)+"]"), "authorizers[0].matchConditions: Too many: 65: must have at most 64 items"},
		{authzHead + "authorizers: [{type: RBAC, name: rbac}]", "missing required types: [Node]"},
	} {
		if _, err := ParseAuthorization([]byte(c.text), statTest, []string{"Node", "RBAC"}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v\nwant %s", c.text, err, c.want)
		}
	}
}

// statTest takes /dev/null for a regular file.
func statTest(name string) (fs.FileInfo, error) {
	if name == os.DevNull {
		name = "config_test.go"
	}
	return os.Stat(filepath.Clean(name))
}

func TestAuthorizationDefaults(t *testing.T) {
	for _, version := range []string{"v1", "v1beta1", "v1alpha1"} {
		c, err := ParseAuthorization([]byte(strings.Replace(authzHead, "io/v1", "io/"+version, 1)+webhookText), statTest, []string{"RBAC"})
		if err != nil {
			t.Fatal(err)
		}
		w := c.Authorizers[0].Webhook
		if w.AuthorizedTTL.Duration.String() != "5m0s" || w.UnauthorizedTTL.Duration.String() != "30s" || !*w.CacheAuthorizedRequests || !*w.CacheUnauthorizedRequests {
			t.Errorf("%+v", w)
		}
	}
}

func TestMatchConditions(t *testing.T) {
	pods := &authorizationv1.SubjectAccessReviewSpec{User: "jane", Groups: []string{"dev"}, ResourceAttributes: &authorizationv1.ResourceAttributes{
		Namespace: "a", Verb: "list", Resource: "pods",
		FieldSelector: &authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: "In", Values: []string{"n"}}}},
		LabelSelector: &authorizationv1.LabelSelectorAttributes{RawSelector: "a=b"},
	}, Extra: map[string]authorizationv1.ExtraValue{"k": {"v"}}}
	path := &authorizationv1.SubjectAccessReviewSpec{User: "jane", NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: "/x", Verb: "get"}}
	for _, c := range []struct {
		conditions string // separated by ;
		spec       *authorizationv1.SubjectAccessReviewSpec
		match      bool
		err        string
	}{
		{"", pods, true, ""},
		{"request.user == 'jane' && 'dev' in request.groups && request.uid == '' && request.extra['k'] == ['v']", pods, true, ""},
		{"has(request.resourceAttributes) && request.resourceAttributes.namespace == 'a' && request.resourceAttributes.group == ''", pods, true, ""},
		{"request.resourceAttributes.fieldSelector.requirements.exists(r, r.key == 'spec.nodeName' && r.operator == 'In' && r.values == ['n'])", pods, true, ""},
		{"request.resourceAttributes.labelSelector.rawSelector == 'a=b'", pods, true, ""},
		{"request.resourceAttributes.?labelSelector.?rawSelector.orValue('') == 'a=b'", pods, true, ""},
		{"has(request.resourceAttributes)", path, false, ""},
		{"request.nonResourceAttributes.path == '/x'", path, true, ""},
		{"request.resourceAttributes.verb == 'x'", path, false, "cel evaluation error: expression 'request.resourceAttributes.verb == 'x'' resulted in error: no such key: resourceAttributes"},
		{"request.resourceAttributes.verb == 'x';false", path, false, ""}, // what is false decides
		{"true;false", path, false, ""},
	} {
		var list []MatchCondition
		for _, text := range strings.FieldsFunc(c.conditions, func(r rune) bool { return r == ';' }) {
			list = append(list, MatchCondition{text})
		}
		compiled, errs := compileConditions(compiler{}, list, nil)
		if len(errs) > 0 {
			t.Errorf("%s: %v", c.conditions, errs)
			continue
		}
		match, err := compiled.Match(t.Context(), c.spec)
		if match != c.match || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v; want %v, %s", c.conditions, match, err, c.match, c.err)
		}
	}
}

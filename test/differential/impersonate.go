package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// impersonators are service accounts and what each may do, as rules of RBAC: verbs, groups, resources, names.
var impersonators = map[string][][4]string{
	"none":   nil,
	"plain":  {{"impersonate", ",authentication.k8s.io", "users,groups,serviceaccounts,userextras/scopes,uids", ""}},
	"users":  {{"impersonate:user-info", "authentication.k8s.io", "users,uids", ""}, {"impersonate-on:user-info:list,impersonate-on:user-info:create", "", "configmaps", ""}},
	"whom":   {{"impersonate:user-info", "authentication.k8s.io", "users", "bob"}, {"impersonate-on:user-info:get", "", "configmaps", ""}},
	"what":   {{"impersonate-on:user-info:list", "", "configmaps", ""}},
	"groups": {{"impersonate:user-info", "authentication.k8s.io", "users,groups,userextras/a.io/k", ""}, {"impersonate-on:user-info:*,impersonate-on:user-info:list", "", "configmaps", ""}},
	"bots":   {{"impersonate:serviceaccount", "authentication.k8s.io", "serviceaccounts", ""}, {"impersonate-on:serviceaccount:list", "", "configmaps", ""}},
	"nodes":  {{"impersonate:arbitrary-node", "authentication.k8s.io", "nodes", ""}, {"impersonate-on:arbitrary-node:list", "", "configmaps,nodes", ""}},
	"agent":  {{"impersonate:associated-node", "authentication.k8s.io", "nodes", ""}, {"impersonate-on:associated-node:list", "", "configmaps", ""}},
}

// impersonated is who each of them tries to be.
var impersonated = []string{
	"User: bob", "User: eve", "User: system:anonymous", "User: bob, Uid: 7", "User: bob, Group: g", "User: bob, Group: system:masters", "User: bob, Group: ",
	"User: bob, Group: a, Group: b, Group: c, Group: d", "User: bob, Extra-Scopes: x", "User: bob, Extra-A.io%2fk: x", "User: bob, Extra-A.io%2f%4b: x",
	"User: system:serviceaccount:default:plain", "User: system:serviceaccount:default:plain, Group: g", "User: system:serviceaccount:x", "User: system:node:n1",
	"User: system:node:own", "User: system:node:N1", "User: system:node:n1, Group: system:nodes", "Group: g", "Uid: 7", "Extra-Scopes: x", "User: ",
}

// impersonation has service accounts try to be others.
func impersonation(ctx context.Context, p *pair) error {
	if !p.only.MatchString("impersonation") {
		return nil
	}
	for name, rules := range impersonators {
		tokens, err := p.impersonator(ctx, name, rules)
		if err != nil {
			return fmt.Errorf("service account %s: %w", name, err)
		}
		for _, whom := range impersonated {
			for _, what := range []string{"GET /api/v1/namespaces/default/configmaps", "GET /api/v1/namespaces/default/configmaps/x", "POST /apis/authentication.k8s.io/v1/selfsubjectreviews", "GET /healthz"} {
				method, path, _ := strings.Cut(what, " ")
				r := request{name: "impersonation " + name + ", " + whom + ", " + what, method: method, path: path, tokens: tokens}
				for h := range strings.SplitSeq(whom, ", ") {
					k, v, _ := strings.Cut(h, ": ")
					r.headers = append(r.headers, [2]string{"Impersonate-" + k, v})
				}
				if method == "POST" {
					r.body = []byte(`{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`)
				}
				p.send(ctx, r)
			}
		}
	}
	return ctx.Err()
}

// impersonator makes a service account that may do something, and returns its tokens for both servers. They are bound to
// the node "own".
func (p *pair) impersonator(ctx context.Context, name string, rules [][4]string) (tokens [2]string, err error) {
	role := map[string]any{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": "impersonator-" + name}}
	list := []any{map[string]any{"verbs": []string{"create"}, "apiGroups": []string{"authentication.k8s.io"}, "resources": []string{"selfsubjectreviews"}}}
	for _, r := range rules {
		rule := map[string]any{"verbs": strings.Split(r[0], ","), "apiGroups": strings.Split(r[1], ","), "resources": strings.Split(r[2], ",")}
		if r[3] != "" {
			rule["resourceNames"] = []string{r[3]}
		}
		list = append(list, rule)
	}
	role["rules"] = list
	binding := map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": "impersonator-" + name},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "impersonator-" + name},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "namespace": "default", "name": name}},
	}
	const accounts, nodes = "/api/v1/namespaces/default/serviceaccounts", "/api/v1/nodes"
	for _, o := range []struct {
		path   string
		object any
	}{
		{accounts, map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": name}}},
		{"/apis/rbac.authorization.k8s.io/v1/clusterroles", role}, {"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding},
		{nodes, map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": "own"}}},
		{accounts + "/" + name + "/token", map[string]any{
			"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
			"spec": map[string]any{"boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Node", "name": "own"}},
		}},
	} {
		body, err := json.Marshal(o.object)
		if err != nil {
			return tokens, err
		}
		for i := range p.servers {
			a := p.servers[i].do(ctx, request{method: "POST", path: o.path}, body)
			if o.path == nodes && a.code == 409 {
				continue // made for the one before
			}
			if a.err != nil || a.code != 201 {
				return tokens, fmt.Errorf("server %d: %s: %d %s %v", i, o.path, a.code, a.body, a.err)
			}
			var made struct{ Status struct{ Token string } }
			if err := json.Unmarshal(a.body, &made); err != nil {
				return tokens, err
			}
			tokens[i] = made.Status.Token
		}
	}
	return tokens, nil
}

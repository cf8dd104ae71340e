package openapi

import "github.com/skiff-project/skiff/api"

// page is what tells of the server itself, below "/": discovery, the version, the issuer of tokens.
type page struct {
	id, tag, about string
	out            string // the type of the answer; "" for a text
	types          []string
	anyBody        bool // takes, in name, no body of a type
}

// pages are they, by path.
func pages(resources []*api.Resource) map[string]page {
	all := map[string]page{
		"api":     {id: "getCoreAPIVersions", tag: "core", about: "get available API versions", out: metaTypes + "APIVersions", types: bodyTypes},
		"apis":    {id: "getAPIVersions", tag: "apis", about: "get available API versions", out: metaTypes + "APIGroupList", types: bodyTypes},
		"version": {id: "getCodeVersion", tag: "version", about: "get the version information for this server", out: "io.k8s.apimachinery.pkg.version.Info", types: bodyTypes[:1]},
		".well-known/openid-configuration": {
			id: "getServiceAccountIssuerOpenIDConfiguration", tag: "WellKnown", types: bodyTypes[:1], anyBody: true,
			about: "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
		},
		"openid/v1/jwks": {
			id: "getServiceAccountIssuerOpenIDKeyset", tag: "openid", types: []string{"application/jwk-set+json"}, anyBody: true,
			about: "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
		},
	}
	for _, r := range resources {
		if r.Codec != nil {
			continue // upstream tells of no discovery of custom resources
		}
		if r.Group != "" {
			name := camel(shortGroup(r.Group), false)
			all["apis/"+r.Group] = page{id: "get" + camel(name, true) + "APIGroup", tag: name, about: "get information of a group", out: metaTypes + "APIGroup", types: bodyTypes}
		}
		for _, v := range r.Versions {
			all[PathOf(r.Group, v.Name)] = page{
				id: "get" + scopeOf(r.Group, v.Name) + "APIResources", tag: tagOf(r.Group, v.Name),
				about: "get available resources", out: metaTypes + "APIResourceList", types: bodyTypes,
			}
		}
	}
	return all
}

func (m *models) page(p page) operation {
	o := operation{method: "get", id: p.id, tag: p.tag, about: p.about, produces: p.types, codes: []int{200}}
	if !p.anyBody {
		o.consumes = p.types
	}
	if p.out != "" {
		o.out = m.define(p.out)
	}
	return o
}

// Package request takes a request's URL and method apart into what the API
// server routes, authorizes and admits by. It is pure.
package request

import (
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/fields"

	"github.com/skiff-project/skiff/auth"
)

// Info is what the path, method and query of a request mean.
type Info struct {
	IsResource bool
	Path       string
	// Verb is get, list, watch, create, update, patch, delete or
	// deletecollection; for other requests the method in lower case.
	Verb        string
	Prefix      string // "api" or "apis"
	Group       string
	Version     string
	Namespace   string
	Resource    string
	Subresource string
	Name        string
	// Rest is the path behind a subresource (proxy), without leading slash,
	// and HasRest tells a bare path from one that ends in a slash.
	Rest    string
	HasRest bool
	// Fields is the parsed field selector of a list, watch or deletecollection.
	Fields    fields.Selector
	BadFields error  // why it could not be parsed
	Labels    string // the label selector of one

	waited atomic.Int64 // nanoseconds
}

var methodVerbs = map[string]string{
	http.MethodPost: "create", http.MethodGet: "get", http.MethodHead: "get",
	http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete",
}

// namespaceSubresources are subresources of namespaces themselves, not
// resources in one.
var namespaceSubresources = map[string]bool{"status": true, "finalize": true}

// Parse takes a request apart. Query is the request's parsed query.
func Parse(req *http.Request, query url.Values) *Info {
	i := &Info{Path: req.URL.Path, Verb: strings.ToLower(req.Method)}
	parts := split(req.URL.Path)
	if len(parts) < 3 {
		return i
	}
	switch parts[0] {
	case "api":
		i.Prefix, i.Version, parts = "api", parts[1], parts[2:]
	case "apis":
		if len(parts) < 4 {
			return i
		}
		i.Prefix, i.Group, i.Version, parts = "apis", parts[1], parts[2], parts[3:]
	default:
		return i
	}
	i.IsResource = true
	i.Verb = methodVerbs[req.Method]
	legacyWatch := false
	if parts[0] == "watch" && len(parts) > 1 {
		legacyWatch, parts = true, parts[1:]
	}
	if parts[0] == "proxy" && len(parts) > 1 {
		parts = parts[1:]
	}
	i.resource(req, parts)
	i.listVerbs(query, legacyWatch)
	return i
}

// resource reads namespace, resource, name, subresource and rest.
func (i *Info) resource(req *http.Request, parts []string) {
	if parts[0] == "namespaces" && len(parts) > 1 {
		i.Namespace = parts[1]
		if len(parts) > 2 && !namespaceSubresources[parts[2]] {
			parts = parts[2:]
		}
	}
	i.Resource = parts[0]
	if len(parts) > 1 {
		i.Name = parts[1]
	}
	if len(parts) > 2 {
		i.Subresource = parts[2]
		i.Rest = strings.Join(parts[3:], "/")
		i.HasRest = len(parts) > 3 || strings.HasSuffix(req.URL.Path, "/")
		if i.Rest != "" && strings.HasSuffix(req.URL.Path, "/") {
			i.Rest += "/"
		}
	}
}

// listVerbs turns get and delete without a name into their collection verbs.
func (i *Info) listVerbs(query url.Values, legacyWatch bool) {
	if legacyWatch {
		i.Verb = "watch"
	}
	if i.Name == "" || legacyWatch {
		switch i.Verb {
		case "get":
			i.Verb = "list"
			if w, ok := query["watch"]; ok && len(w) > 0 && w[0] != "false" && w[0] != "0" {
				i.Verb = "watch"
			}
		case "delete":
			i.Verb = "deletecollection"
		}
	}
	if i.Verb != "list" && i.Verb != "watch" && i.Verb != "deletecollection" {
		return
	}
	i.Labels = query.Get("labelSelector")
	if text := query.Get("fieldSelector"); text != "" {
		i.Fields, i.BadFields = fields.ParseSelector(text)
	}
	if legacyWatch && i.Name != "" {
		one := fields.OneTermEqualSelector("metadata.name", i.Name)
		if i.Fields != nil {
			one = fields.AndSelectors(i.Fields, one)
		}
		i.Fields = one
	}
	if i.Name == "" && i.Fields != nil {
		if name, ok := i.Fields.RequiresExactMatch("metadata.name"); ok && validName(name) {
			i.Name = name
		}
	}
}

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/%")
}

func split(path string) []string {
	path = strings.Trim(path, "/")
	if path == "" {
		return nil
	}
	return strings.Split(path, "/")
}

// Attributes returns what the authorizer is asked.
func (i *Info) Attributes(user auth.User) auth.Attributes {
	a := auth.Attributes{
		User: user, Verb: i.Verb, Namespace: i.Namespace, APIGroup: i.Group, APIVersion: i.Version,
		Resource: i.Resource, Subresource: i.Subresource, Name: i.Name, ResourceRequest: i.IsResource, Path: i.Path, LabelSelector: i.Labels,
	}
	if i.Fields != nil {
		a.FieldSelector = i.Fields.Requirements()
	}
	return a
}

// LongRunning tells requests that may take as long as their client likes.
func (i *Info) LongRunning(query url.Values) bool {
	if !i.IsResource {
		return strings.HasPrefix(i.Path, "/debug/pprof/") // a profile of so many seconds
	}
	switch i.Subresource {
	case "exec", "attach", "portforward", "proxy":
		return true
	case "log":
		return query.Get("follow") == "true" || query.Get("follow") == "1"
	}
	return i.Verb == "watch"
}

// ReadOnly tells requests that change nothing: admission never sees them.
func (i *Info) ReadOnly() bool {
	return !i.IsResource || i.Verb == "get" || i.Verb == "list" || i.Verb == "watch"
}

package openapi

import (
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/api"
)

// operation is one method on one path, in neither version's words yet.
type operation struct {
	method, action, id, tag, about string
	group, version, kind           string
	path                           []string // names of path parameters
	query                          []param
	in, out                        string // definition names; "" for none
	created                        bool   // may answer 201
	plain                          bool   // answers plain text
	custom                         bool   // on custom resources
}

type param struct{ name, kind, about string }

var (
	paramPretty = param{"pretty", "string", "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget)."}
	writeParams = []param{
		{"dryRun", "string", "When present, indicates that modifications should not be persisted. Valid values are: - All: all dry run stages will be processed"},
		{"fieldManager", "string", "fieldManager is a name associated with the actor or entity that is making these changes."},
		{"fieldValidation", "string", "fieldValidation instructs the server on how to handle objects in the request containing unknown or duplicate fields. Valid values are: Ignore, Warn, Strict."},
	}
	paramForce   = param{"force", "boolean", "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other people."}
	deleteParams = []param{
		writeParams[0],
		{"gracePeriodSeconds", "integer", "The duration in seconds before the object should be deleted."},
		{"ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", "Deletes an object that cannot be read any more."},
		{"orphanDependents", "boolean", "Deprecated: use the PropagationPolicy. Should the dependent objects be orphaned."},
		{"propagationPolicy", "string", "Whether and how garbage collection will be performed: 'Orphan', 'Background' or 'Foreground'."},
	}
	listParams = []param{
		{"allowWatchBookmarks", "boolean", "allowWatchBookmarks requests watch events with type \"BOOKMARK\"."},
		{"continue", "string", "The continue option should be set when retrieving more results from the server."},
		{"fieldSelector", "string", "A selector to restrict the list of returned objects by their fields. Defaults to everything."},
		{"labelSelector", "string", "A selector to restrict the list of returned objects by their labels. Defaults to everything."},
		{"limit", "integer", "limit is a maximum number of responses to return for a list call."},
		{"resourceVersion", "string", "resourceVersion sets a constraint on what resource versions a request may be served from."},
		{"resourceVersionMatch", "string", "resourceVersionMatch determines how resourceVersion is applied to list calls."},
		{"sendInitialEvents", "boolean", "sendInitialEvents=true may be set together with watch=true."},
		{"timeoutSeconds", "integer", "Timeout for the list/watch call."},
		{"watch", "boolean", "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications."},
	}
)

// set is the paths of one resource in one version while they are gathered.
type set struct {
	m       *models
	r       *api.Resource
	version string
	base    operation
	paths   map[string][]operation
}

// operations lists the operations of one resource in one version, by path.
func operations(m *models, r *api.Resource, v api.Version) map[string][]operation {
	s := &set{m: m, r: r, version: v.Name, paths: map[string][]operation{}}
	kind, list := m.addResource(r, &v)
	s.base = operation{tag: s.tag(), group: r.Group, version: v.Name, kind: r.Kind, custom: r.Codec != nil}
	root := "/apis/" + r.Group + "/" + v.Name
	if r.Group == "" {
		root = "/api/" + v.Name
	}
	one := ""
	if r.Namespaced {
		one = "Namespaced"
		s.base.path = []string{"namespace"}
		if s.serves("list") {
			all := s.base
			all.path = nil
			s.add(root+"/"+r.Name, all, "get", "list", "list"+s.scope()+r.Kind+"ForAllNamespaces", "list or watch objects of kind "+r.Kind, "", list, listParams)
		}
		root += "/namespaces/{namespace}"
	}
	s.main(root+"/"+r.Name, one, kind, list)
	for _, sub := range r.Subresources {
		s.sub(root+"/"+r.Name+"/{name}/"+sub.Name, one, kind, sub)
	}
	return s.paths
}

// addResource adds the definitions of a resource and, where it has them, of its lists.
func (m *models) addResource(r *api.Resource, v *api.Version) (kind, list string) {
	if v.Model != nil {
		return m.addCustom(r, v)
	}
	kind = m.define(modelName(v.New()))
	if v.NewList != nil {
		list = m.define(modelName(v.NewList()))
	}
	return kind, list
}

func (s *set) serves(verb string) bool {
	return s.r.Verbs == nil || slices.Contains(s.r.Verbs, verb)
}

// scope is the group and version in the names of operations: "CoreV1".
func (s *set) scope() string {
	group, rest, _ := strings.Cut(s.r.Group, ".")
	if group == "" {
		group = "core"
	}
	if s.r.Codec != nil { // anybody may name a group, so the whole name tells them apart
		for part := range strings.SplitSeq(rest, ".") {
			group += strings.ToUpper(part[:min(len(part), 1)]) + part[min(len(part), 1):]
		}
	}
	return strings.ToUpper(group[:1]) + group[1:] + strings.ToUpper(s.version[:1]) + s.version[1:]
}

func (s *set) tag() string {
	group, _, _ := strings.Cut(s.r.Group, ".")
	if group == "" {
		group = "core"
	}
	return group + "_" + s.version
}

func (s *set) add(path string, base operation, method, action, id, about, in, out string, query []param) *operation {
	base.method, base.action, base.id, base.about, base.in, base.out = method, action, id, about, in, out
	base.query = append([]param{paramPretty}, query...)
	base.created = method == "post" || method == "put" || method == "patch"
	s.paths[path] = append(s.paths[path], base)
	return &s.paths[path][len(s.paths[path])-1]
}

func (s *set) main(path, one, kind, list string) {
	id := func(verb string) string { return verb + s.scope() + one + s.r.Kind }
	k := s.r.Kind
	status := s.m.define(metav1.Status{}.OpenAPIModelName())
	options := s.m.define(metav1.DeleteOptions{}.OpenAPIModelName())
	patch := s.m.define(metav1.Patch{}.OpenAPIModelName())
	if s.serves("list") {
		s.add(path, s.base, "get", "list", id("list"), "list or watch objects of kind "+k, "", list, listParams)
	}
	if s.serves("create") {
		about := article(k)
		s.add(path, s.base, "post", "post", id("create"), "create "+about, kind, kind, writeParams)
	}
	if s.serves("deletecollection") {
		s.add(path, s.base, "delete", "deletecollection", "delete"+s.scope()+"Collection"+one+k, "delete collection of "+k, options, status, append(slices.Clone(deleteParams), listParams...))
	}
	item, base := path+"/{name}", s.base
	base.path = append([]string{"name"}, base.path...)
	if s.serves("get") {
		s.add(item, base, "get", "get", id("read"), "read the specified "+k, "", kind, nil)
	}
	if s.serves("update") {
		s.add(item, base, "put", "put", id("replace"), "replace the specified "+k, kind, kind, writeParams)
	}
	if s.serves("delete") {
		s.add(item, base, "delete", "delete", id("delete"), "delete "+article(k), options, status, deleteParams)
	}
	if s.serves("patch") {
		s.add(item, base, "patch", "patch", id("patch"), "partially update the specified "+k, patch, kind, append(slices.Clone(writeParams), paramForce))
	}
}

func article(kind string) string {
	if strings.ContainsRune("AEIOU", rune(kind[0])) {
		return "an " + kind
	}
	return "a " + kind
}

// bodies are the bodies of subresources that are not views of their parent.
var bodies = map[string]string{
	"Scale":        autoscalingv1.Scale{}.OpenAPIModelName(),
	"Binding":      corev1.Binding{}.OpenAPIModelName(),
	"Eviction":     policyv1.Eviction{}.OpenAPIModelName(),
	"TokenRequest": authenticationv1.TokenRequest{}.OpenAPIModelName(),
}

func (s *set) sub(path, one, kind string, sub api.Subresource) {
	verbs := sub.Verbs
	if verbs == nil {
		verbs = []string{"get", "patch", "update"}
	}
	base := s.base
	base.path = append([]string{"name"}, base.path...)
	body := kind
	if sub.Kind != "" {
		base.kind, base.group, base.version = sub.Kind, s.r.Group, s.version
		if sub.Group != "" || sub.Version != "" {
			base.group, base.version = sub.Group, sub.Version
		}
		body = ""
		if t, ok := bodies[sub.Kind]; ok {
			body = s.m.define(t)
		}
	}
	name := strings.ToUpper(sub.Name[:1]) + sub.Name[1:]
	id := func(verb string) string { return verb + s.scope() + one + s.r.Kind + name }
	what := fmt.Sprintf("%s of the specified %s", sub.Name, s.r.Kind)
	for _, verb := range verbs {
		switch {
		case body == "":
			s.connect(path, base, verb, id)
		case verb == "get":
			op := s.add(path, base, "get", "get", id("read"), "read "+what, "", body, nil)
			if sub.Name == "log" {
				op.plain, op.query = true, logParams
			}
		case verb == "update":
			s.add(path, base, "put", "put", id("replace"), "replace "+what, body, body, writeParams)
		case verb == "patch":
			patch := s.m.define(metav1.Patch{}.OpenAPIModelName())
			s.add(path, base, "patch", "patch", id("patch"), "partially update "+what, patch, body, append(slices.Clone(writeParams), paramForce))
		case verb == "create":
			s.add(path, base, "post", "post", id("create"), "create "+what, body, body, writeParams)
		}
	}
}

var logParams = []param{
	{"container", "string", "The container for which to stream logs. Defaults to only container if there is one container in the pod."},
	{"follow", "boolean", "Follow the log stream of the pod. Defaults to false."},
	{"insecureSkipTLSVerifyBackend", "boolean", "Skip the verification of the serving certificate of the backend."},
	{"limitBytes", "integer", "If set, the number of bytes to read from the server before terminating the log output."},
	paramPretty,
	{"previous", "boolean", "Return previous terminated container logs. Defaults to false."},
	{"sinceSeconds", "integer", "A relative time in seconds before the current time from which to show logs."},
	{"tailLines", "integer", "If set, the number of lines from the end of the logs to show."},
	{"timestamps", "boolean", "If true, add an RFC3339 or RFC3339Nano timestamp at the beginning of every line of log output. Defaults to false."},
}

// connect describes a stream to a pod, service or node.
func (s *set) connect(path string, base operation, verb string, id func(string) string) {
	method := map[string]string{"create": "post", "get": "get", "update": "put", "delete": "delete", "patch": "patch"}[verb]
	if method == "" {
		return
	}
	title := strings.ToUpper(method[:1]) + method[1:]
	op := s.add(path, base, method, "connect", "connect"+strings.TrimPrefix(id(title), title), "connect "+strings.ToUpper(method)+" requests to "+base.kind, "", "", nil)
	op.id = strings.Replace(op.id, "connect", "connect"+title, 1)
	op.plain, op.created = true, false
}

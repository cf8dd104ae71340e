package openapi

import (
	"slices"
	"strings"
	"unicode"

	"github.com/skiff-project/skiff/api"
)

// operation is one method on one path, in neither version's words yet.
type operation struct {
	method, action, id, tag, about string
	group, version, kind           string // of the body; not told when action is ""
	params                         []param
	consumes, produces             []string
	in, out                        string // definition names; "" for none, and a text
	codes                          []int  // of success
}

// param is a parameter in the path or the query.
type param struct{ name, in, kind, about string }

var (
	pretty = param{"pretty", "query", "string", "If 'true', then the output is pretty printed. Defaults to 'false' " +
		"unless the user-agent indicates a browser or command-line HTTP tool (curl and wget)."}
	inNamespace = param{"namespace", "path", "string", "object name and auth scope, such as for teams and projects"}
	belowProxy  = param{"path", "path", "string", "path to the resource"}

	anyType    = []string{"*/*"}
	textTypes  = []string{"application/json", "application/yaml"}
	bodyTypes  = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	watchTypes = append(slices.Clone(bodyTypes), "application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch")
	patchTypes = []string{
		"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml",
	}
)

const metaTypes = "io.k8s.apimachinery.pkg.apis.meta.v1."

// options are the query parameters that the fields of a type are, but for those left out.
func (m *models) options(name string, without ...string) []param {
	all, ok := m.params[name]
	if !ok {
		s, err := m.types(name)
		if err != nil && m.err == nil {
			m.err = err
		}
		for field, p := range s.Properties {
			if p.Items != nil { // given several times
				p.Type = p.Items.Schema.Type
			}
			if len(p.Type) > 0 && field != "apiVersion" && field != "kind" { // the others are structures
				about, _, _ := strings.Cut(p.Description, "\n\nPossible enum values:")
				all = append(all, param{field, "query", p.Type[0], about})
			}
		}
		m.params[name] = all
	}
	return slices.DeleteFunc(slices.Clone(all), func(p param) bool { return slices.Contains(without, p.name) })
}

// set is the paths of one resource in one version while they are gathered.
type set struct {
	m     *models
	r     *api.Resource
	scope string // group and version in the names of operations: "CoreV1"
	one   string // "Namespaced" or nothing, also in them
	base  operation
	paths map[string][]operation
}

// operations lists the operations of one resource in one version, by path.
func operations(m *models, r *api.Resource, v api.Version) map[string][]operation {
	s := &set{m: m, r: r, scope: scopeOf(r.Group, v.Name), paths: map[string][]operation{}}
	kind, list := m.addResource(r, &v)
	s.base = operation{tag: tagOf(r.Group, v.Name), group: r.Group, version: v.Name, kind: r.Kind, consumes: anyType, produces: bodyTypes}
	if r.Codec != nil {
		s.base.consumes, s.base.produces = textTypes, textTypes
	}
	root, path := "/"+PathOf(r.Group, v.Name)+"/", r.Name
	if r.Namespaced {
		s.one = "Namespaced"
		if s.serves("list") {
			op := s.base
			op.params = []param{pretty}
			s.list(root+path, op, list, r.Kind+"ForAllNamespaces")
			s.watch(root+"watch/"+path, op, "watchlist", r.Kind+"ListForAllNamespaces")
		}
		s.base.params = []param{inNamespace}
		path = "namespaces/{namespace}/" + path
	}
	s.main(root, path, kind, list)
	for _, sub := range r.Subresources {
		s.sub(root+path+"/{name}/"+sub.Name, kind, sub)
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

// camel makes one word of a name: "rbac.authorization" is RbacAuthorization.
func camel(name string, up bool) string {
	var b strings.Builder
	for i, r := range name {
		switch {
		case !unicode.IsLetter(r) && r != '_' && (i == 0 || !unicode.IsDigit(r)):
			up = true
			continue
		case up:
			r, up = unicode.ToUpper(r), false
		}
		b.WriteRune(r)
	}
	return b.String()
}

func shortGroup(group string) string {
	if group == "" {
		return "core"
	}
	return strings.TrimSuffix(group, ".k8s.io")
}

func scopeOf(group, version string) string {
	return camel(shortGroup(group), true) + camel(version, true)
}

func tagOf(group, version string) string {
	return camel(shortGroup(group), false) + "_" + camel(version, false)
}

// id is the name of an operation: verb, group and version, and the rest.
func (s *set) id(verb, rest string) string { return verb + s.scope + rest }

// add adds op, which answers with out.
func (s *set) add(path string, op operation, method, action, out string, codes ...int) {
	op.method, op.action, op.out, op.codes = method, action, out, codes
	s.paths[path] = append(s.paths[path], op)
}

func (s *set) list(path string, op operation, list, rest string) {
	op.id, op.about = s.id("list", rest), "list or watch objects of kind "+s.r.Kind
	if !s.serves("watch") || s.r.Codec != nil {
		op.about = "list objects of kind " + s.r.Kind
	}
	if s.r.Codec == nil {
		op.produces = watchTypes
	}
	op.params = slices.Concat(op.params, s.m.options(metaTypes+"ListOptions"))
	s.add(path, op, "get", "list", list, 200)
}

// watch is the way of watching that lists with the parameter watch replaced.
func (s *set) watch(path string, op operation, action, rest string) {
	if !s.serves("watch") || s.r.Codec != nil {
		return
	}
	op.about = "watch individual changes to a list of " + s.r.Kind + ". deprecated: use the 'watch' parameter with a list operation instead."
	if action == "watch" {
		op.about = "watch changes to an object of kind " + s.r.Kind + ". deprecated: use the 'watch' parameter with a list operation " +
			"instead, filtered to a single item with the 'fieldSelector' parameter."
	}
	op.id, op.produces = s.id("watch", rest), watchTypes
	op.params = slices.Concat(op.params, s.m.options(metaTypes+"ListOptions"))
	s.add(path, op, "get", action, s.m.define(metaTypes+"WatchEvent"), 200)
}

// item is an operation on the path with a name in it.
func (s *set) item(kind string) operation {
	op := s.base
	op.params = append(slices.Clone(op.params), param{"name", "path", "string", "name of the " + kind})
	return op
}

// write adds an operation that takes in and answers with out; what says on what: "Pod", "status of the specified Pod".
func (s *set) write(path string, op operation, method, in, out, rest string) {
	codes := map[string][]int{"post": {200, 201, 202}, "put": {200, 201}, "patch": {200, 201}}[method]
	options := map[string]string{"post": "CreateOptions", "put": "UpdateOptions", "patch": "PatchOptions"}[method]
	verb := map[string]string{"post": "create", "put": "replace", "patch": "patch"}[method]
	op.in = in
	if method == "patch" {
		op.in, op.consumes = s.m.define(metaTypes+"Patch"), patchTypes
		if s.r.Codec != nil {
			op.consumes, codes = []string{patchTypes[0], patchTypes[1], patchTypes[3]}, []int{200}
		}
	}
	op.id = s.id(verb, rest)
	op.params = append(append(slices.Clone(op.params), pretty), s.m.options(metaTypes+options)...)
	s.add(path, op, method, method, out, codes...)
}

func (s *set) main(root, path, kind, list string) {
	k, rest := s.r.Kind, s.one+s.r.Kind
	op, all := s.base, root+path
	if s.serves("list") {
		op.params = append(slices.Clone(s.base.params), pretty)
		s.list(all, op, list, rest)
		s.watch(root+"watch/"+path, op, "watchlist", rest+"List")
		item := s.item(k)
		item.params = append(item.params, pretty)
		s.watch(root+"watch/"+path+"/{name}", item, "watch", rest)
	}
	if s.serves("create") {
		op := s.base
		op.about = "create " + withArticle(k)
		s.write(all, op, "post", kind, kind, rest)
	}
	if s.serves("deletecollection") {
		s.deleteCollection(all, rest)
	}
	one := all + "/{name}"
	if s.serves("get") {
		op := s.item(k)
		op.id, op.about, op.params = s.id("read", rest), "read the specified "+k, append(op.params, pretty)
		if s.r.Codec != nil { // upstream forgets them for its own
			op.params = append(op.params, s.m.options(metaTypes+"GetOptions")...)
		}
		s.add(one, op, "get", "get", kind, 200)
	}
	if s.serves("update") {
		op := s.item(k)
		op.about = "replace the specified " + k
		s.write(one, op, "put", kind, kind, rest)
	}
	if s.serves("delete") {
		op := s.item(k)
		op.id, op.about = s.id("delete", rest), "delete "+withArticle(k)
		op.in = s.m.define(metaTypes + "DeleteOptions")
		op.params = append(append(op.params, pretty), s.m.options(metaTypes+"DeleteOptions")...)
		out := kind
		if !s.r.AnswersDeleted() {
			out = s.m.define(metaTypes + "Status")
		}
		s.add(one, op, "delete", "delete", out, 200, 202)
	}
	if s.serves("patch") {
		op := s.item(k)
		op.about = "partially update the specified " + k
		s.write(one, op, "patch", "", kind, rest)
	}
}

func (s *set) deleteCollection(path, rest string) {
	op := s.base
	op.id, op.about = s.id("delete", "Collection"+rest), "delete collection of "+s.r.Kind
	op.params = append(slices.Clone(op.params), pretty)
	if s.r.Codec == nil {
		op.in = s.m.define(metaTypes + "DeleteOptions")
		op.params = append(op.params, s.m.options(metaTypes+"DeleteOptions")...)
		op.params = append(op.params, s.m.options(metaTypes+"ListOptions", "watch", "allowWatchBookmarks")...)
	} else { // upstream takes a body, too, and does not tell of it
		op.params = append(op.params, s.m.options(metaTypes+"ListOptions")...)
	}
	s.add(path, op, "delete", "deletecollection", s.m.define(metaTypes+"Status"), 200)
}

// withArticle is a kind as the object of a sentence.
func withArticle(kind string) string {
	switch {
	case strings.HasSuffix(kind, "s") && !strings.HasSuffix(kind, "ss"):
		return kind
	case strings.ContainsRune("aeiouAEIOU", rune(kind[0])):
		return "an " + kind
	}
	return "a " + kind
}

// bodies are the bodies of subresources that are not views of their parent.
var bodies = map[string]string{
	"Scale":        "io.k8s.api.autoscaling.v1.Scale",
	"Binding":      "io.k8s.api.core.v1.Binding",
	"Eviction":     "io.k8s.api.policy.v1.Eviction",
	"TokenRequest": "io.k8s.api.authentication.v1.TokenRequest",
}

func (s *set) sub(path, kind string, sub api.Subresource) {
	verbs := sub.Verbs
	if verbs == nil {
		verbs = []string{"get", "patch", "update"}
	}
	rest := s.one + s.r.Kind + camel(sub.Name, true)
	base, body := s.item(s.r.Kind), kind
	if sub.Kind != "" {
		if bodies[sub.Kind] == "" {
			s.connect(path, sub, rest)
			return
		}
		body = s.m.define(bodies[sub.Kind])
		if s.r.Codec == nil {
			base = s.item(sub.Kind)
			base.kind, base.group, base.version = sub.Kind, sub.Group, sub.Version
			if sub.Group == "" && sub.Version == "" {
				base.group, base.version = s.base.group, s.base.version
			}
		}
	}
	what := sub.Name + " of the specified " + s.r.Kind
	for _, verb := range verbs {
		op := base
		switch verb {
		case "get":
			op.id, op.about, op.params = s.id("read", rest), "read "+what, append(slices.Clone(op.params), pretty)
			if s.r.Codec != nil {
				op.params = append(op.params, s.m.options(metaTypes+"GetOptions")...)
			}
			out := body
			if sub.Name == "log" {
				out, op.produces = "", append([]string{"text/plain"}, bodyTypes...)
				op.params = append(op.params, s.m.options("io.k8s.api.core.v1.PodLogOptions")...)
			}
			s.add(path, op, "get", "get", out, 200)
		case "update":
			op.about = "replace " + what
			s.write(path, op, "put", body, body, rest)
		case "patch":
			op.about = "partially update " + what
			s.write(path, op, "patch", "", body, rest)
		case "create":
			op.about = "create " + sub.Name + " of " + withArticle(s.r.Kind)
			s.write(path, op, "post", body, body, rest)
		}
	}
}

// connect describes streams to a pod, service or node.
func (s *set) connect(path string, sub api.Subresource, rest string) {
	op := s.item(sub.Kind)
	op.kind, op.produces = sub.Kind, anyType
	op.params = append(op.params, s.m.options("io.k8s.api.core.v1."+sub.Kind)...)
	methods := []string{"get", "post"}
	if sub.Name == "proxy" {
		methods = []string{"get", "post", "put", "patch", "delete", "head", "options"}
	}
	for _, method := range methods {
		op.id = s.id("connect", camel(method, true)+rest)
		op.about = "connect " + strings.ToUpper(method) + " requests to " + sub.Name + " of " + s.r.Kind
		s.add(path, op, method, "connect", "", 200)
		if sub.Name == "proxy" {
			below := op
			below.id, below.params = op.id+"WithPath", append(slices.Clone(op.params), belowProxy)
			s.add(path+"/{path}", below, method, "connect", "", 200)
		}
	}
}

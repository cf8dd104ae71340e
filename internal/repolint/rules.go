package repolint

// components meet only through the API, so none may import another.
var components = []string{
	"/apiserver", "/controller", "/scheduler", "/kubelet", "/runtime",
	"/network", "/proxy", "/dns",
}

// Rules are the import directions of docs/ARCHITECTURE.md, each with its reason.
func Rules() []Rule {
	rules := []Rule{
		{
			From: "", Deny: []string{"k8s.io/kubernetes"},
			Why: "it is what Skiff implements; only modules under test/ may build it as the reference",
		},
		{
			From: "", Deny: []string{"k8s.io/apiserver"}, Allow: []string{"k8s.io/apiserver/pkg/cel", "k8s.io/apiserver/pkg/authorization/authorizer", "k8s.io/apiserver/pkg/authentication/user"},
			Why: "the server half of apiserver is what Skiff implements; the CEL library's authorizer takes the types of who asks and of the answer",
		},
		{
			From: "", Deny: []string{"/store"}, Except: []string{"store", "apiserver", "cluster", "cmd", "cli/etcd", "cli/etcdutl", "test/robustness", "test/bench"},
			Why: "only the API server talks to the store; everyone else goes through the API; robustness reads the store's log, bench measures it",
		},
		{
			From: "", Deny: []string{"/cluster"}, Except: []string{"cluster", "cmd", "cli", "test"},
			Why: "cluster is the composition root: it imports the components, not they it",
		},
		{
			From: "", Deny: []string{"/cmd"}, Except: []string{"cmd"},
			Why: "a main package is nobody's library",
		},
		{
			From: "internal", Deny: []string{Module}, Allow: []string{"/internal"},
			Why: "internal packages are leaves",
		},
		{
			From: "object", Deny: []string{Module}, Allow: []string{"/object", "/internal", "/api"},
			Why: "object knows metadata and bytes, not components",
		},
		{
			From: "api", Deny: []string{Module}, Allow: []string{"/api", "/object", "/internal"},
			Why: "resource descriptions are pure: no server, no store, no client",
		},
		{
			From: "auth", Deny: []string{"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers"},
			Why: "auth decides from values; whoever reads the policy objects hands them in",
		},
		{
			From: "store", Deny: []string{Module}, Allow: []string{"/store", "/internal"},
			Why: "the store knows keys and bytes, not Kubernetes",
		},
		{
			From: "store", Deny: []string{"k8s.io/api", "k8s.io/client-go", "k8s.io/apimachinery"},
			Why: "the store knows keys and bytes, not Kubernetes",
		},
		{
			From: "store", Deny: []string{"net", "google.golang.org/grpc"}, Except: []string{"store/etcdapi", "store/etcdstore", "store/storetest"},
			Why: "the embedded store has no network; etcdapi serves it, etcdstore speaks to etcd",
		},
		{
			From: "", Deny: []string{"github.com/spf13/cobra", "flag"}, Except: []string{"cmd", "cli", "runtime/shim", "test", "internal/deps"},
			Why: "flags belong to commands; components take a Config",
		},
	}
	for _, c := range components {
		var others []string
		for _, o := range components {
			if o != c {
				others = append(others, o)
			}
		}
		rules = append(rules, Rule{
			From: c[1:], Deny: others,
			Why: "components never import each other: they meet through the API, or CRI, or are wired in cluster",
		})
	}
	return rules
}

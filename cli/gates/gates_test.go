package gates

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestGates(t *testing.T) {
	for list, want := range map[string]string{
		"":                                       "",
		"{}":                                     "",
		"WatchList=true,SidecarContainers2=true": "unrecognized feature gate: SidecarContainers2",
		"WatchList=true, AllAlpha=false":         "",
		"kube:WatchList=true":                    "",
		"WatchList":                              "missing bool value for WatchList",
		"WatchList=maybe":                        `invalid value of WatchList=maybe, err: strconv.ParseBool: parsing "maybe": invalid syntax`,
		"WatchList=false":                        "WatchList is on, as it is by default in v1.37, and cannot be turned off: leave it out",
		"AllAlpha=true":                          "AllAlpha is off, as it is by default in v1.37, and its feature is not here: leave it out",
		"UserNamespacesSupport=true":             "UserNamespacesSupport: this feature is not here: leave it out",
		"UserNamespacesSupport=false":            "",
		"ConstrainedImpersonation=true,EventedPLEG=false": "",
	} {
		got := ""
		if err := (&Gates{}).Set(list); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s", list, got)
		}
	}
}

func TestAPIs(t *testing.T) {
	served := func() []schema.GroupVersionResource {
		return []schema.GroupVersionResource{
			{Group: "", Version: "v1", Resource: "pods"}, {Group: "batch", Version: "v1", Resource: "jobs"},
		}
	}
	const on, off, gone = "=false: it is served, and cannot be turned off: leave it out", "=true: it is not served here: leave it out", ""
	for list, want := range map[string]string{
		"":                              "",
		"api/all=true":                  "",
		"api/all=true,api/beta=false":   "",
		"api/ga=false":                  "api/ga=false: what is stable is always served: leave it out",
		"api/beta=true":                 "api/beta=true: of these versions only those are served that are on by default: leave it out",
		"batch/v1=true":                 "",
		"batch/v1":                      "",
		"v1=true,api/v1=true":           "",
		"batch/v1=false":                "batch/v1" + on,
		"batch/v1/jobs=false":           "batch/v1/jobs" + on,
		"batch/v1/others=true":          "batch/v1/others" + off,
		"resource.k8s.io/v1alpha3=true": "resource.k8s.io/v1alpha3" + off,
		"batch/v2alpha1=false":          gone,
		"batch/v1=yes":                  `invalid value of batch/v1=yes, err: strconv.ParseBool: parsing "yes": invalid syntax`,
	} {
		if got := fmt.Sprint((&APIs{Served: served}).Set(list)); got != want && !(got == "<nil>" && want == "") {
			t.Errorf("%q: %s", list, got)
		}
	}
}

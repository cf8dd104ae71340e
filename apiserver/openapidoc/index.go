package openapidoc

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api/openapi"
	"github.com/skiff-project/skiff/apiserver/discovery"
)

// Find returns the group version whose document is at a path below /openapi/v3/.
func Find(groups discovery.Groups, path string) (schema.GroupVersion, bool) {
	for _, g := range groups {
		for _, v := range g.Versions {
			if gv := (schema.GroupVersion{Group: g.Name, Version: v.Name}); openapi.PathOf(gv) == path {
				return gv, true
			}
		}
	}
	return schema.GroupVersion{}, false
}

// Hash identifies a document without building it: what is served in a group
// version depends on the binary, which salt names, and on custom resources' revisions.
func Hash(salt string, groups discovery.Groups, gv schema.GroupVersion) string {
	h := sha256.New()
	fmt.Fprintln(h, salt, gv)
	if g := groups.Group(gv.Group); g != nil {
		for _, v := range g.Versions {
			if v.Name == gv.Version {
				for _, r := range v.Resources {
					fmt.Fprintln(h, r.Name, r.Revision)
				}
			}
		}
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

// Index is the document at /openapi/v3: the groups' documents, and further
// ones' URLs by path, which go before them.
func Index(salt string, groups discovery.Groups, further map[string]string) ([]byte, error) {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := map[string]entry{}
	for _, g := range groups {
		for _, v := range g.Versions {
			gv := schema.GroupVersion{Group: g.Name, Version: v.Name}
			p := openapi.PathOf(gv)
			paths[p] = entry{"/openapi/v3/" + p + "?hash=" + Hash(salt, groups, gv)}
		}
	}
	for p, url := range further {
		paths[p] = entry{url}
	}
	return json.Marshal(map[string]any{"paths": paths})
}

package openapidoc

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/skiff-project/skiff/api"
)

// Hash identifies a document without building it: what it says depends on the
// binary, which salt names, and on the revisions of the custom resources it describes.
func Hash(salt, path string, resources []*api.Resource) string {
	h := sha256.New()
	fmt.Fprintln(h, salt, path)
	for _, r := range resources {
		fmt.Fprintln(h, r.Name, r.Revision)
	}
	return strings.ToUpper(hex.EncodeToString(h.Sum(nil)))
}

// Index is the document at /openapi/v3: of the documents, each with what it
// describes, and of further ones' URLs, by path; those go before the former.
func Index(salt string, documents map[string][]*api.Resource, further map[string]string) ([]byte, error) {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := map[string]entry{}
	for path, resources := range documents {
		paths[path] = entry{"/openapi/v3/" + path + "?hash=" + Hash(salt, path, resources)}
	}
	for path, url := range further {
		paths[path] = entry{url}
	}
	return json.Marshal(map[string]any{"paths": paths})
}

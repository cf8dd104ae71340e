package discovery_test

import (
	"testing"

	"github.com/skiff-project/skiff/api/all"
	"github.com/skiff-project/skiff/apiserver/discovery"
)

// The hashes are those of a kube-apiserver.
func TestStorageVersionHashes(t *testing.T) {
	d := discovery.New(all.Resources())
	for _, c := range []struct{ group, version, resource, hash string }{
		{"", "v1", "pods", "xPOwRZ+Yhw8="},
		{"apps", "v1", "deployments", "8aSe+NMegvE="},
		{"", "v1", "events", "r2yiGXH7wu8="},
		{"events.k8s.io", "v1", "events", "r2yiGXH7wu8="},
	} {
		found := false
		for _, r := range d.Resources(c.group, c.version).APIResources {
			if r.Name != c.resource {
				continue
			}
			found = true
			if r.StorageVersionHash != c.hash {
				t.Errorf("%s/%s: %s, want %s", c.group, c.resource, r.StorageVersionHash, c.hash)
			}
		}
		if !found {
			t.Errorf("%s/%s is not served", c.group, c.resource)
		}
	}
}

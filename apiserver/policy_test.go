package apiserver_test

import (
	"testing"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/apiserver/policy"
)

// withPolicies adds the admission plugins of policies.
func withPolicies(t testing.TB) func(*apiserver.Config) {
	return func(c *apiserver.Config) {
		reader, err := apiserver.NewReader(c.Store, c.Resources, nil)
		if err != nil {
			t.Fatal(err)
		}
		mutate, validate := policy.New(policy.Config{Reader: reader, Authorizer: c.Authorizer})
		c.Admission = []admission.Plugin{mutate, validate}
	}
}

// TestPolicies replays testdata/policy/*.txt as TestCustomResources does. The
// answers in cases, mutations and refused are those of kube-apiserver 1.37.
func TestPolicies(t *testing.T) { replayFiles(t, "testdata/policy/*.txt", withPolicies(t)) }

package cluster_test

import (
	"testing"

	psatest "k8s.io/pod-security-admission/test"

	"github.com/skiff-project/skiff/cluster"
)

// TestPodSecurityStandards runs upstream's own tests of Pod Security: pods and
// workloads that each level of each version must admit, and must refuse.
func TestPodSecurityStandards(t *testing.T) {
	c := cluster.Start(t, cluster.TestOptions{})
	psatest.Run(t, psatest.Options{ClientConfig: c.Config()})
}

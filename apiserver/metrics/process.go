package metrics

import (
	"runtime"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/skiff-project/skiff/internal/features"
)

// BuildInfo is what was built, as labels: kubernetes_build_info and version_info, which are always 1; and which features are on.
func BuildInfo(v version.Info) []prometheus.Collector {
	info := func(name, help string, labels prometheus.Labels) prometheus.Collector {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
		g.Set(1)
		return g
	}
	return []prometheus.Collector{
		info("kubernetes_build_info", "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, "+
			"and compiler from which Kubernetes was built, and platform on which it is running.",
			prometheus.Labels{"major": v.Major, "minor": v.Minor, "git_version": v.GitVersion, "git_commit": v.GitCommit,
				"git_tree_state": v.GitTreeState, "build_date": v.BuildDate, "go_version": runtime.Version(), "compiler": v.Compiler, "platform": v.Platform}),
		info("version_info", "Provides the compatibility version info of the component. The component label is the name of the component, usually kube, "+
			"but is relevant for aggregated-apiservers.",
			prometheus.Labels{"component": "kube", "binary": strings.TrimPrefix(v.GitVersion, "v"),
				"emulation": v.EmulationMajor + "." + v.EmulationMinor, "min_compat": v.MinCompatibilityMajor + "." + v.MinCompatibilityMinor}),
		newGates(),
	}
}

// gates tells of each feature gate whether its feature is on. It is a prometheus.Collector.
type gates struct{ is *prometheus.Desc }

func newGates() gates {
	return gates{prometheus.NewDesc("kubernetes_feature_enabled", "This metric records the data about the stage and enablement of a k8s feature.",
		[]string{"name", "stage"}, nil)}
}

// Describe implements prometheus.Collector.
func (g gates) Describe(out chan<- *prometheus.Desc) { out <- g.is }

// Collect implements prometheus.Collector.
func (g gates) Collect(out chan<- prometheus.Metric) {
	for f := range features.All() {
		value, stage := 0.0, f.Stage
		if f.On {
			value = 1
		}
		if stage == "GA" { // upstream's label of it
			stage = ""
		}
		out <- prometheus.MustNewConstMetric(g.is, prometheus.GaugeValue, value, f.Name, stage)
	}
}

// expressions are the metrics of custom resources' CEL rules, which the library that has the rules keeps for the process.
func expressions() prometheus.Gatherer {
	return prometheus.GathererFunc(only(legacyregistry.DefaultGatherer.Gather, "apiserver_cel_"))
}

// only leaves out the families without a prefix.
func only[F interface{ GetName() string }](gather func() ([]F, error), prefix string) func() ([]F, error) {
	return func() ([]F, error) {
		all, err := gather()
		return slices.DeleteFunc(all, func(f F) bool { return !strings.HasPrefix(f.GetName(), prefix) }), err
	}
}

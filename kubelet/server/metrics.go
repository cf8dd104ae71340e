package server

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// metric writes one family in the Prometheus text format.
func metric(w io.Writer, name, typ, help string, lines []string) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, typ)
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	running, containers := 0, 0
	for _, p := range s.cfg.Backend.Pods() {
		up := 0
		for i := range p.Status.ContainerStatuses {
			if p.Status.ContainerStatuses[i].State.Running != nil {
				up++
			}
		}
		if containers += up; up > 0 {
			running++
		}
	}
	metric(w, "kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.", []string{fmt.Sprintf("kubelet_node_name{node=%q} 1", s.cfg.NodeName)})
	metric(w, "kubelet_running_pods", "gauge", "[BETA] Number of pods that have a running pod sandbox", []string{fmt.Sprintf("kubelet_running_pods %d", running)})
	metric(w, "kubelet_running_containers", "gauge", "[BETA] Number of containers currently running", []string{fmt.Sprintf(`kubelet_running_containers{container_state="running"} %d`, containers)})
	var certs []string
	for k, n := range s.cfg.Certificates() {
		certs = append(certs, fmt.Sprintf("kubelet_podcertificate_states{signer_name=%q,state=%q} %d", k.Signer, k.State, n))
	}
	if slices.Sort(certs); certs != nil {
		metric(w, "kubelet_podcertificate_states", "gauge",
			"[ALPHA] Gauge vector reporting the number of pod certificate projected volume sources, faceted by signer_name and state.", certs)
	}
	metric(w, "kubernetes_build_info", "gauge", "[BETA] Version the node was built from.", []string{fmt.Sprintf("kubernetes_build_info{git_version=%q} 1", s.cfg.Version)})
	if s.cfg.Metrics != nil {
		plain := r.Clone(r.Context())
		plain.Header = nil // as text, as it began
		promhttp.HandlerFor(s.cfg.Metrics, promhttp.HandlerOpts{DisableCompression: true}).ServeHTTP(w, plain)
	}
}

func (s *Server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	sum, err := s.cfg.Backend.Summary(r.Context(), true)
	if err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	var nodeCPU, nodeMem, podCPU, podMem, cCPU, cMem, started []string
	add := func(cpu, mem *[]string, base, labels string, c *statsapi.CPUStats, m *statsapi.MemoryStats) {
		brace := ""
		if labels != "" {
			brace = "{" + labels + "}"
		}
		if c != nil && c.UsageCoreNanoSeconds != nil {
			*cpu = append(*cpu, fmt.Sprintf("%s_cpu_usage_seconds_total%s %g %d", base, brace, float64(*c.UsageCoreNanoSeconds)/float64(time.Second), c.Time.UnixMilli()))
		}
		if m != nil && m.WorkingSetBytes != nil {
			*mem = append(*mem, fmt.Sprintf("%s_memory_working_set_bytes%s %d %d", base, brace, *m.WorkingSetBytes, m.Time.UnixMilli()))
		}
	}
	add(&nodeCPU, &nodeMem, "node", "", sum.Node.CPU, sum.Node.Memory)
	for i := range sum.Pods {
		p := &sum.Pods[i]
		labels := fmt.Sprintf("namespace=%q,pod=%q", p.PodRef.Namespace, p.PodRef.Name)
		add(&podCPU, &podMem, "pod", labels, p.CPU, p.Memory)
		for j := range p.Containers {
			c := &p.Containers[j]
			labels := fmt.Sprintf("container=%q,", c.Name) + labels
			add(&cCPU, &cMem, "container", labels, c.CPU, c.Memory)
			if c.StartTime.Unix() > 0 {
				started = append(started, fmt.Sprintf("container_start_time_seconds{%s} %g", labels, float64(c.StartTime.UnixNano())/float64(time.Second)))
			}
		}
	}
	const cpuHelp, memHelp = "[STABLE] Cumulative cpu time consumed by the %s in core-seconds", "[STABLE] Current working set of the %s in bytes"
	for _, f := range []struct {
		what     string
		cpu, mem []string
	}{{"container", cCPU, cMem}, {"node", nodeCPU, nodeMem}, {"pod", podCPU, podMem}} {
		metric(w, f.what+"_cpu_usage_seconds_total", "counter", strings.ReplaceAll(cpuHelp, "%s", f.what), f.cpu)
		metric(w, f.what+"_memory_working_set_bytes", "gauge", strings.ReplaceAll(memHelp, "%s", f.what), f.mem)
	}
	metric(w, "container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds", started)
	const scrapeHelp = "] 1 if there was an error while getting container metrics, 0 otherwise"
	metric(w, "resource_scrape_error", "gauge", "[STABLE"+scrapeHelp, []string{"resource_scrape_error 0"})
	metric(w, "scrape_error", "gauge", "[ALPHA"+scrapeHelp, []string{"scrape_error 0"})
}

package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/controller/workload"
)

// matchFailurePolicy applies the first rule that matches a failed Pod: does it count against the
// limit, does it fail its index, and does it fail the whole Job (why then tells so).
func matchFailurePolicy(policy *batchv1.PodFailurePolicy, p *corev1.Pod) (counts, failsIndex bool, why string) {
	if policy == nil {
		return true, false, ""
	}
	for i := range policy.Rules {
		r := &policy.Rules[i]
		match := ""
		if r.OnExitCodes != nil {
			match = matchExitCodes(r.OnExitCodes, p)
		} else {
			match = matchConditions(r.OnPodConditions, p)
		}
		if match == "" {
			continue
		}
		switch r.Action {
		case batchv1.PodFailurePolicyActionIgnore:
			return false, false, ""
		case batchv1.PodFailurePolicyActionFailJob:
			return true, false, fmt.Sprintf("%s matching %v rule at index %d", match, r.Action, i)
		case batchv1.PodFailurePolicyActionFailIndex:
			return true, true, ""
		case batchv1.PodFailurePolicyActionCount:
			return true, false, ""
		}
	}
	return true, false, ""
}

func matchExitCodes(r *batchv1.PodFailurePolicyOnExitCodesRequirement, p *corev1.Pod) string {
	for _, c := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses) {
		if r.ContainerName != nil && *r.ContainerName != c.Name || c.State.Terminated == nil || c.State.Terminated.ExitCode == 0 {
			continue
		}
		in := slices.Contains(r.Values, c.State.Terminated.ExitCode)
		if in == (r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
			return fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v", c.Name, p.Namespace, p.Name, c.State.Terminated.ExitCode)
		}
	}
	return ""
}

func matchConditions(patterns []batchv1.PodFailurePolicyOnPodConditionsPattern, p *corev1.Pod) string {
	for _, want := range patterns {
		if c := workload.Condition(p, want.Type); c != nil && c.Status == want.Status {
			return fmt.Sprintf("Pod %s/%s has condition %v", p.Namespace, p.Name, c.Type)
		}
	}
	return ""
}

package job

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"
)

// matchSuccessPolicy returns which rule of the policy the completed indexes of a Job with that
// many completions meet, as its condition says it, or "" for none.
func matchSuccessPolicy(policy *batchv1.SuccessPolicy, completions int, done map[int]bool) string {
	if policy == nil {
		return ""
	}
	for i, rule := range policy.Rules {
		if meets(rule, completions, done) {
			return fmt.Sprintf("Matched rules at index %d", i)
		}
	}
	return ""
}

func meets(rule batchv1.SuccessPolicyRule, completions int, done map[int]bool) bool {
	if rule.SucceededIndexes == nil {
		return rule.SucceededCount != nil && len(done) >= int(*rule.SucceededCount)
	}
	wanted := parseIndexes(*rule.SucceededIndexes, completions)
	have := 0
	for i := range wanted {
		if done[i] {
			have++
		}
	}
	if rule.SucceededCount != nil {
		return have >= int(*rule.SucceededCount)
	}
	return have == len(wanted)
}

package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// parseIndexes reads "1,3-5"; indexes from limit on are dropped. What cannot be read is left out.
func parseIndexes(s string, limit int) map[int]bool {
	out := map[int]bool{}
	if s == "" {
		return out
	}
	for _, part := range strings.Split(s, ",") {
		a, b, ok := strings.Cut(part, "-")
		if !ok {
			b = a
		}
		first, err1 := strconv.Atoi(a)
		last, err2 := strconv.Atoi(b)
		if err1 != nil || err2 != nil {
			continue
		}
		for i := first; i <= min(last, limit-1); i++ {
			out[i] = true
		}
	}
	return out
}

// formatIndexes writes a set as "1,3-5"; two neighbours are written "3,4".
func formatIndexes(set map[int]bool) string {
	var all []int
	for i := range set {
		all = append(all, i)
	}
	slices.Sort(all)
	var parts []string
	for i := 0; i < len(all); {
		j := i
		for j+1 < len(all) && all[j+1] == all[j]+1 {
			j++
		}
		switch {
		case j == i:
			parts = append(parts, strconv.Itoa(all[i]))
		case j == i+1:
			parts = append(parts, strconv.Itoa(all[i]), strconv.Itoa(all[j]))
		default:
			parts = append(parts, fmt.Sprintf("%d-%d", all[i], all[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// indexOf returns a Pod's completion index, -1 if it has none.
func indexOf(p *corev1.Pod) int {
	i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || i < 0 {
		return -1
	}
	return i
}

func indexed(j *batchv1.Job) bool {
	return j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion && j.Spec.Completions != nil
}

// giveIndex turns a Pod of an indexed Job into that of index i.
func giveIndex(j *batchv1.Job, p *corev1.Pod, i int) {
	v := strconv.Itoa(i)
	set := func(m *map[string]string) {
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[batchv1.JobCompletionIndexAnnotation] = v
	}
	set(&p.Annotations)
	set(&p.Labels)
	p.Spec.Hostname = j.Name + "-" + v
	suffix := "-" + v + "-"
	p.GenerateName = j.Name[:min(len(j.Name), 58-len(suffix))] + suffix
	env := corev1.EnvVar{Name: "JOB_COMPLETION_INDEX", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
		FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation)}}}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for k := range list {
			if !slices.ContainsFunc(list[k].Env, func(e corev1.EnvVar) bool { return e.Name == env.Name }) {
				list[k].Env = append(list[k].Env, env)
			}
		}
	}
}

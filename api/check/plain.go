package check

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Most names are plainly valid, and a look at their bytes shows it at a
// twentieth of the price of the regular expressions that have the words for
// those that are not.

// plainKey reports whether s is certainly a valid label key.
func plainKey(s string) bool {
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		return plainName(s)
	}
	return plainName(name) && plainSubdomain(prefix)
}

// plainName reports whether s is certainly a valid label value, and not empty.
func plainName(s string) bool {
	if len(s) == 0 || len(s) > 63 || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z'
}

// plainSubdomain reports whether s is certainly a DNS subdomain.
func plainSubdomain(s string) bool {
	last := byte('.') // alphanumeric characters stand at both ends of each label
	for i := range len(s) {
		c := s[i]
		switch {
		case alphanumeric(c) && (c <= '9' || c >= 'a'):
		case c == '-' && last != '.', c == '.' && last != '.' && last != '-':
		default:
			return false
		}
		last = c
	}
	return last != '.' && last != '-' && len(s) <= 253
}

func plainLabels(labels map[string]string) bool {
	for k, v := range labels {
		if !plainKey(k) || v != "" && !plainName(v) {
			return false
		}
	}
	return true
}

func plainAnnotations(annotations map[string]string) bool {
	const enough = 64 << 10 // the limit is higher
	size := 0
	for k, v := range annotations {
		if size += len(k) + len(v); size > enough || !plainKey(k) {
			return false
		}
	}
	return true
}

// Doubtful is an object's metadata without the labels and without the
// annotations if they are plainly valid: what validation need look at.
func Doubtful(obj metav1.Object) metav1.Object {
	d := doubtful{Object: obj}
	if labels := obj.GetLabels(); !plainLabels(labels) {
		d.labels = labels
	}
	if annotations := obj.GetAnnotations(); !plainAnnotations(annotations) {
		d.annotations = annotations
	}
	return d
}

type doubtful struct {
	metav1.Object
	labels, annotations map[string]string
}

// GetLabels implements metav1.Object.
func (d doubtful) GetLabels() map[string]string { return d.labels }

// GetAnnotations implements metav1.Object.
func (d doubtful) GetAnnotations() map[string]string { return d.annotations }

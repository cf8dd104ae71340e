// Package owners keeps the owner references of an object free of doubles.
package owners

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Dedup drops the references that are there twice and returns the warning due
// for it; empty: there were none. It knows two moments: before mutating
// admission and after it.
func Dedup(obj metav1.Object, afterAdmission bool) string {
	refs := obj.GetOwnerReferences()
	if len(refs) < 2 {
		return ""
	}
	var kept []metav1.OwnerReference
	var dups []string
	for _, ref := range refs {
		if slices.ContainsFunc(kept, func(k metav1.OwnerReference) bool { return same(k, ref) }) {
			dups = append(dups, string(ref.UID))
			continue
		}
		kept = append(kept, ref)
	}
	if len(dups) == 0 {
		return ""
	}
	obj.SetOwnerReferences(kept)
	moment := ""
	if afterAdmission {
		moment = " after mutating admission happens"
	}
	return fmt.Sprintf(".metadata.ownerReferences contains duplicate entries%s; API server dedups owner references in 1.20+, and may "+
		"reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: %v", moment, dups)
}

func same(a, b metav1.OwnerReference) bool {
	return a.UID == b.UID && a.Name == b.Name && a.Kind == b.Kind && a.APIVersion == b.APIVersion &&
		ptr.Equal(a.Controller, b.Controller) && ptr.Equal(a.BlockOwnerDeletion, b.BlockOwnerDeletion)
}

package namespace

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

// outcome is what one pass over a namespace's content found.
type outcome struct {
	discovery  error   // resources could not be listed completely
	parsing    error   // a group version could not be understood
	deletion   []error // resources whose content could not be deleted
	remaining  map[schema.GroupVersionResource]int
	finalizers map[string]int
	seconds    int64 // when to look again; 0 if nothing is left
	waitsPods  bool  // nothing but Pods was looked at, because some are left
}

// wording is how one condition looks when all is well.
type wording struct {
	kind            corev1.NamespaceConditionType
	reason, message string
}

var wellWords = [...]wording{
	{corev1.NamespaceDeletionDiscoveryFailure, "ResourcesDiscovered", "All resources successfully discovered"},
	{corev1.NamespaceDeletionGVParsingFailure, "ParsedGroupVersions", "All legacy kube types successfully parsed"},
	{corev1.NamespaceDeletionContentFailure, "ContentDeleted", "All content successfully deleted, may be waiting on finalization"},
	{corev1.NamespaceContentRemaining, "ContentRemoved", "All content successfully removed"},
	{corev1.NamespaceFinalizersRemaining, "ContentHasNoFinalizers", "All content-preserving finalizers finished"},
}

// conditions returns the namespace's conditions after a pass, and whether they differ from old.
// While only Pods were looked at, nothing is said about remaining content.
func conditions(old []corev1.NamespaceCondition, o outcome, now time.Time) ([]corev1.NamespaceCondition, bool) {
	bad := o.complaints()
	out := slices.Clone(old)
	changed := false
	for _, w := range wellWords {
		c := corev1.NamespaceCondition{Type: w.kind, Status: corev1.ConditionFalse, Reason: w.reason,
			Message: w.message, LastTransitionTime: metav1.NewTime(now)}
		if b, ok := bad[w.kind]; ok {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, b.reason, b.message
		}
		i := slices.IndexFunc(out, func(x corev1.NamespaceCondition) bool { return x.Type == w.kind })
		if i < 0 {
			out = append(out, c)
			changed = true
			continue
		}
		if out[i].Status == c.Status {
			c.LastTransitionTime = out[i].LastTransitionTime
		}
		changed = changed || out[i].Status != c.Status || out[i].Reason != c.Reason || out[i].Message != c.Message
		out[i] = c
	}
	return out, changed
}

func (o outcome) complaints() map[corev1.NamespaceConditionType]wording {
	bad := map[corev1.NamespaceConditionType]wording{}
	add := func(t corev1.NamespaceConditionType, reason, msg string) {
		bad[t] = wording{reason: reason, message: msg}
	}
	if o.discovery != nil {
		msg := o.discovery.Error()
		var failed *discovery.ErrGroupDiscoveryFailed
		if errors.As(o.discovery, &failed) {
			msg = fmt.Sprintf("Discovery failed for some groups, %d failing: %v", len(failed.Groups), failed)
		}
		add(corev1.NamespaceDeletionDiscoveryFailure, "DiscoveryFailed", msg)
	}
	if o.parsing != nil {
		add(corev1.NamespaceDeletionGVParsingFailure, "GroupVersionParsingFailed", o.parsing.Error())
	}
	if len(o.deletion) > 0 {
		var msgs []string
		for _, err := range o.deletion {
			msgs = append(msgs, err.Error())
		}
		slices.Sort(msgs)
		add(corev1.NamespaceDeletionContentFailure, "ContentDeletionFailed",
			fmt.Sprintf("Failed to delete all resource types, %d remaining: %v", len(msgs), strings.Join(msgs, ", ")))
	}
	if o.waitsPods {
		return bad
	}
	if len(o.remaining) > 0 {
		var items []string
		for gvr, n := range o.remaining {
			items = append(items, fmt.Sprintf("%s.%s has %d resource instances", gvr.Resource, gvr.Group, n))
		}
		slices.Sort(items)
		add(corev1.NamespaceContentRemaining, "SomeResourcesRemain",
			"Some resources are remaining: "+strings.Join(items, ", "))
	}
	if len(o.finalizers) > 0 {
		var items []string
		for _, f := range slices.Sorted(maps.Keys(o.finalizers)) {
			items = append(items, fmt.Sprintf("%s in %d resource instances", f, o.finalizers[f]))
		}
		add(corev1.NamespaceFinalizersRemaining, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: "+strings.Join(items, ", "))
	}
	return bad
}

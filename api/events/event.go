package events

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core"
)

func eventResource() *api.Resource {
	v := api.Versioned[eventsv1.Event, eventsv1.EventList]("v1", nil)
	v.FromStorage = func(o api.Object) (api.Object, error) { return FromCore(o.(*corev1.Event)), nil }
	v.ToStorage = func(o api.Object) (api.Object, error) { return ToCore(o.(*eventsv1.Event)), nil }
	return &api.Resource{
		Group: Group, Name: "events", Singular: "event", Kind: "Event",
		ShortNames:     []string{"ev"},
		Namespaced:     true,
		Versions:       []api.Version{v},
		StorageVersion: "v1",
		StorageGroup:   api.CoreGroup,
		Strategy: api.Strategy{
			Validate:            api.Check(validate),
			ValidateUpdate:      api.CheckUpdate(validateUpdate),
			Selectable:          api.Select(selectable),
			AllowCreateOnUpdate: true,
			TTLSeconds:          core.EventTTL,
		},
		Columns:    core.EventColumns(),
		WholeTable: true,
		Cells: func(o api.Object, now metav1.Time) []any {
			if e, ok := o.(*eventsv1.Event); ok {
				return core.EventCells(ToCore(e), now)
			}
			return core.EventCells(o.(*corev1.Event), now)
		},
	}
}

// FromCore shows a stored event in this group's shape. It shares memory with e.
func FromCore(e *corev1.Event) *eventsv1.Event {
	out := &eventsv1.Event{
		TypeMeta:                 metav1.TypeMeta{APIVersion: "events.k8s.io/v1", Kind: "Event"},
		ObjectMeta:               e.ObjectMeta,
		EventTime:                e.EventTime,
		ReportingController:      e.ReportingController,
		ReportingInstance:        e.ReportingInstance,
		Action:                   e.Action,
		Reason:                   e.Reason,
		Regarding:                e.InvolvedObject,
		Related:                  e.Related,
		Note:                     e.Message,
		Type:                     e.Type,
		DeprecatedSource:         e.Source,
		DeprecatedFirstTimestamp: e.FirstTimestamp,
		DeprecatedLastTimestamp:  e.LastTimestamp,
		DeprecatedCount:          e.Count,
	}
	if s := e.Series; s != nil {
		out.Series = &eventsv1.EventSeries{Count: s.Count, LastObservedTime: s.LastObservedTime}
	}
	return out
}

// ToCore turns an event of this group into the stored one. It shares memory with e.
func ToCore(e *eventsv1.Event) *corev1.Event {
	out := &corev1.Event{
		TypeMeta:            metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:          e.ObjectMeta,
		InvolvedObject:      e.Regarding,
		Reason:              e.Reason,
		Message:             e.Note,
		Source:              e.DeprecatedSource,
		FirstTimestamp:      e.DeprecatedFirstTimestamp,
		LastTimestamp:       e.DeprecatedLastTimestamp,
		Count:               e.DeprecatedCount,
		Type:                e.Type,
		EventTime:           e.EventTime,
		Action:              e.Action,
		Related:             e.Related,
		ReportingController: e.ReportingController,
		ReportingInstance:   e.ReportingInstance,
	}
	if s := e.Series; s != nil {
		out.Series = &corev1.EventSeries{Count: s.Count, LastObservedTime: s.LastObservedTime}
	}
	return out
}

// selectable offers the fields under the names of this group.
func selectable(e *corev1.Event) fields.Set {
	o := &e.InvolvedObject
	return fields.Set{
		"reason":                    e.Reason,
		"regarding.kind":            o.Kind,
		"regarding.namespace":       o.Namespace,
		"regarding.name":            o.Name,
		"regarding.uid":             string(o.UID),
		"regarding.apiVersion":      o.APIVersion,
		"regarding.resourceVersion": o.ResourceVersion,
		"regarding.fieldPath":       o.FieldPath,
		"reportingController":       e.ReportingController,
		"type":                      e.Type,
	}
}

func validate(e *corev1.Event) field.ErrorList {
	l := &check.List{}
	core.CheckEvent(l, e, "reportingController")
	checkSeries(l, e)
	if e.EventTime.IsZero() {
		l.Required(field.NewPath("eventTime"), "")
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		l.Invalid(field.NewPath("type"), "", fmt.Sprintf("has invalid value: %v", e.Type))
	}
	unset := func(name string, set bool) {
		if set {
			l.Invalid(field.NewPath(name), "", "needs to be unset")
		}
	}
	unset("firstTimestamp", !e.FirstTimestamp.IsZero())
	unset("lastTimestamp", !e.LastTimestamp.IsZero())
	unset("count", e.Count != 0)
	unset("source", e.Source != corev1.EventSource{})
	return l.Errors
}

func checkSeries(l *check.List, e *corev1.Event) {
	if e.Series == nil {
		return
	}
	at := field.NewPath("series")
	if e.Series.Count < 2 {
		l.Invalid(at.Child("count"), "", "should be at least 2")
	}
	if e.Series.LastObservedTime.IsZero() {
		l.Required(at.Child("lastObservedTime"), "")
	}
}

func validateUpdate(e, old *corev1.Event) field.ErrorList {
	l := &check.List{}
	core.CheckEvent(l, e, "reportingController")
	if api.Changed(e.Series, old.Series) {
		checkSeries(l, e)
	}
	for _, f := range []struct {
		name     string
		now, was any
	}{
		{"involvedObject", e.InvolvedObject, old.InvolvedObject}, {"reason", e.Reason, old.Reason}, {"message", e.Message, old.Message},
		{"source", e.Source, old.Source}, {"firstTimestamp", e.FirstTimestamp, old.FirstTimestamp}, {"lastTimestamp", e.LastTimestamp, old.LastTimestamp},
		{"count", e.Count, old.Count}, {"type", e.Type, old.Type}, {"eventTime", e.EventTime, old.EventTime}, {"action", e.Action, old.Action},
		{"related", e.Related, old.Related}, {"reportingController", e.ReportingController, old.ReportingController},
		{"reportingInstance", e.ReportingInstance, old.ReportingInstance},
	} {
		l.Immutable(field.NewPath(f.name), f.now, f.was)
	}
	return l.Errors
}

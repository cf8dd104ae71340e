package core

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
)

// EventTTL is how long events are kept, in seconds.
const EventTTL = 3600

func eventResource() *api.Resource {
	return &api.Resource{
		Name: "events", Singular: "event", Kind: "Event",
		ShortNames: []string{"ev"},
		Namespaced: true,
		Versions:   []api.Version{api.Versioned[corev1.Event, corev1.EventList]("v1", nil)},
		Strategy: api.Strategy{
			NameValid:           check.PathSegment, // as upstream's for this group; events.k8s.io is strict
			Validate:            api.Check(validateEvent),
			ValidateUpdate:      api.CheckUpdate(func(e, _ *corev1.Event) field.ErrorList { return validateEvent(e) }),
			Selectable:          api.Select(EventFields),
			AllowCreateOnUpdate: true,
			TTLSeconds:          EventTTL,
		},
		Columns:    EventColumns(),
		WholeTable: true,
		Cells:      api.Row(EventCells),
	}
}

// EventFields are the selectable fields of an event.
func EventFields(e *corev1.Event) fields.Set {
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	o := &e.InvolvedObject
	return fields.Set{
		"involvedObject.kind":            o.Kind,
		"involvedObject.namespace":       o.Namespace,
		"involvedObject.name":            o.Name,
		"involvedObject.uid":             string(o.UID),
		"involvedObject.apiVersion":      o.APIVersion,
		"involvedObject.resourceVersion": o.ResourceVersion,
		"involvedObject.fieldPath":       o.FieldPath,
		"reason":                         e.Reason,
		"reportingComponent":             e.ReportingController,
		"source":                         source,
		"type":                           e.Type,
	}
}

func validateEvent(e *corev1.Event) field.ErrorList {
	l := &check.List{}
	CheckEvent(l, e, "reportingComponent")
	return l.Errors
}

// CheckEvent checks what holds for events of both groups; controllerField is
// the name the group has for the reporting controller.
func CheckEvent(l *check.List, e *corev1.Event, controllerField string) {
	ns, at := e.InvolvedObject.Namespace, field.NewPath("involvedObject", "namespace")
	const mismatch = "does not match event.namespace"
	if e.EventTime.IsZero() {
		if ns == "" && e.Namespace != "" && e.Namespace != metav1.NamespaceDefault || ns != "" && ns != e.Namespace {
			l.Invalid(at, ns, mismatch)
		}
		return
	}
	if ns == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem {
		l.Invalid(at, ns, mismatch)
	}
	controller := field.NewPath(controllerField)
	l.Text(controller, e.ReportingController)
	l.QualifiedName(controller, e.ReportingController)
	limit := func(name, value string, most int, needed bool) {
		if needed {
			l.Text(field.NewPath(name), value)
		}
		if len(value) > most {
			l.Invalid(field.NewPath(name), "", fmt.Sprintf("can have at most %v characters", most))
		}
	}
	limit("reportingInstance", e.ReportingInstance, 128, true)
	limit("action", e.Action, 128, true)
	limit("reason", e.Reason, 128, true)
	limit("message", e.Message, 1024, false)
}

// EventColumns is the whole table of events.
func EventColumns() []metav1.TableColumnDefinition {
	doc := corev1.Event{}.SwaggerDoc()
	name := metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Priority: 1, Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
	return []metav1.TableColumnDefinition{
		api.Column("Last Seen", "string", doc["lastTimestamp"]),
		api.Column("Type", "string", doc["type"]),
		api.Column("Reason", "string", doc["reason"]),
		api.Column("Object", "string", doc["involvedObject"]),
		api.Wide("Subobject", corev1.ObjectReference{}.SwaggerDoc()["fieldPath"]),
		api.Wide("Source", doc["source"]),
		api.Column("Message", "string", doc["message"]),
		api.Wide("First Seen", doc["firstTimestamp"]),
		api.Wide("Count", doc["count"]),
		name,
	}
}

// EventCells is one row of the table of events.
func EventCells(e *corev1.Event, now metav1.Time) []any {
	first := api.Age(e.FirstTimestamp, now)
	if e.FirstTimestamp.IsZero() {
		first = api.MicroAge(e.EventTime, now)
	}
	last := api.Age(e.LastTimestamp, now)
	if e.LastTimestamp.IsZero() {
		last = first
	}
	count := e.Count
	if e.Series != nil {
		last, count = api.MicroAge(e.Series.LastObservedTime, now), e.Series.Count
	} else if count == 0 {
		count = 1
	}
	target := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		target += "/" + e.InvolvedObject.Name
	}
	source := firstNonEmpty(e.Source.Component, e.ReportingController)
	if host := firstNonEmpty(e.Source.Host, e.ReportingInstance); host != "" {
		source += ", " + host
	}
	return []any{last, e.Type, e.Reason, target, e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message), first, int64(count), e.Name}
}

func firstNonEmpty(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

package api

import (
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Column describes a table column of the given type ("string", "integer",
// "boolean") shown by default.
func Column(name, kind, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: kind, Description: description}
}

// Wide describes a string column shown only with -o wide.
func Wide(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description, Priority: 1}
}

// AgeColumn is the column of the time since an object was created.
func AgeColumn() metav1.TableColumnDefinition {
	return Column("Age", "string", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"])
}

// Age tells how long ago t was, in words; "<unknown>" for no time at all.
func Age(t, now metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return Elapsed(now.Sub(t.Time))
}

// MicroAge is Age for a MicroTime.
func MicroAge(t metav1.MicroTime, now metav1.Time) string {
	return Age(metav1.Time(t), now)
}

// Elapsed tells a duration in words: "5d3h".
func Elapsed(d time.Duration) string { return duration.HumanDuration(d) }

// OrNone joins texts with commas; "<none>" for none.
func OrNone(texts []string) string {
	if len(texts) == 0 {
		return "<none>"
	}
	return strings.Join(texts, ",")
}

// TableColumns are all columns of the resource's tables.
func (r *Resource) TableColumns() []metav1.TableColumnDefinition {
	if r.WholeTable {
		return r.Columns
	}
	doc := metav1.ObjectMeta{}.SwaggerDoc()
	cols := []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: doc["name"]}}
	if r.Cells == nil {
		return append(cols, metav1.TableColumnDefinition{Name: "Created At", Type: "date", Description: doc["creationTimestamp"]})
	}
	return append(cols, r.Columns...)
}

// TableCells are the cells of one object's row.
func (r *Resource) TableCells(obj Object, now metav1.Time) []any {
	if r.Cells != nil {
		return r.Cells(obj, now)
	}
	return []any{obj.GetName(), obj.GetCreationTimestamp().UTC().Format(time.RFC3339)}
}

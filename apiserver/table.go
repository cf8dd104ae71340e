package apiserver

import (
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
)

const nameDescription = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names"

const createdDescription = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC."

// table renders stored objects as rows.
func (s *Server) table(c *call, out output, objs []api.Object) (*metav1.Table, error) {
	include := metav1.IncludeObjectPolicy(c.query.Get("includeObject"))
	switch include {
	case "":
		include = metav1.IncludeMetadata
	case metav1.IncludeMetadata, metav1.IncludeObject, metav1.IncludeNone:
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("unrecognized includeObject value: %q", include))
	}
	t := &metav1.Table{ColumnDefinitions: columns(c.ep.res), Rows: make([]metav1.TableRow, 0, len(objs))}
	t.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: out.version, Kind: "Table"})
	now := metav1.NewTime(s.cfg.Clock.Now())
	for _, obj := range objs {
		row := metav1.TableRow{Cells: cells(c.ep.res, obj, now)}
		switch include {
		case metav1.IncludeObject:
			shown, err := c.ep.served(obj)
			if err != nil {
				return nil, err
			}
			row.Object = runtime.RawExtension{Object: shown}
		case metav1.IncludeMetadata:
			p := partial(out, obj)
			data, err := json.Marshal(p)
			if err != nil {
				return nil, err
			}
			row.Object = runtime.RawExtension{Raw: data}
		}
		t.Rows = append(t.Rows, row)
	}
	return t, nil
}

func columns(res *api.Resource) []metav1.TableColumnDefinition {
	if res.WholeTable {
		return res.Columns
	}
	cols := []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: nameDescription}}
	if res.Cells == nil {
		return append(cols, metav1.TableColumnDefinition{Name: "Created At", Type: "date", Description: createdDescription})
	}
	return append(cols, res.Columns...)
}

func cells(res *api.Resource, obj api.Object, now metav1.Time) []any {
	if res.Cells != nil {
		return res.Cells(obj, now)
	}
	return []any{obj.GetName(), obj.GetCreationTimestamp().UTC().Format(time.RFC3339)}
}

package apiserver

import (
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/partial"
)

// table renders stored objects as rows.
func (s *Server) table(c *call, out output, objs []api.Object) (*metav1.Table, error) {
	include := metav1.IncludeObjectPolicy(c.query.Get("includeObject"))
	switch include {
	case "":
		include = metav1.IncludeMetadata
	case metav1.IncludeMetadata, metav1.IncludeObject, metav1.IncludeNone:
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: includeObject: Invalid value: %q: must be 'Metadata', 'Object', 'None', or empty", include))
	}
	t := &metav1.Table{ColumnDefinitions: c.ep.res.TableColumns(), Rows: make([]metav1.TableRow, 0, len(objs))}
	t.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: out.version, Kind: "Table"})
	if order := c.ep.res.RowOrder; order != nil {
		slices.SortStableFunc(objs, order)
	}
	now := metav1.NewTime(s.cfg.Clock.Now())
	for _, obj := range objs {
		row := metav1.TableRow{Cells: c.ep.res.TableCells(obj, now)}
		switch include {
		case metav1.IncludeObject:
			shown, err := c.ep.served(obj)
			if err != nil {
				return nil, err
			}
			row.Object = runtime.RawExtension{Object: shown}
		case metav1.IncludeMetadata:
			p := partial.Of(out.version, obj)
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

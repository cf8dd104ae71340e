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

// includes is what a row says of its object besides the cells.
func (c *call) includes() metav1.IncludeObjectPolicy {
	if p := metav1.IncludeObjectPolicy(c.query.Get("includeObject")); p != "" {
		return p
	}
	return metav1.IncludeMetadata
}

// emptyTable is a table for the endpoint's objects, and what fills a row's cells.
func (s *Server) emptyTable(c *call, out output) (t *metav1.Table, cells func(api.Object) []any) {
	t = &metav1.Table{ColumnDefinitions: c.ep.res.TableColumns(), Rows: []metav1.TableRow{}}
	t.SetGroupVersionKind(schema.GroupVersionKind{Group: metav1.GroupName, Version: out.version, Kind: "Table"})
	now := metav1.NewTime(s.cfg.Clock.Now())
	return t, func(obj api.Object) []any { return c.ep.res.TableCells(obj, now) }
}

// table renders stored objects as rows.
func (s *Server) table(c *call, out output, objs []api.Object) (*metav1.Table, error) {
	include := c.includes()
	switch include {
	case metav1.IncludeMetadata, metav1.IncludeObject, metav1.IncludeNone:
	default:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: includeObject: Invalid value: %q: must be 'Metadata', 'Object', 'None', or empty", include))
	}
	t, cells := s.emptyTable(c, out)
	if order := c.ep.res.RowOrder; order != nil {
		slices.SortStableFunc(objs, order)
	}
	for _, obj := range objs {
		row := metav1.TableRow{Cells: cells(obj)}
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

//go:build skiffslim

package slim

import (
	"reflect"
	"text/template"
)

// Use makes templates find their methods in the table.
func Use() {
	template.Methods = func(receiver reflect.Value, name string) reflect.Value {
		return reflect.ValueOf(method(receiver.Interface(), name))
	}
}

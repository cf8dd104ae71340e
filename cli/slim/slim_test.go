package slim

import (
	"reflect"
	"testing"
	"text/template/parse"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubectl/pkg/util/templates"
)

// TestTemplates reads the help templates of cobra and kubectl: each name they
// take from a command or a flag set must be a field of it or in the table, so
// that an upgrade that uses another method is noticed here and not by a user.
func TestTemplates(t *testing.T) {
	cmd := &cobra.Command{Use: "x"}
	for name, text := range map[string]string{
		"cobra usage":           cmd.UsageTemplate(),
		"cobra help":            cmd.HelpTemplate(),
		"cobra version":         cmd.VersionTemplate(),
		"kubectl usage":         templates.MainUsageTemplate(),
		"kubectl help":          templates.MainHelpTemplate(),
		"kubectl options usage": templates.OptionsUsageTemplate(),
		"kubectl options help":  templates.OptionsHelpTemplate(),
	} {
		tree := parse.New(name)
		tree.Mode = parse.SkipFuncCheck
		if _, err := tree.Parse(text, "", "", map[string]*parse.Tree{}); err != nil {
			t.Fatal(err)
		}
		for _, field := range names(tree.Root) {
			if !known(cmd, field) && !known(cmd.Flags(), field) && !known(&cobra.Group{}, field) {
				t.Errorf("%s: .%s is neither a field nor in the table: add it to methods.go", name, field)
			}
		}
	}
}

// TestMethods: what the table finds is what reflection finds. The etcdctl help
// template is private to its package; the methods it names are listed here.
func TestMethods(t *testing.T) {
	for _, c := range []struct {
		receiver any
		names    []string
	}{
		{&cobra.Command{Use: "x"}, []string{
			"HasParent", "Name", "Root", "UseLine", "HasSubCommands", "HasExample", "Runnable", "HasLocalFlags", "HasInheritedFlags",
		}},
		{pflag.NewFlagSet("x", pflag.ContinueOnError), []string{"HasFlags", "FlagUsages"}},
		{schema.GroupVersionResource{Resource: "pods"}, []string{"String"}},
	} {
		all := reflect.TypeOf(c.receiver)
		for _, name := range c.names {
			if method(c.receiver, name) == nil {
				t.Errorf("%s.%s is not in the table", all, name)
			}
		}
		for i := range all.NumMethod() {
			m := all.Method(i)
			got := method(c.receiver, m.Name)
			want := reflect.ValueOf(c.receiver).Method(i)
			if got != nil && reflect.TypeOf(got) != want.Type() {
				t.Errorf("%s.%s is a %T, want %s", all, m.Name, got, want.Type())
			}
		}
		if got := method(c.receiver, "NoSuchMethod"); got != nil {
			t.Errorf("%s.NoSuchMethod is a %T", all, got)
		}
	}
}

// names are the fields a template takes from its values, chained ones apart.
func names(n parse.Node) []string {
	var out []string
	var walk func(reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Interface:
			walk(v.Elem())
		case reflect.Pointer:
			switch x := v.Interface().(type) {
			case *parse.Tree:
				return
			case *parse.FieldNode:
				out = append(out, x.Ident...)
			case *parse.VariableNode:
				out = append(out, x.Ident[1:]...)
			case *parse.ChainNode:
				out = append(out, x.Field...)
			}
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				if v.Type().Field(i).IsExported() {
					walk(v.Field(i))
				}
			}
		}
	}
	walk(reflect.ValueOf(n))
	return out
}

func known(receiver any, name string) bool {
	_, field := reflect.TypeOf(receiver).Elem().FieldByName(name)
	return field || method(receiver, name) != nil
}

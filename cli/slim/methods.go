package slim

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// method returns the method of receiver that a template calls name, as a
// function value, and nil when it has none or no template of this program uses
// it.
func method(receiver any, name string) any { return methods(receiver)[name] }

// methods are those that templates of this program use: what is not listed is
// not linked. A test reads the templates and compares.
func methods(receiver any) map[string]any {
	switch r := receiver.(type) {
	case *cobra.Command:
		return map[string]any{
			"AllChildCommandsHaveGroup":    r.AllChildCommandsHaveGroup,
			"CommandPath":                  r.CommandPath,
			"CommandPathPadding":           r.CommandPathPadding,
			"Commands":                     r.Commands,
			"DisplayName":                  r.DisplayName,
			"Groups":                       r.Groups,
			"HasAvailableInheritedFlags":   r.HasAvailableInheritedFlags,
			"HasAvailableLocalFlags":       r.HasAvailableLocalFlags,
			"HasAvailableSubCommands":      r.HasAvailableSubCommands,
			"HasExample":                   r.HasExample,
			"HasHelpSubCommands":           r.HasHelpSubCommands,
			"HasInheritedFlags":            r.HasInheritedFlags,
			"HasLocalFlags":                r.HasLocalFlags,
			"HasParent":                    r.HasParent,
			"HasSubCommands":               r.HasSubCommands,
			"InheritedFlags":               r.InheritedFlags,
			"IsAdditionalHelpTopicCommand": r.IsAdditionalHelpTopicCommand,
			"IsAvailableCommand":           r.IsAvailableCommand,
			"LocalFlags":                   r.LocalFlags,
			"Name":                         r.Name,
			"NameAndAliases":               r.NameAndAliases,
			"NamePadding":                  r.NamePadding,
			"PersistentFlags":              r.PersistentFlags,
			"Root":                         r.Root,
			"Runnable":                     r.Runnable,
			"UsageString":                  r.UsageString,
			"UseLine":                      r.UseLine,
		}
	case *pflag.FlagSet:
		return map[string]any{"FlagUsages": r.FlagUsages, "HasFlags": r.HasFlags}
	case schema.GroupVersionResource:
		return map[string]any{"String": r.String}
	}
	return nil
}

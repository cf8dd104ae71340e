package slim

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// method returns the method of receiver that a template calls name, as a
// function value, and nil when it has none or no template of this program uses
// it. A test reads the templates and compares.
func method(receiver any, name string) any {
	switch r := receiver.(type) {
	case *cobra.Command:
		return command(r, name)
	case *pflag.FlagSet:
		switch name {
		case "FlagUsages":
			return r.FlagUsages
		case "HasFlags":
			return r.HasFlags
		}
	case schema.GroupVersionResource:
		if name == "String" {
			return r.String
		}
	}
	return nil
}

// command has no default beside nil on purpose: what is not listed is not linked.
func command(c *cobra.Command, name string) any {
	switch name {
	case "CommandPath":
		return c.CommandPath
	case "Commands":
		return c.Commands
	case "DisplayName":
		return c.DisplayName
	case "Groups":
		return c.Groups
	case "HasAvailableInheritedFlags":
		return c.HasAvailableInheritedFlags
	case "HasAvailableLocalFlags":
		return c.HasAvailableLocalFlags
	case "HasAvailableSubCommands":
		return c.HasAvailableSubCommands
	case "HasExample":
		return c.HasExample
	case "HasHelpSubCommands":
		return c.HasHelpSubCommands
	case "HasParent":
		return c.HasParent
	case "HasSubCommands":
		return c.HasSubCommands
	case "Name":
		return c.Name
	case "NameAndAliases":
		return c.NameAndAliases
	case "Root":
		return c.Root
	case "Runnable":
		return c.Runnable
	case "UsageString":
		return c.UsageString
	case "UseLine":
		return c.UseLine
	}
	return commandMore(c, name)
}

// commandMore is the rest of command.
func commandMore(c *cobra.Command, name string) any {
	switch name {
	case "AllChildCommandsHaveGroup":
		return c.AllChildCommandsHaveGroup
	case "CommandPathPadding":
		return c.CommandPathPadding
	case "HasInheritedFlags":
		return c.HasInheritedFlags
	case "HasLocalFlags":
		return c.HasLocalFlags
	case "InheritedFlags":
		return c.InheritedFlags
	case "IsAdditionalHelpTopicCommand":
		return c.IsAdditionalHelpTopicCommand
	case "IsAvailableCommand":
		return c.IsAvailableCommand
	case "LocalFlags":
		return c.LocalFlags
	case "NamePadding":
		return c.NamePadding
	case "PersistentFlags":
		return c.PersistentFlags
	}
	return nil
}

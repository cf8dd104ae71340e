// Command skiff is a whole Kubernetes cluster in one binary. It picks what to
// be by the name it is called by (kubectl, etcdctl, sh, …), else by its first
// argument. Flags and os.Exit are only here and in the commands it lists.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skiff-project/skiff/cli"
	"github.com/skiff-project/skiff/cli/box"
	"github.com/skiff-project/skiff/cli/etcd"
	"github.com/skiff-project/skiff/cli/etcdctl"
	"github.com/skiff-project/skiff/cli/etcdutl"
	"github.com/skiff-project/skiff/cli/kubectl"
	"github.com/skiff-project/skiff/cli/slim"
	"github.com/skiff-project/skiff/cluster"
)

func main() { os.Exit(run(os.Args)) }

// run is main with the exit status returned.
func run(args []string) int {
	slim.Use()
	name := filepath.Base(args[0])
	if code, ok := frontEnd(name, args[1:]); ok {
		return code
	}
	if len(args) > 1 {
		if code, ok := frontEnd(args[1], args[2:]); ok {
			return code
		}
	}
	cobra.EnablePrefixMatching = false // the embedded etcdctl turns it on for the whole program
	root := &cobra.Command{
		Use:           "skiff",
		Short:         "A whole Kubernetes cluster in one small binary",
		Long:          "Skiff is a whole Kubernetes " + cluster.KubernetesVersion + " cluster in one small binary. Start with: sudo skiff up -d",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(cli.Commands()...)
	for _, s := range cli.Summaries() {
		root.AddCommand(listed(s[0], s[1]))
	}
	root.AddCommand(
		listed("kubectl", "The stock kubectl, embedded"),
		listed("etcd", "A server of etcd's API, on upstream's flags"),
		listed("etcdctl", "The stock etcdctl, embedded"),
		listed("etcdutl", "Works on snapshots of the store, and of stock etcd"),
	)
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "skiff:", err)
		return 1
	}
	return 0
}

// listed is a command for the help text; frontEnd runs it before cobra sees it.
func listed(name, short string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}}
}

// frontEnd runs the programs that are not commands of skiff itself: the
// embedded clients and the userland of Skiff's own image.
func frontEnd(name string, args []string) (code int, ok bool) {
	switch name {
	case "kubectl":
		return kubectl.Main(args), true
	case "etcd":
		return etcd.Main(args), true
	case "etcdctl":
		return etcdctl.Main(args), true
	case "etcdutl":
		return etcdutl.Main(args), true
	case "skiff":
		return 0, false
	}
	if code, ok := cli.Main(name, args); ok {
		return code, true
	}
	if box.Has(name) {
		return box.Main(name, args), true
	}
	return 0, false
}

// Package kubectl is the stock kubectl, run inside skiff.
package kubectl

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins, as stock
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	_ "github.com/skiff-project/skiff/cli/kubectl/english" // before kubectl's own packages
)

// adminConf is the local cluster's own kubeconfig, and contextName what
// `skiff up` calls it in the user's.
const (
	adminConf   = "/var/lib/skiff/admin.conf"
	contextName = "skiff"
)

// Main runs kubectl with args (without the program name) and returns its exit
// status; some errors end the process from within, as in stock kubectl.
func Main(args []string) int {
	if path := fallback(os.Getenv("KUBECONFIG"), clientcmd.RecommendedHomeFile, adminConf); path != "" {
		os.Setenv("KUBECONFIG", path)
	}
	os.Args = append([]string{"kubectl"}, args...)
	cobra.EnablePrefixMatching = false // etcdctl, in the same binary, turns it on
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
	return 0
}

// fallback returns the kubeconfig to use in place of the user's: the local
// cluster's own when the user has named none and theirs does not know it; ""
// to leave the choice to kubectl.
func fallback(env, home, admin string) string {
	if env != "" {
		return ""
	}
	if config, err := clientcmd.LoadFromFile(home); err == nil && config.Contexts[contextName] != nil {
		return ""
	}
	f, err := os.Open(filepath.Clean(admin))
	if err != nil { // none here, or not for this user to read
		return ""
	}
	f.Close()
	return admin
}

// Package etcdctl is the stock etcdctl, run inside skiff, and a small one for
// the v2 API.
package etcdctl

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
)

// Main runs etcdctl with args (without the program name) and returns its exit
// status; errors of a v3 command end the process from within, as in the stock
// tool. ETCDCTL_API=2 picks the v2 API's own commands.
func Main(args []string) int {
	switch v := os.Getenv("ETCDCTL_API"); v {
	case "", "3":
	case "2":
		return RunV2(args, os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	default:
		fmt.Fprintf(os.Stderr, "etcdctl: ETCDCTL_API=%s is not supported: 2 and 3 are\n", v)
		return 1
	}
	os.Unsetenv("ETCDCTL_API") // else taken for an unknown flag's variable
	os.Args = append([]string{"etcdctl"}, args...)
	cobra.EnablePrefixMatching = true // as stock; kubectl, in the same binary, turns it off
	ctlv3.MustStart()
	return 0
}

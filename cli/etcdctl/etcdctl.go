// Package etcdctl is the stock etcdctl, run inside skiff.
package etcdctl

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
)

// Main runs etcdctl with args (without the program name) and returns its exit
// status; errors of a command end the process from within, as in the stock
// tool. Only the v3 API is spoken so far.
func Main(args []string) int {
	if v := os.Getenv("ETCDCTL_API"); v != "" && v != "3" {
		fmt.Fprintf(os.Stderr, "etcdctl: ETCDCTL_API=%s is not supported: only 3 is; unset it\n", v)
		return 1
	}
	os.Unsetenv("ETCDCTL_API") // else taken for an unknown flag's variable
	os.Args = append([]string{"etcdctl"}, args...)
	cobra.EnablePrefixMatching = true // as stock; kubectl, in the same binary, turns it off
	ctlv3.MustStart()
	return 0
}

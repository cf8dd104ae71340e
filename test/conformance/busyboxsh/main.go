// Command busyboxsh is /bin/sh of the assembled busybox image: Debian's busybox
// shell, except that where it would lose environment variables whose names are
// no shell names (it drops them, busybox 1.37 keeps them) bash takes its place.
package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
)

var shellName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func main() {
	shell := "/bin/busybox"
	args := append([]string{os.Args[0]}, os.Args[1:]...)
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !shellName.MatchString(name) {
			shell = "/bin/bash"
		}
	}
	err := syscall.Exec(shell, args, os.Environ())
	fmt.Fprintf(os.Stderr, "%s: exec %s: %v\n", os.Args[0], shell, err)
	os.Exit(126)
}

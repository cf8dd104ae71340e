package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// unneeded are dependencies that only serve installing, which never happens,
// and second choices.
var unneeded = regexp.MustCompile(`^(debconf|cdebconf|dpkg|perl|perl-base|adduser|passwd|tar|init-system-helpers|lsb-base|sysvinit-utils|login|libperl5\.36|perl-modules-5\.36|debianutils|gcc-12-base|base-files|usrmerge|usr-is-merged|libelogind0|gawk|original-awk|libfile-find-rule-perl|libnumber-compare-perl|libtext-glob-perl|libdebian-installer4|libnewt0\.52|libslang2|libtextwrap1|install-info|readline-common)$`)

// unpack extracts packages and all they depend on below root.
func unpack(ctx context.Context, packages []string, debs, root string) error {
	if len(packages) == 0 {
		return nil
	}
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	args := []string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}
	out, err := exec.CommandContext(ctx, "apt-cache", append(args, packages...)...).Output()
	if err != nil {
		return fmt.Errorf("apt-cache depends: %w", err)
	}
	for _, p := range strings.Split(string(out), "\n") {
		// Indented lines repeat dependencies; <angled> ones are virtual.
		if p == "" || strings.HasPrefix(p, " ") || strings.HasPrefix(p, "<") || unneeded.MatchString(p) || strings.Contains(p, ":") {
			continue
		}
		file, err := download(ctx, p, debs)
		if err != nil {
			return err
		}
		if msg, err := exec.CommandContext(ctx, "dpkg-deb", "-x", file, root).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w\n%s", file, err, msg)
		}
	}
	return nil
}

// download fetches a package's archive unless debs has it.
func download(ctx context.Context, name, debs string) (string, error) {
	pattern := filepath.Join(debs, name+"_*.deb")
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		cmd := exec.CommandContext(ctx, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name)
		cmd.Dir = debs
		if msg, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("apt-get download %s (is 'apt-get update' needed?): %w\n%s", name, err, msg)
		}
		if found, _ = filepath.Glob(pattern); len(found) == 0 {
			return "", fmt.Errorf("apt-get download %s left no file %s", name, pattern)
		}
	}
	return found[0], nil
}

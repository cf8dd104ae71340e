// Package box is the userland of Skiff's own image: a POSIX shell and small
// Unix tools in pure Go, chosen by the name the binary is called by. The shell
// runs them in its own process.
package box

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// call is one run of an applet.
type call struct {
	ctx      context.Context // ends when the applet should
	name     string
	args     []string // without the name
	in       io.Reader
	out, err io.Writer
	dir      string // working folder; relative paths start here
	env      func(string) string
	environ  func() []string
}

// applet returns an exit status.
type applet func(c *call) int

// applets lists every tool by name. A function, so that a start of skiff as
// something else pays nothing for it.
func applets() map[string]applet {
	return map[string]applet{
		"[": test, "cat": cat, "date": date, "echo": echo, "env": envCmd, "false": falseCmd, "grep": grep,
		"head": head, "hostname": hostname, "id": id, "ls": ls, "mkdir": mkdir, "nc": nc, "nslookup": nslookup,
		"ps": ps, "pwd": pwd, "rm": rm, "sh": sh, "sleep": sleep, "tail": tail, "tar": tarCmd, "tee": tee,
		"test": test, "touch": touch, "true": trueCmd, "uname": uname, "wc": wc, "web": web, "wget": wget,
		"whoami": whoami,
	}
}

// Has reports whether there is an applet of this name.
func Has(name string) bool { return applets()[name] != nil }

// Names lists the applets, for making their links in an image.
func Names() []string {
	var names []string
	for n := range applets() {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Main runs an applet with args (without its name) on this process's streams
// and returns its exit status.
func Main(name string, args []string) int {
	run := applets()[name]
	if run == nil {
		fmt.Fprintf(os.Stderr, "%s: no such applet\n", name)
		return 127
	}
	// A shell's children get the signals of the terminal themselves; the
	// applets have nothing to clean up but a server's listener.
	ctx, stop := context.WithCancel(context.Background())
	if name == "web" {
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	}
	defer stop()
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	return run(&call{
		ctx: ctx, name: name, args: args, in: os.Stdin, out: os.Stdout, err: os.Stderr,
		dir: dir, env: os.Getenv, environ: os.Environ,
	})
}

// path resolves a name against the working folder.
func (c *call) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.dir, name)
}

// fail prints an error as the tools do ("cat: x: no such file or directory")
// and returns status 1.
func (c *call) fail(what string, err error) int {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		err = pathErr.Err
	}
	if what != "" {
		what += ": "
	}
	fmt.Fprintf(c.err, "%s: %s%v\n", c.name, what, err)
	return 1
}

// usage complains about the command line and returns status 2.
func (c *call) usage(format string, args ...any) int {
	fmt.Fprintf(c.err, "%s: %s\n", c.name, fmt.Sprintf(format, args...))
	return 2
}

// flags splits the command line into options and operands. spec names the
// one-letter options; one followed by a colon takes a value. Options may be
// run together (-rf) and end at "--". An unknown one is an error.
func (c *call) flags(spec string) (opts map[byte]string, operands []string, err error) {
	opts = map[byte]string{}
	args := c.args
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			return opts, append(operands, args[1:]...), nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			operands = append(operands, arg)
			args = args[1:]
			continue
		}
		args = args[1:]
		for i := 1; i < len(arg); i++ {
			at := strings.IndexByte(spec, arg[i])
			if at < 0 || arg[i] == ':' {
				return nil, nil, fmt.Errorf("unrecognized option '%s'", arg)
			}
			if at+1 >= len(spec) || spec[at+1] != ':' {
				opts[arg[i]] = "true"
				continue
			}
			value := arg[i+1:]
			if value == "" {
				if len(args) == 0 {
					return nil, nil, fmt.Errorf("option '-%c' needs a value", arg[i])
				}
				value, args = args[0], args[1:]
			}
			opts[arg[i]] = value
			break
		}
	}
	return opts, operands, nil
}

// eachInput runs do on every named file, or on standard input when there is
// none or for "-".
func (c *call) eachInput(names []string, do func(name string, r io.Reader) error) int {
	status := 0
	if len(names) == 0 {
		names = []string{"-"}
	}
	for _, n := range names {
		if n == "-" {
			if err := do(n, c.in); err != nil {
				status = c.fail(n, err)
			}
			continue
		}
		f, err := os.Open(c.path(n))
		if err == nil {
			err = do(n, f)
			f.Close()
		}
		if err != nil {
			status = c.fail(n, err)
		}
	}
	return status
}

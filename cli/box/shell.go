package box

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// sh is the shell: -c, scripts, standard input, interactive on a terminal.
func sh(c *call) int {
	var set []string // options for the interpreter: -e, -x, …
	command, hasCommand, interactive := "", false, false
	args := c.args
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		for _, f := range a[1:] {
			switch f {
			case 'c':
				hasCommand = true
			case 'i':
				interactive = true
			case 's', 'l':
			case 'e', 'u', 'x', 'f', 'n', 'a':
				set = append(set, a[:1]+string(f))
			case 'o':
				if len(args) == 0 {
					return c.usage("option -o needs a value")
				}
				set = append(set, a[:1]+"o", args[0])
				args = args[1:]
			default:
				return c.usage("unrecognized option '%s'", a)
			}
		}
	}
	name := "sh"
	if hasCommand {
		if len(args) == 0 {
			return c.usage("-c needs a command")
		}
		command, args = args[0], args[1:]
		if len(args) > 0 {
			name, args = args[0], args[1:]
		}
	}
	s := &shell{c: c}
	var script io.Reader
	switch {
	case hasCommand:
		script = strings.NewReader(command)
	case len(args) > 0:
		f, err := os.Open(c.path(args[0]))
		if err != nil {
			c.fail(args[0], err)
			return 127
		}
		defer f.Close()
		script, name, args = f, args[0], args[1:]
	}
	if script == nil {
		stop, err := c.readFile()
		if err != nil {
			c.fail("standard input", err)
			return 1
		}
		defer stop()
	}
	if err := s.init(append(append(set, "--"), args...)); err != nil {
		return c.usage("%v", err)
	}
	if script != nil {
		return s.run(script, name)
	}
	return s.loop(interactive || isTerminal(c.in))
}

// readFile makes standard input a file if it is none: the interpreter copies from any other
// reader in the background, and would take from the shell the commands it is to read. stop frees it.
func (c *call) readFile() (stop func() error, err error) {
	if _, ok := c.in.(*os.File); ok || c.in == nil {
		return func() error { return nil }, nil
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func(r io.Reader) {
		io.Copy(in, r) // ends at r's end, or when the shell has closed its side
		in.Close()
	}(c.in)
	c.in = out
	return out.Close, nil
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

type shell struct {
	c      *call
	runner *interp.Runner
	traps  traps
}

func (s *shell) init(params []string) error {
	var err error
	s.runner, err = interp.New(
		interp.StdIO(s.c.in, s.c.out, s.c.err),
		interp.Env(expand.ListEnviron(s.c.environ()...)),
		interp.Dir(s.c.dir),
		interp.Params(params...),
		interp.CallHandler(s.traps.call),
		interp.ExecHandlers(s.applets),
	)
	return err
}

// ownPrefix marks the builtins the interpreter leaves to us.
const ownPrefix = "skiff builtin "

// applets runs what this package has inside the shell, and leaves commands
// given by path, and all others, to the system.
func (s *shell) applets(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	known := applets()
	known[ownPrefix+"kill"], known[ownPrefix+"umask"] = kill, umask
	return func(ctx context.Context, args []string) error {
		run := known[args[0]]
		if run == nil {
			return next(ctx, args)
		}
		hc := interp.HandlerCtx(ctx)
		ctx, done := s.traps.interruptible(ctx)
		defer done()
		c := &call{
			ctx: ctx, name: strings.TrimPrefix(args[0], ownPrefix), args: args[1:], in: hc.Stdin, out: hc.Stdout, err: hc.Stderr, dir: hc.Dir,
			env:     func(name string) string { return hc.Env.Get(name).String() },
			environ: func() []string { return exported(hc.Env) },
		}
		if c.in == nil {
			c.in = strings.NewReader("")
		}
		if status := run(c); status != 0 {
			return interp.ExitStatus(status)
		}
		return nil
	}
}

func exported(env expand.Environ) []string {
	var out []string
	for name, v := range env.Each {
		if v.Exported && v.Kind == expand.String {
			out = append(out, name+"="+v.Str)
		}
	}
	return out
}

func (s *shell) run(script io.Reader, name string) int {
	prog, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(script, name)
	if err != nil {
		fmt.Fprintf(s.c.err, "sh: %v\n", err)
		return 2
	}
	return s.status(s.runner.Run(s.c.ctx, prog))
}

func (s *shell) status(err error) int {
	if err == nil {
		return 0
	}
	var code interp.ExitStatus
	if errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintf(s.c.err, "sh: %v\n", err)
	return 1
}

// loop runs what is typed, or piped in, statement by statement.
func (s *shell) loop(interactive bool) int {
	prompt := func(text string) {
		if interactive {
			fmt.Fprint(s.c.err, text)
		}
	}
	ps1 := "$ "
	if os.Geteuid() == 0 {
		ps1 = "# "
	}
	var busy atomic.Bool
	if interactive { // an interrupt ends the command, not the shell
		ints := make(chan os.Signal, 1)
		signal.Notify(ints, syscall.SIGINT)
		defer close(ints)
		defer signal.Stop(ints)
		go func() {
			for range ints {
				if !s.traps.interrupt() && !busy.Load() {
					prompt("\n" + ps1)
				}
			}
		}()
	}
	parser := syntax.NewParser(syntax.Variant(syntax.LangBash))
	last := 0
	in := s.c.in
	for {
		prompt(ps1)
		again := false
		for stmts, err := range parser.InteractiveSeq(in) {
			if err != nil {
				fmt.Fprintf(s.c.err, "sh: %v\n", err)
				last, again = 2, interactive
				break
			}
			if parser.Incomplete() {
				prompt("> ")
				continue
			}
			for _, stmt := range stmts {
				busy.Store(true)
				last = s.status(s.runner.Run(s.c.ctx, stmt))
				busy.Store(false)
				if s.runner.Exited() {
					return last
				}
			}
			prompt(ps1)
		}
		if !again {
			prompt("\n")
			return last
		}
		parser = syntax.NewParser(syntax.Variant(syntax.LangBash))
	}
}

// test is test and [ as programs of their own.
func test(c *call) int {
	words := append([]string{c.name}, c.args...)
	quoted := make([]string, len(words))
	for i, w := range words {
		q, err := syntax.Quote(w, syntax.LangPOSIX)
		if err != nil {
			return c.usage("%v", err)
		}
		quoted[i] = q
	}
	s := &shell{c: c}
	if err := s.init([]string{"--"}); err != nil {
		return c.usage("%v", err)
	}
	return s.run(strings.NewReader(strings.Join(quoted, " ")), "test")
}

// traps adds what the interpreter lacks: commands run on signals. They run
// between two commands, or as soon as a tool of this package can be stopped.
type traps struct {
	mu      sync.Mutex
	actions map[os.Signal]string
	signals chan os.Signal
	pending []os.Signal
	stop    context.CancelFunc // of the running applet
}

func signalByName(name string) os.Signal {
	switch strings.TrimPrefix(strings.ToUpper(name), "SIG") {
	case "TERM", "15":
		return syscall.SIGTERM
	case "INT", "2":
		return syscall.SIGINT
	case "HUP", "1":
		return syscall.SIGHUP
	case "QUIT", "3":
		return syscall.SIGQUIT
	case "USR1", "10":
		return syscall.SIGUSR1
	case "USR2", "12":
		return syscall.SIGUSR2
	}
	return nil
}

// call sees each simple command before it runs. It takes `trap action
// SIGNAL…` for itself and puts pending actions before other commands.
func (t *traps) call(_ context.Context, args []string) ([]string, error) {
	if args[0] == "trap" && len(args) > 2 && args[1] != "-p" && args[1] != "-l" {
		rest := args[:2:2]
		for _, name := range args[2:] {
			if sig := signalByName(name); sig != nil {
				t.set(sig, args[1])
			} else if name == "0" {
				rest = append(rest, "EXIT")
			} else {
				rest = append(rest, name)
			}
		}
		if len(rest) == 2 {
			return []string{"true"}, nil
		}
		return rest, nil
	}
	// The interpreter knows these names, but does not do them.
	if args[0] == "kill" || args[0] == "umask" {
		args = append([]string{ownPrefix + args[0]}, args[1:]...)
	}
	action := t.take()
	if action == "" {
		return args, nil
	}
	quoted := make([]string, len(args))
	for i, a := range args {
		q, err := syntax.Quote(a, syntax.LangBash)
		if err != nil {
			return nil, err
		}
		quoted[i] = q
	}
	return []string{"eval", action + "\n" + strings.Join(quoted, " ")}, nil
}

func (t *traps) set(sig os.Signal, action string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.signals == nil {
		t.actions = map[os.Signal]string{}
		t.signals = make(chan os.Signal, 16)
		go t.receive(t.signals)
	}
	switch action {
	case "-":
		delete(t.actions, sig)
		signal.Reset(sig)
	case "":
		delete(t.actions, sig)
		signal.Ignore(sig)
	default:
		t.actions[sig] = action
		signal.Notify(t.signals, sig)
	}
}

// receive lives as long as the process: a shell is one.
func (t *traps) receive(signals <-chan os.Signal) {
	for sig := range signals {
		t.mu.Lock()
		if t.actions[sig] != "" && len(t.pending) < cap(signals) {
			t.pending = append(t.pending, sig)
		}
		t.mu.Unlock()
		t.interrupt()
	}
}

// interrupt stops the running applet; false when there is none.
func (t *traps) interrupt() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stop == nil {
		return false
	}
	t.stop()
	return true
}

func (t *traps) take() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var actions []string
	for _, sig := range t.pending {
		actions = append(actions, t.actions[sig])
	}
	t.pending = nil
	return strings.Join(actions, "\n")
}

// interruptible gives an applet a context that a trapped signal ends.
func (t *traps) interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop = cancel
	if len(t.pending) > 0 {
		cancel()
	}
	return ctx, func() {
		cancel()
		t.mu.Lock()
		t.stop = nil
		t.mu.Unlock()
	}
}

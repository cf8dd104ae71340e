package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/skiff-project/skiff/cli/gates"
	"github.com/skiff-project/skiff/cluster"
)

// program is a component as a program of its own, on upstream's flags.
type program struct {
	name, short string
	fs          *pflag.FlagSet
	harmless    []harmless
	run         func(ctx context.Context, log *slog.Logger) error

	verbosity       int
	format          string
	version, isHelp bool
}

// harmless are upstream's flags that are accepted and change nothing here,
// with why. A flag is harmless if it tunes how upstream's own code works
// inside - how often, how many at once, what it logs of itself - and neither
// an API object nor what a client sees depends on it. A name that ends in "?"
// is a boolean, which may stand without a value.
type harmless struct{ names, why string }

// programs are the components that run by themselves.
func programs() []func() *program {
	return []func() *program{newAPIServer, newControllerManager, newScheduler, newKubelet, newKubeProxy, newRuntime}
}

// Main runs a component with args, without its name, until a signal ends it,
// and returns its exit status; ok is false when there is no component of that name.
func Main(name string, args []string) (code int, ok bool) {
	switch name {
	case "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "runtime":
	default:
		return 0, false
	}
	for _, make := range programs() {
		if p := make(); p.name == name {
			return p.main(args, os.Stdout, os.Stderr), true
		}
	}
	return 0, false
}

// Summaries are name and purpose of each component, for skiff's help.
func Summaries() [][2]string {
	var out [][2]string
	for _, make := range programs() {
		p := make()
		out = append(out, [2]string{p.name, p.short})
	}
	return out
}

// always are harmless for every component.
var always = harmless{"vmodule log-flush-frequency log-text-info-buffer-size log-json-info-buffer-size log-text-split-stream? log-json-split-stream? " +
	"show-hidden-metrics-for-version disabled-metrics allow-metric-labels allow-metric-labels-manifest contention-profiling?",
	"what a component logs and counts of its own inside"}

func newProgram(name, short string, lists ...harmless) *program {
	p := &program{name: name, short: short, fs: pflag.NewFlagSet(name, pflag.ContinueOnError)}
	p.harmless = append(lists, always)
	fs := p.fs
	fs.SortFlags = false
	fs.SetOutput(io.Discard)
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	for _, list := range p.harmless {
		for _, name := range strings.Fields(list.names) {
			name, boolean := strings.CutSuffix(name, "?")
			f := &pflag.Flag{Name: name, Value: new(anyValue), Usage: list.why, Hidden: true}
			if boolean {
				f.NoOptDefVal = "true"
			}
			fs.AddFlag(f)
		}
	}
	fs.IntVarP(&p.verbosity, "v", "v", 0, "4 and above: debug messages")
	fs.StringVar(&p.format, "logging-format", "text", "text or json")
	fs.BoolVar(&p.version, "version", false, "print the version and end")
	fs.BoolVarP(&p.isHelp, "help", "h", false, "print this and end")
	fs.Var(&gates.Gates{}, "feature-gates", "name=true or false, comma-separated: taken where upstream's default, which is what holds here, is asked for")
	p.limited("emulated-version", "", "there is one version", "", cluster.KubernetesVersion, "1.37", "kube=1.37")
	return p
}

// anyValue is a flag that takes any value.
type anyValue string

func (v *anyValue) String() string     { return string(*v) }
func (v *anyValue) Set(s string) error { *v = anyValue(s); return nil }
func (*anyValue) Type() string         { return "string" }

// limited is a flag of which only some values are there.
type limited struct {
	value   string
	allowed []string
	why     string
}

func (l *limited) String() string { return l.value }
func (l *limited) Type() string   { return "string" }

func (l *limited) Set(v string) error {
	if !slices.Contains(l.allowed, v) {
		return fmt.Errorf("not supported: %s; leave it out or give %s", l.why, alternatives(l.allowed))
	}
	l.value = v
	return nil
}

func alternatives(list []string) string {
	quoted := make([]string, len(list))
	for i, v := range list {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	return strings.Join(quoted, " or ")
}

// limited adds a flag of which only the given values are there.
func (p *program) limited(name, value, why string, allowed ...string) {
	f := &pflag.Flag{Name: name, Value: &limited{value, append(allowed, value), why}, DefValue: value,
		Usage: fmt.Sprintf("only %s: %s", alternatives(allowed), why)}
	if slices.Contains(allowed, "true") || slices.Contains(allowed, "false") {
		f.NoOptDefVal = "true"
	}
	p.fs.AddFlag(f)
}

func (p *program) main(args []string, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := p.execute(ctx, args, out, errs); err != nil {
		fmt.Fprintf(errs, "%s: %s\n", p.name, strings.TrimPrefix(err.Error(), p.name+": "))
		return 1
	}
	return 0
}

func (p *program) execute(ctx context.Context, args []string, out, errs io.Writer) error {
	if err := p.parse(args); err != nil {
		return err
	}
	switch {
	case p.isHelp:
		fmt.Fprintf(out, "Usage: skiff %s [flags]\n\n%s.\nFlags are upstream's; docs/FLAGS.md has those that are accepted and change nothing.\n\n%s",
			p.name, p.short, p.fs.FlagUsages())
		return nil
	case p.version:
		fmt.Fprintf(out, "Kubernetes %s\n", cluster.KubernetesVersion)
		return nil
	}
	level := slog.LevelInfo
	if p.verbosity >= 4 {
		level = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(errs, opts)
	if p.format == "json" {
		handler = slog.NewJSONHandler(errs, opts)
	}
	return p.run(ctx, slog.New(handler))
}

// parse reads flags; what is wrong with one names it.
func (p *program) parse(args []string) error {
	err := p.fs.Parse(args)
	var unknown *pflag.NotExistError
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		return fmt.Errorf("%s%s is not a flag this %s has: leave it out (skiff %s --help lists those it has)", dashes, name, p.name, p.name)
	case err != nil:
		return err
	case p.fs.NArg() > 0:
		return fmt.Errorf("%q: %s takes flags only", p.fs.Arg(0), p.name)
	case p.format != "text" && p.format != "json":
		return fmt.Errorf("--logging-format: %q is neither text nor json", p.format)
	}
	return nil
}

// flags are those with their values, for /flagz; of those without effect the given ones.
func (p *program) flags() map[string]string {
	flags := map[string]string{}
	p.fs.VisitAll(func(f *pflag.Flag) {
		if _, none := f.Value.(*anyValue); !none || f.Changed {
			flags[f.Name] = f.Value.String()
		}
	})
	return flags
}

// given says whether a flag was on the command line or in a configuration file.
func (p *program) given(name string) bool { return p.fs.Changed(name) }

// certificate fills in the pair of --cert-dir where no files are named: that
// folder's <name>.crt and .key if they are there, else none.
func certificate(dir, name string, cert, key *string) error {
	if (*cert == "") != (*key == "") {
		return errors.New("--tls-cert-file and --tls-private-key-file must be given together")
	}
	if *cert == "" && dir != "" {
		crt := filepath.Join(dir, name+".crt")
		if _, err := os.Stat(crt); err == nil {
			*cert, *key = crt, filepath.Join(dir, name+".key")
		}
	}
	return nil
}

// Command differential sends the same requests to Skiff's API server (on
// Skiff's etcd) and to upstream's (on etcd), each with the same flags, and
// compares what they answer: status, body, warnings. What known.txt explains
// is counted; any other difference is printed and fails the run, and so does a
// line of known.txt that explained nothing (unless only a part was asked for).
//
//	make differential FOCUS='pods create'
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/skiff-project/skiff/test/reference"
)

// options are what the user asks for; defaults are stated at the flags.
type options struct {
	skiff, use string
	focus      string
	only       string
	trace      bool
	timeout    time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.skiff, "skiff", "bin/skiff", "Skiff's binary")
	flag.StringVar(&o.use, "upstream", "", "folder of upstream's programs (default: build them)")
	flag.StringVar(&o.focus, "focus", "", "report only requests whose name matches this regular expression")
	flag.StringVar(&o.only, "only", "", "send only the requests about kinds, or groups of cases, whose name matches this regular expression")
	flag.BoolVar(&o.trace, "trace", false, "print upstream's answer to every request")
	flag.DurationVar(&o.timeout, "timeout", time.Hour, "bound of the whole run")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	err := run(ctx, o)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "differential:", err)
		os.Exit(1)
	}
}

// suite is a set of requests about one thing.
type suite struct {
	name string
	run  func(context.Context, *pair) error
}

func run(ctx context.Context, o options) (err error) {
	focus, err := regexp.Compile(o.focus)
	if err != nil {
		return fmt.Errorf("--focus: %w", err)
	}
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	known, err := parseKnown(knownText)
	if err != nil {
		return err
	}
	upstream := reference.Binaries{Dir: o.use}
	if o.use == "" {
		if upstream, err = reference.Build(ctx, reference.BuildOptions{}); err != nil {
			return err
		}
	}
	p := &pair{focus: focus, only: only, trace: o.trace, known: known, out: os.Stdout, used: map[int]int{}}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.start(ctx, o.skiff, upstream); err != nil {
		return err
	}
	for _, s := range []suite{{"kinds", builtIn}, {"custom", custom}, {"impersonation", impersonation}} {
		began, before := time.Now(), p.requests
		if err := s.run(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Printf("%s: %d requests in %s\n", s.name, p.requests-before, time.Since(began).Round(time.Second))
	}
	return p.verdict()
}

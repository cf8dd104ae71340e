package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/skiff-project/skiff/cluster"
)

// printer shows a cluster's progress to a person: one line a step, rewritten
// in place on a terminal, printed once it is known otherwise.
type printer struct {
	out      io.Writer
	terminal bool
	open     bool // a line is begun and not ended
}

func newPrinter(out *os.File) *printer {
	st, err := out.Stat()
	return &printer{out: out, terminal: err == nil && st.Mode()&os.ModeCharDevice != 0}
}

// show prints one event.
func (p *printer) show(e cluster.Event) {
	switch e.State {
	case cluster.Begun:
		p.draft(e.Step, "…")
	case cluster.Waits:
		if p.terminal {
			p.draft(e.Step, "waiting for "+e.Detail)
		} else {
			p.line(" ", e.Step, "waiting for "+e.Detail)
		}
	case cluster.Done:
		p.line("✓", e.Step, strings.TrimSpace(fmt.Sprintf("%7s  %s", short(e.Took), e.Detail)))
	case cluster.Failed:
		p.line("✗", e.Step, firstLine(e.Detail))
	}
}

func (p *printer) draft(step, text string) {
	if !p.terminal {
		return
	}
	fmt.Fprintf(p.out, "\r\x1b[K  %-20s %s", step, text)
	p.open = true
}

func (p *printer) line(mark, step, text string) {
	if p.open {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.open = false
	}
	fmt.Fprintf(p.out, "%s %-20s %s\n", mark, step, text)
}

func firstLine(s string) string {
	first, _, _ := strings.Cut(s, "\n")
	return first
}

// short writes a duration as a person would say it: 8 ms, 1.24 s.
func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

package podcert

import (
	"bufio"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what happens to the transcript")

// TestTranscript plays testdata/machine.txt. Lines that begin with ">" are what happened; the others:
//
//	# text                  begins a new machine, at 00:00
//	at 1h                   moves the clock there
//	seen | lost             the request appears to us, or disappears
//	issued 30m 1h           a signer issues it: refresh at, not after
//	denied R M | failed R M a signer refuses it
//	step                    steps the machine; a request it asks for is made at once
func TestTranscript(t *testing.T) {
	const file = "testdata/machine.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	p := &play{t: t}
	for sc := bufio.NewScanner(strings.NewReader(string(raw))); sc.Scan(); {
		if line := sc.Text(); !strings.HasPrefix(line, ">") {
			fmt.Fprintln(&out, line)
			out.WriteString(p.do(strings.Fields(line)))
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := out.String(); got != string(raw) {
		t.Errorf("transcript differs (run with -rewrite and review the diff); got:\n%s", got)
	}
}

type play struct {
	t    *testing.T
	m    machine
	now  time.Duration
	made int
	seen *certificatesv1.PodCertificateRequest
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (p *play) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p *play) do(words []string) string {
	if len(words) == 0 {
		return ""
	}
	condition := func(kind string) {
		p.seen.Status.Conditions = []metav1.Condition{{Type: kind, Status: "True", Reason: words[1], Message: words[2]}}
	}
	switch words[0] {
	case "#":
		p.m, p.now, p.made, p.seen = machine{}, 0, 0, nil
	case "at":
		p.now = p.duration(words[1])
	case "seen":
		p.seen = &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: p.m.pending.name}}
	case "lost":
		p.seen = nil
	case "denied":
		condition("Denied")
	case "failed":
		condition("Failed")
	case "issued":
		condition("Issued")
		at := func(s string) *metav1.Time { return &metav1.Time{Time: epoch.Add(p.duration(s))} }
		p.seen.Status.BeginRefreshAt, p.seen.Status.NotAfter = at(words[1]), at(words[2])
		p.seen.Status.CertificateChain = "text\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Headers: map[string]string{"k": "v"}, Bytes: []byte(p.seen.Name)}))
	case "step":
		return p.step()
	default:
		p.t.Fatalf("unknown line %q", words)
	}
	return ""
}

func (p *play) step() string {
	var b strings.Builder
	now := epoch.Add(p.now)
	o := p.m.step(now, func(name string) *certificatesv1.PodCertificateRequest {
		if p.seen != nil && p.seen.Name == name {
			return p.seen
		}
		return nil
	}, time.Minute)
	for _, e := range o.events {
		fmt.Fprintf(&b, "> event %s: %s\n", e.reason, e.message)
	}
	if o.ask {
		p.made++
		name := fmt.Sprintf("req-%d", p.made)
		p.m.asked(name, []byte("key of "+name), now, time.Minute)
		fmt.Fprintf(&b, "> ask: %s\n", name)
	}
	if o.changed {
		b.WriteString("> changed\n")
	}
	fmt.Fprintf(&b, "> %s", p.m.state(now))
	key, chain, err := p.m.bundle()
	if block, rest := pem.Decode(chain); err != nil {
		fmt.Fprintf(&b, ": %v", err)
	} else if block == nil || len(block.Headers)+len(rest) > 0 || strings.Contains(string(chain), "text") {
		p.t.Errorf("the chain is not clean: %q", chain)
	} else {
		fmt.Fprintf(&b, ": %s, certificate of %s", key, block.Bytes)
	}
	if !o.wake.IsZero() {
		fmt.Fprintf(&b, "; again at %v", o.wake.Sub(epoch).Round(time.Second))
	}
	return b.String() + "\n"
}

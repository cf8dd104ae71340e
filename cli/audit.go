package cli

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/skiff-project/skiff/apiserver/audit"
)

// auditFlags are upstream's of the audit log.
type auditFlags struct {
	policy               string
	log                  audit.LogConfig
	webhook              audit.WebhookConfig
	logMode, webhookMode string
	logTruncate          truncateFlags
	webhookTruncate      truncateFlags
}

func (f *auditFlags) add(p *program) {
	fs, l, w := p.fs, &f.log, &f.webhook
	fs.StringVar(&f.policy, "audit-policy-file", "", "what is recorded of which requests: an audit.k8s.io/v1 Policy; bodies of Secrets and tokens never are (default: nothing)")
	fs.StringVar(&l.Path, "audit-log-path", "", "file the events are written to; - is standard output (default: none)")
	fs.StringVar(&l.Format, "audit-log-format", "json", "json, or legacy: a line of text for each event")
	fs.StringVar(&f.logMode, "audit-log-mode", string(audit.ModeBlocking), "batch, blocking or blocking-strict")
	fs.IntVar(&l.Buffer, "audit-log-batch-buffer-size", 10000, "events that may wait in mode batch; more are dropped")
	fs.IntVar(&l.MaxAgeDays, "audit-log-maxage", 366, "days that files rotated away are kept; 0: for ever")
	fs.IntVar(&l.MaxBackups, "audit-log-maxbackup", 100, "how many of them are kept; 0: all")
	fs.IntVar(&l.MaxSizeMB, "audit-log-maxsize", 100, "megabytes the file may have before it is rotated; 0: any")
	fs.BoolVar(&l.Compress, "audit-log-compress", false, "compress files rotated away")
	fs.StringVar(&w.Kubeconfig, "audit-webhook-config-file", "", "kubeconfig of a server that is sent the events (default: none)")
	fs.StringVar(&f.webhookMode, "audit-webhook-mode", string(audit.ModeBatch), "batch, blocking or blocking-strict")
	fs.IntVar(&w.Buffer, "audit-webhook-batch-buffer-size", 10000, "events that may wait in mode batch; more are dropped")
	fs.IntVar(&w.BatchSize, "audit-webhook-batch-max-size", 400, "events sent at once")
	fs.DurationVar(&w.BatchWait, "audit-webhook-batch-max-wait", 30*time.Second, "how long events wait for others")
	fs.DurationVar(&w.InitialBackoff, "audit-webhook-initial-backoff", 10*time.Second, "before the second try")
	f.logTruncate.add(fs, "log")
	f.webhookTruncate.add(fs, "webhook")
	for _, backend := range []string{"log", "webhook"} {
		p.limited("audit-"+backend+"-version", "audit.k8s.io/v1", "there is no other", "audit.k8s.io/v1")
	}
}

// truncateFlags bound the events of a backend.
type truncateFlags struct {
	backend string
	enabled bool
	audit.Truncate
}

func (f *truncateFlags) add(fs *pflag.FlagSet, backend string) {
	f.backend = backend
	name := "audit-" + backend + "-truncate-"
	fs.BoolVar(&f.enabled, name+"enabled", false, "events that are too large lose the objects of request and response; those that still are too large are dropped")
	fs.Int64Var(&f.MaxEventSize, name+"max-event-size", 100<<10, "bytes of JSON that an event may have then")
	fs.Int64Var(&f.MaxBatchSize, name+"max-batch-size", 10<<20, "bytes of the events that are sent at once, or some hundreds more; a file is given each by itself")
}

// settle returns the bounds, nil for none.
func (f *truncateFlags) settle() (*audit.Truncate, error) {
	if f.MaxEventSize <= 0 {
		return nil, fmt.Errorf("invalid audit truncate %s max event size %v, must be a positive number", f.backend, f.MaxEventSize)
	}
	if f.MaxBatchSize < f.MaxEventSize {
		return nil, fmt.Errorf("invalid audit truncate %s max batch size %v, must be greater than max event size (%v)", f.backend, f.MaxBatchSize, f.MaxEventSize)
	}
	if !f.enabled {
		return nil, nil
	}
	return &f.Truncate, nil
}

// settle reads the policy.
func (f *auditFlags) settle(log *slog.Logger) (c audit.Config, err error) {
	c.Logger = log
	for flag, m := range map[string]string{"audit-log-mode": f.logMode, "audit-webhook-mode": f.webhookMode} {
		if !slices.Contains(audit.Modes(), audit.Mode(m)) {
			return c, fmt.Errorf("--%s: %q is none of %v", flag, m, audit.Modes())
		}
	}
	f.log.Mode, f.webhook.Mode = audit.Mode(f.logMode), audit.Mode(f.webhookMode)
	switch {
	case f.log.Format != "json" && f.log.Format != "legacy":
		return c, fmt.Errorf("--audit-log-format: %q is neither json nor legacy", f.log.Format)
	case min(f.log.MaxAgeDays, f.log.MaxBackups, f.log.MaxSizeMB) < 0:
		return c, fmt.Errorf("--audit-log-maxage, --audit-log-maxbackup and --audit-log-maxsize cannot be negative")
	case min(f.log.Buffer, f.webhook.Buffer, f.webhook.BatchSize) <= 0:
		return c, fmt.Errorf("--audit-*-batch-buffer-size and --audit-webhook-batch-max-size must be positive")
	}
	if f.log.Path != "" {
		c.Log = &f.log
		if c.Log.Truncate, err = f.logTruncate.settle(); err != nil {
			return c, err
		}
	}
	if f.webhook.Kubeconfig != "" {
		c.Webhook = &f.webhook
		if c.Webhook.Truncate, err = f.webhookTruncate.settle(); err != nil {
			return c, err
		}
	}
	if f.policy == "" {
		if c.Log != nil || c.Webhook != nil {
			log.Warn("without --audit-policy-file no audit events are recorded")
		}
		return c, nil
	}
	data, err := os.ReadFile(f.policy)
	if err == nil {
		c.Policy, err = audit.ParsePolicy(data)
	}
	if err != nil {
		return c, fmt.Errorf("--audit-policy-file: %w", err)
	}
	return c, nil
}

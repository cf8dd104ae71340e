package cli

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/skiff-project/skiff/cluster"
	"github.com/skiff-project/skiff/scheduler"
)

var schedulerHarmless = []harmless{
	{"pod-max-in-unschedulable-pods-duration", "pods are tried again when something changes for them"},
}

// schedulerConfig is KubeSchedulerConfiguration.
var schedulerConfig = configFile{apiVersion: "kubescheduler.config.k8s.io/v1", kind: "KubeSchedulerConfiguration", fields: `
	parallelism ~
	clientConnection.kubeconfig --kubeconfig
	clientConnection.qps --kube-api-qps
	clientConnection.burst --kube-api-burst
	clientConnection.contentType --kube-api-content-type
	clientConnection.acceptContentTypes ~
	leaderElection.leaderElect --leader-elect
	leaderElection.leaseDuration --leader-elect-lease-duration
	leaderElection.renewDeadline --leader-elect-renew-deadline
	leaderElection.retryPeriod --leader-elect-retry-period
	leaderElection.resourceLock --leader-elect-resource-lock
	leaderElection.resourceName --leader-elect-resource-name
	leaderElection.resourceNamespace --leader-elect-resource-namespace
	enableProfiling ~
	enableContentionProfiling ~
	percentageOfNodesToScore ~
	podInitialBackoffSeconds = 1
	podMaxBackoffSeconds = 10
	extenders =
	delayCacheUntilActive ~
`}

type schedulerFlags struct {
	opts   cluster.Scheduler
	common componentFlags
	config string
}

func newScheduler() *program {
	p, _ := schedulerProgram()
	return p
}

func schedulerProgram() (*program, *schedulerFlags) {
	p := newProgram("kube-scheduler", "The scheduler by itself", append(schedulerHarmless, servingHarmless, profilingHarmless)...)
	f := &schedulerFlags{}
	f.common.opts = &f.opts.Component
	p.fs.StringVar(&f.config, "config", "", "file with a KubeSchedulerConfiguration; flags win over it")
	f.common.add(p, 10259, 50, 100)
	p.run = func(ctx context.Context, log *slog.Logger) error {
		f.opts.Log, f.opts.Flags = log, p.flags()
		if err := f.settle(p); err != nil {
			return err
		}
		return f.opts.Run(ctx)
	}
	return p, f
}

func (f *schedulerFlags) settle(p *program) error {
	if f.config != "" {
		c := schedulerConfig
		c.custom = map[string]func(any) error{"profiles": f.profiles}
		if err := p.load(f.config, c); err != nil {
			return fmt.Errorf("--config: %w", err)
		}
	}
	return f.common.settle()
}

// profiles reads the list of profiles; each is the default one under a name.
func (f *schedulerFlags) profiles(v any) error {
	list, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%v is not a list", v)
	}
	for i, item := range list {
		m, ok := item.(map[string]any)
		if !ok {
			return fmt.Errorf("[%d]: %v is not a profile", i, item)
		}
		var p scheduler.Profile
		for key, v := range m {
			switch key {
			case "schedulerName":
				if p.SchedulerName, ok = v.(string); !ok {
					return fmt.Errorf("[%d].schedulerName: %v is not a string", i, v)
				}
			case "percentageOfNodesToScore": // every node is scored, always
			case "plugins", "pluginConfig":
				if !zero(v) {
					return fmt.Errorf("[%d].%s: plugins are those on by default, as they are: leave it out", i, key)
				}
			default:
				return fmt.Errorf("[%d]: unknown field %q", i, key)
			}
		}
		f.opts.Profiles = append(f.opts.Profiles, p)
	}
	return nil
}

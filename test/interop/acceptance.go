package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/skiff-project/skiff/test/reference"
)

// namespace is where the script works.
const namespace = "interop"

// acceptance is what a user does with a Deployment and a Service, and a Job.
var acceptance = []step{
	{name: "namespace", within: 30 * time.Second, run: makeNamespace},
	{name: "pages", needs: "namespace", within: 60 * time.Second, run: pages},
	{name: "watch", needs: "namespace", within: 30 * time.Second, run: watch},
	{name: "event", needs: "namespace", within: 30 * time.Second, run: leasedEvent},
	{name: "compaction", needs: "pages", within: 60 * time.Second, run: compaction},
	{name: "deploy", needs: "namespace", within: 90 * time.Second, run: deploy},
	{name: "scale", needs: "deploy", within: 60 * time.Second, run: scale},
	{name: "expose", needs: "deploy", within: 60 * time.Second, run: expose},
	{name: "roll", needs: "scale", within: 120 * time.Second, run: roll},
	{name: "connect", needs: "expose", real: true, within: 60 * time.Second, run: connect},
	{name: "logs, exec", needs: "deploy", real: true, within: 30 * time.Second, run: logsAndExec},
	{name: "job", needs: "deploy", within: 60 * time.Second, run: job},
	{name: "delete", needs: "namespace", within: 120 * time.Second, run: remove},
}

// kubectl runs the cell's client with input, and returns what it prints.
func (s *session) kubectl(ctx context.Context, input string, args ...string) (string, error) {
	cmd := s.cluster.Command(ctx, s.cell.kubectl[0], append(append([]string{}, s.cell.kubectl[1:]...), args...)...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// in is kubectl in the script's namespace.
func (s *session) in(ctx context.Context, args ...string) (string, error) {
	return s.kubectl(ctx, "", append([]string{"--namespace=" + namespace}, args...)...)
}

// until repeats check until it succeeds or ctx ends; the error is the last.
func until(ctx context.Context, check func(context.Context) error) error {
	last := errors.New("never asked")
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("still so after the time this step has: %w", last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// shows waits until kubectl prints want.
func (s *session) shows(ctx context.Context, want string, args ...string) error {
	return until(ctx, func(ctx context.Context) error {
		got, err := s.in(ctx, args...)
		if err != nil {
			return err
		}
		if strings.TrimSpace(got) != want {
			return fmt.Errorf("kubectl %s: %q, want %q%s", strings.Join(args, " "), strings.TrimSpace(got), want, s.newest(ctx))
		}
		return nil
	})
}

// newest is the last events, for an error.
func (s *session) newest(ctx context.Context) string {
	out, err := s.in(ctx, "get", "events", "--sort-by=.lastTimestamp", "-o=custom-columns=O:.involvedObject.name,R:.reason,M:.message", "--no-headers")
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return "; last events:\n" + strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// makeNamespace also waits for what pods need in it. Where nobody makes
// service accounts, pods are not part of the script.
func makeNamespace(ctx context.Context, s *session) error {
	if _, err := s.kubectl(ctx, "", "create", "namespace", namespace); err != nil {
		return err
	}
	if s.options.ControllerManager.Path == "" {
		return nil
	}
	return s.shows(ctx, "default kube-root-ca.crt", "get", "serviceaccount/default", "configmap/kube-root-ca.crt", "-o=jsonpath={.items[*].metadata.name}")
}

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        image: ` + reference.SkiffImage + `
        command: [web, --port, "8080"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {periodSeconds: 1, httpGet: {path: /healthz, port: http}}
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
`

func deploy(ctx context.Context, s *session) error {
	if _, err := s.kubectl(ctx, deployment, "--namespace="+namespace, "apply", "-f", "-"); err != nil {
		return err
	}
	return s.available(ctx, 2)
}

// available waits until the Deployment is, with n pods of its newest template.
func (s *session) available(ctx context.Context, n int) error {
	return s.shows(ctx, fmt.Sprintf("%d %d %d", n, n, n), "get", "deployment", "web", "-o=jsonpath={.status.replicas} {.status.updatedReplicas} {.status.availableReplicas}")
}

func scale(ctx context.Context, s *session) error {
	if _, err := s.in(ctx, "scale", "deployment", "web", "--replicas=4"); err != nil {
		return err
	}
	return s.available(ctx, 4)
}

func roll(ctx context.Context, s *session) error {
	if _, err := s.in(ctx, "set", "image", "deployment/web", "web="+reference.NextImage); err != nil {
		return err
	}
	if _, err := s.in(ctx, "rollout", "status", "deployment/web", "--timeout=110s"); err != nil {
		return fmt.Errorf("%w%s", err, s.newest(ctx))
	}
	if err := s.available(ctx, 4); err != nil {
		return err
	}
	// Pods of the old template end in their own time.
	return s.shows(ctx, strings.TrimSpace(strings.Repeat(reference.NextImage+" ", 4)), "get", "pods", "-l", "app=web", "-o=jsonpath={.items[*].spec.containers[0].image}")
}

func expose(ctx context.Context, s *session) error {
	if _, err := s.in(ctx, "expose", "deployment", "web", "--port=80", "--target-port=http"); err != nil {
		return err
	}
	return until(ctx, func(ctx context.Context) error {
		pods, err := s.in(ctx, "get", "pods", "-l", "app=web", "-o=jsonpath={.items[*].metadata.name}")
		if err != nil {
			return err
		}
		ready, err := s.in(ctx, "get", "endpointslices", "-l", "kubernetes.io/service-name=web", "-o=jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].targetRef.name}")
		if err != nil {
			return err
		}
		if a, b := len(strings.Fields(pods)), len(strings.Fields(ready)); a != b || a == 0 {
			return fmt.Errorf("%d pods, but %d ready endpoints", a, b)
		}
		return nil
	})
}

// connect reaches the Service from the node and from a pod.
func connect(ctx context.Context, s *session) error {
	ip, err := s.in(ctx, "get", "service", "web", "-o=jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	url := "http://" + ip + "/"
	err = until(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		cmd := s.cluster.Command(ctx, s.p.skiff, "wget", "-q", "-O", "-", url)
		return s.run(cmd, "web-")
	})
	if err != nil {
		return fmt.Errorf("from the node: %w", err)
	}
	return until(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		out, err := s.in(ctx, "exec", "deploy/web", "--", "wget", "-q", "-O", "-", url)
		if err != nil {
			return fmt.Errorf("from a pod: %w", err)
		}
		return contains(out, "web-")
	})
}

// run runs a command where the components are; its output must contain want.
func (s *session) run(cmd *exec.Cmd, want string) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	if err := s.cluster.Run(cmd); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(out.String()))
	}
	return contains(out.String(), want)
}

func contains(got, want string) error {
	if !strings.Contains(got, want) {
		return fmt.Errorf("the answer is %q, want one with %q", got, want)
	}
	return nil
}

func logsAndExec(ctx context.Context, s *session) error {
	out, err := s.in(ctx, "exec", "deploy/web", "--", "sh", "-c", "echo out of $POD_NAME; echo to the log > /proc/1/fd/1")
	if err != nil {
		return err
	}
	if err := contains(out, "out of web-"); err != nil {
		return err
	}
	return until(ctx, func(ctx context.Context) error {
		out, err := s.in(ctx, "logs", "-l", "app=web", "--tail=-1")
		if err != nil {
			return err
		}
		return contains(out, "to the log")
	})
}

func job(ctx context.Context, s *session) error {
	if _, err := s.in(ctx, "create", "job", "once", "--image="+reference.SkiffImage, "--", "true"); err != nil {
		return err
	}
	return s.shows(ctx, "1", "get", "job", "once", "-o=jsonpath={.status.succeeded}")
}

// remove deletes the Deployment, which takes its pods along, then the
// namespace, which takes the rest.
func remove(ctx context.Context, s *session) error {
	if s.options.ControllerManager.Path == "" {
		return nil
	}
	if _, err := s.in(ctx, "delete", "deployment", "web", "--ignore-not-found"); err != nil {
		return err
	}
	if err := s.shows(ctx, "", "get", "pods", "-l", "app=web", "-o=name"); err != nil {
		return err
	}
	_, err := s.kubectl(ctx, "", "delete", "namespace", namespace)
	return err
}

// list is what the script reads of a LIST.
type list struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
		Continue        string `json:"continue"`
	} `json:"metadata"`
	Items []struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
	} `json:"items"`
}

// list asks for a path of the API, which answers with a list.
func (s *session) list(ctx context.Context, path string) (l list, err error) {
	out, err := s.kubectl(ctx, "", "get", "--raw", path)
	if err != nil {
		return l, err
	}
	return l, json.Unmarshal([]byte(out), &l)
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skiff-project/skiff/test/reference"
)

// moving takes one etcd's data from one API server to the other and back.
func moving(to, back side) []step {
	return []step{
		{name: "write", within: 60 * time.Second, run: write},
		{name: "move", needs: "write", within: 90 * time.Second, run: moveTo(to.program("kube-apiserver"))},
		{name: "same objects", needs: "move", within: 60 * time.Second, run: sameObjects},
		{name: "node port", needs: "same objects", within: 30 * time.Second, run: nodePortNoted},
		{name: "update", needs: "move", within: 60 * time.Second, run: updateAll},
		{name: "move back", needs: "update", within: 90 * time.Second, run: moveTo(back.program("kube-apiserver"))},
		{name: "same again", needs: "move back", within: 60 * time.Second, run: sameObjects},
		{name: "node port again", needs: "same again", within: 30 * time.Second, run: nodePortNoted},
	}
}

// kinds are what is written and read back.
var kinds = strings.Join([]string{
	"configmaps", "secrets", "services", "serviceaccounts", "pods", "persistentvolumeclaims", "resourcequotas", "limitranges", "podtemplates",
	"deployments.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch", "cronjobs.batch", "poddisruptionbudgets.policy",
	"horizontalpodautoscalers.autoscaling", "networkpolicies.networking.k8s.io", "ingresses.networking.k8s.io",
	"roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io", "leases.coordination.k8s.io", "endpointslices.discovery.k8s.io",
}, ",")

const template = `{metadata: {labels: {app: moved}}, spec: {containers: [{name: c, image: "i:1", ports: [{containerPort: 80}], resources: {requests: {cpu: 100m, memory: 16Mi}}}]}}`

const objects = `
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: moved}, data: {text: "ü\n"}, binaryData: {bytes: AAEC}}
---
{apiVersion: v1, kind: Secret, metadata: {name: moved}, type: Opaque, stringData: {password: secret}}
---
{apiVersion: v1, kind: Service, metadata: {name: moved}, spec: {type: NodePort, selector: {app: moved}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: moved}, spec: {containers: [{name: c, image: "i:1"}], nodeSelector: {none: such}}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: moved}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}
---
{apiVersion: v1, kind: ResourceQuota, metadata: {name: moved}, spec: {hard: {configmaps: "100"}}}
---
{apiVersion: v1, kind: LimitRange, metadata: {name: moved}, spec: {limits: [{type: Container, default: {memory: 64Mi}}]}}
---
{apiVersion: v1, kind: PodTemplate, metadata: {name: moved}, template: ` + template + `}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: moved}, spec: {selector: {matchLabels: {app: moved}}, template: ` + template + `}}
---
{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: moved}, spec: {serviceName: moved, selector: {matchLabels: {app: moved}}, template: ` + template + `}}
---
{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: moved}, spec: {selector: {matchLabels: {app: moved}}, template: ` + template + `}}
---
{apiVersion: batch/v1, kind: Job, metadata: {name: moved}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: moved}, spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "i:1"}]}}}}}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: moved}, spec: {minAvailable: 1, selector: {matchLabels: {app: moved}}}}
---
{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: moved}, spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: moved}, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: moved}, spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: moved}, spec: {defaultBackend: {service: {name: moved, port: {number: 80}}}}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: moved}, rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: moved}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: moved}, subjects: [{kind: User, name: jane, apiGroup: rbac.authorization.k8s.io}]}
---
{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: moved}, spec: {holderIdentity: me, leaseDurationSeconds: 15, renewTime: "2026-01-02T03:04:05.678901Z"}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: moved}, addressType: IPv4, endpoints: [{addresses: [10.1.2.3]}], ports: [{name: http, port: 80}]}
`

func write(ctx context.Context, s *session) error {
	if _, err := s.kubectl(ctx, "", "create", "namespace", namespace); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, objects, "--namespace="+namespace, "create", "-f", "-"); err != nil {
		return err
	}
	return s.remember(ctx)
}

// remember keeps what is served now.
func (s *session) remember(ctx context.Context) (err error) {
	s.memory["objects"], err = s.in(ctx, "get", kinds, "-o=json", "--show-managed-fields")
	return err
}

func moveTo(p reference.Program) func(context.Context, *session) error {
	return func(ctx context.Context, s *session) error { return s.cluster.Replace(ctx, "kube-apiserver", p) }
}

// sameObjects compares what is served now with what was remembered, to the
// last field.
func sameObjects(ctx context.Context, s *session) error {
	before, err := parse(s.memory["objects"])
	if err != nil {
		return err
	}
	out, err := s.in(ctx, "get", kinds, "-o=json", "--show-managed-fields")
	if err != nil {
		return err
	}
	after, err := parse(out)
	if err != nil {
		return err
	}
	if len(before) < 20 {
		return fmt.Errorf("only %d objects were written", len(before))
	}
	var bad []string
	for key, want := range before {
		if got, ok := after[key]; !ok {
			bad = append(bad, key+" is gone")
		} else if got != want {
			bad = append(bad, key+" differs: "+difference(want, got))
		}
	}
	for key := range after {
		if _, ok := before[key]; !ok {
			bad = append(bad, key+" is new")
		}
	}
	if len(bad) > 0 {
		slices.Sort(bad)
		return fmt.Errorf("%d of %d objects:\n%s", len(bad), len(before), strings.Join(bad, "\n"))
	}
	return nil
}

// nodePortNoted tells whether the server found the node port of a Service noted
// where the server before put it: else it would have said so when it started.
func nodePortNoted(ctx context.Context, s *session) error {
	port, err := s.in(ctx, "get", "service", "moved", "-o=jsonpath={.spec.ports[0].nodePort}")
	if err != nil {
		return err
	}
	if _, err := s.in(ctx, "create", "service", "nodeport", "second", "--tcp=80", "--node-port="+port); err == nil || !strings.Contains(err.Error(), "provided port is already allocated") {
		return fmt.Errorf("a second Service with port %s: %v", port, err)
	}
	events, err := s.in(ctx, "get", "events", "--field-selector=reason=PortNotAllocated", "-o=jsonpath={.items[*].message}")
	if events != "" {
		return fmt.Errorf("events: %s", events)
	}
	return err
}

// parse returns a list's objects by kind and name, as JSON with sorted keys.
func parse(text string) (map[string]string, error) {
	var l struct{ Items []map[string]any }
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, item := range l.Items {
		data, err := json.Marshal(item)
		if err != nil {
			return nil, err
		}
		meta, _ := item["metadata"].(map[string]any)
		out[fmt.Sprint(item["kind"], "/", meta["name"])] = string(data)
	}
	return out, nil
}

// difference shows two texts around the first byte they differ in.
func difference(want, got string) string {
	i := 0
	for i < len(want) && i < len(got) && want[i] == got[i] {
		i++
	}
	from := max(0, i-40)
	return fmt.Sprintf("…%s, was …%s", got[from:min(len(got), i+60)], want[from:min(len(want), i+60)])
}

// updateAll changes every object through the API server it moved to.
func updateAll(ctx context.Context, s *session) error {
	if _, err := s.in(ctx, "annotate", kinds, "--all", "moved=yes"); err != nil {
		return err
	}
	if err := s.remember(ctx); err != nil {
		return err
	}
	if n := strings.Count(s.memory["objects"], `"moved": "yes"`); n < 20 {
		return fmt.Errorf("only %d objects were changed", n)
	}
	return nil
}

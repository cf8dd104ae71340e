//go:build linux

package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
)

var extendSuite = suite{
	name: "extend", limit: 15 * time.Minute, run: runExtend,
	about: "What extending the API costs: small structural CustomResourceDefinitions installed 20 at a time until each is Established and the last one's objects are served; custom resources in JSON; " +
		"and what a ConfigMap's creation costs more with one validating webhook (answered by the client's own process) or one ValidatingAdmissionPolicy that looks at it. " +
		"The definitions are on a cluster of their own. Memory is measured in the first round, as the least it is at rest; \"memory of one\" is more than with none.",
	budgets: map[string]string{"1,000 definitions, installed in": "10 s", "1,000 definitions: memory of one": "0.3 MB"},
}

const (
	definitionsPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	objectsPath     = "/apis/bench.example.com/v1/namespaces/default/things0"
	admissionPath   = "/apis/admissionregistration.k8s.io/v1/"
)

func runExtend(ctx context.Context, r *round) error {
	type part = func(context.Context, *cluster, []*wire) error
	for _, list := range [][]part{{r.admission}, {r.definitions, r.customResources}} {
		err := r.with(ctx, parts{fresh: true}, func(c *cluster) error {
			wires, err := c.dial(4)
			if err != nil {
				return err
			}
			defer hangUp(wires)
			for _, do := range list {
				if err := do(ctx, c, wires); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// definitions installs 100 definitions and then 900 more.
func (r *round) definitions(ctx context.Context, c *cluster, wires []*wire) error {
	before, err := r.rested(ctx, 20*time.Second)
	if err != nil {
		return err
	}
	if r.Round == 0 {
		r.figure("0 definitions: memory", "MB", before)
	}
	for _, step := range [][2]int{{0, 100}, {100, 1000}} {
		list, began := servers(), time.Now()
		cpu := running(list)
		load := load{workers: clients, count: step[1] - step[0]}
		if _, _, err := load.do(ctx, func(ctx context.Context, w, i int) error {
			return wires[w%len(wires)].do(ctx, "POST", definitionsPath, jsonType, jsonType, definition(step[0]+i))
		}); err != nil {
			return err
		}
		if err := c.established(ctx, step[1]); err != nil {
			return err
		}
		prefix := number(float64(step[1])) + " definitions"
		r.figure(prefix+", installed in", "s", time.Since(began).Seconds())
		r.figure(prefix+": server CPU of one", "ms", (running(list)-cpu).Seconds()*1000/float64(step[1]-step[0]))
		if r.Round > 0 {
			continue
		}
		after, err := r.rested(ctx, 130*time.Second)
		if err != nil {
			return err
		}
		r.figure(prefix+": memory", "MB", after)
		if step[1] == 1000 {
			r.figure(prefix+": memory of one", "MB", (after-before)/1000)
		}
	}
	return nil
}

// established waits until the last of n definitions is served, and then for all to be established.
func (c *cluster) established(ctx context.Context, n int) error {
	get := func(path string) *rest.Request {
		return c.client.RESTClient().Get().AbsPath(path).SetHeader("Accept", jsonType)
	}
	return within(ctx, 5*time.Minute, fmt.Sprintf("%d definitions", n), func(ctx context.Context) error {
		if err := get(fmt.Sprintf("/apis/bench.example.com/v1/things%d", n-1)).Do(ctx).Error(); err != nil {
			return err
		}
		data, err := get(definitionsPath).Do(ctx).Raw()
		if err != nil {
			return err
		}
		var list struct {
			Items []struct {
				Status struct {
					Conditions []struct{ Type, Status string }
				}
			}
		}
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		have := 0
		for _, d := range list.Items {
			for _, cond := range d.Status.Conditions {
				if cond.Type == "Established" && cond.Status == "True" {
					have++
				}
			}
		}
		if have < n {
			return fmt.Errorf("%d are established", have)
		}
		return nil
	})
}

func definition(i int) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"things%[1]d.bench.example.com"},
"spec":{"group":"bench.example.com","scope":"Namespaced","names":{"plural":"things%[1]d","singular":"thing%[1]d","kind":"Thing%[1]d","listKind":"Thing%[1]dList"},
"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{}},"additionalPrinterColumns":[{"name":"Size","type":"integer","jsonPath":".spec.size"}],
"schema":{"openAPIV3Schema":{"type":"object","properties":{
"spec":{"type":"object","required":["size"],"x-kubernetes-validations":[{"rule":"self.size <= self.limit"}],"properties":{
"size":{"type":"integer","minimum":0},"limit":{"type":"integer","default":100},"name":{"type":"string","maxLength":64,"pattern":"^[a-z]*$"},
"parts":{"type":"array","maxItems":16,"items":{"type":"object","properties":{"key":{"type":"string"},"value":{"type":"string"}}}}}},
"status":{"type":"object","properties":{"phase":{"type":"string"}}}}}}}]}}`, i)
}

// customResources are of the first definition.
func (r *round) customResources(ctx context.Context, c *cluster, wires []*wire) error {
	const count = 2000
	body := func(name string) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"bench.example.com/v1","kind":"Thing0","metadata":{"name":%q,"labels":{"app":"web"}},"spec":{"size":3,"name":"abc","parts":[{"key":"a","value":"1"},{"key":"b","value":"2"}]}}`, name)
	}
	err := r.measure(ctx, "custom resource create", load{workers: clients, count: count}, func(ctx context.Context, w, i int) error {
		return wires[w%len(wires)].do(ctx, "POST", objectsPath, jsonType, jsonType, body(fmt.Sprintf("thing-%d", i)))
	})
	if err != nil {
		return err
	}
	err = r.measure(ctx, "custom resource GET", load{workers: clients, span: 2 * time.Second}, func(ctx context.Context, w, i int) error {
		return wires[w%len(wires)].do(ctx, "GET", fmt.Sprintf("%s/thing-%d", objectsPath, i*7919%count), jsonType, "", nil)
	})
	if err != nil {
		return err
	}
	err = r.measure(ctx, "LIST of 2,000 custom resources", load{workers: 1, count: 4}, func(ctx context.Context, _, _ int) error {
		return wires[0].do(ctx, "GET", objectsPath, jsonType, "", nil)
	})
	if err != nil {
		return err
	}
	return r.watchCustomResource(ctx, wires)
}

// watchCustomResource measures changes of one object on their way to 100 watchers.
func (r *round) watchCustomResource(ctx context.Context, wires []*wire) error {
	const watchers, events = 100, 100
	group, ctx := errgroup.WithContext(ctx)
	for i := range watchers {
		body, err := wires[i%len(wires)].open(ctx, "GET", objectsPath+"?watch=true&fieldSelector=metadata.name%3Dthing-0", jsonType, "", nil)
		if err != nil {
			return err
		}
		defer body.Close()
		group.Go(func() error { // the object as it is, and then the events
			dec := json.NewDecoder(body)
			for range events + 1 {
				if err := dec.Decode(&json.RawMessage{}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	list, began := servers(), time.Now()
	before := running(list)
	for i := range events {
		if err := wires[0].do(ctx, "PATCH", objectsPath+"/thing-0", jsonType, mergePatch, fmt.Appendf(nil, `{"spec":{"size":%d}}`, i%50)); err != nil {
			return err
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	r.perOperation("event of a custom resource to one of 100 watchers", running(list)-before, watchers*events, time.Since(began))
	return nil
}

// admission measures a write without and with somebody who looks at it.
func (r *round) admission(ctx context.Context, c *cluster, wires []*wire) error {
	hook := httptest.NewTLSServer(http.HandlerFunc(allow))
	defer hook.Close()
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw})
	names := 0
	creates := func(name string) error {
		prefix := fmt.Sprintf("map-%d", names)
		names++
		return r.measure(ctx, "ConfigMap create, "+name, load{workers: clients, count: 1000}, func(ctx context.Context, w, i int) error {
			return wires[w%len(wires)].do(ctx, "POST", "/api/v1/namespaces/default/configmaps", jsonType, jsonType,
				fmt.Appendf(nil, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s-%d"},"data":{"key":"value"}}`, prefix, i))
		})
	}
	const rule = `[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["configmaps"]}]`
	for _, step := range []struct {
		name          string
		kinds, bodies []string
	}{
		{"nobody looking", nil, nil},
		{"one policy", []string{"validatingadmissionpolicies", "validatingadmissionpolicybindings"}, []string{
			`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"bench"},"spec":{"failurePolicy":"Fail","matchConstraints":{"resourceRules":` + rule + `},"validations":[{"expression":"!has(object.data) || size(object.data) < 50"}]}}`,
			`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicyBinding","metadata":{"name":"bench"},"spec":{"policyName":"bench","validationActions":["Deny"]}}`,
		}},
		{"one webhook", []string{"validatingwebhookconfigurations"}, []string{
			fmt.Sprintf(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingWebhookConfiguration","metadata":{"name":"bench"},"webhooks":[{"name":"bench.example.com","clientConfig":{"url":%q,"caBundle":%s},"rules":%s,"sideEffects":"None","admissionReviewVersions":["v1"]}]}`,
				hook.URL, mustJSON(bundle), rule),
		}},
	} {
		for i, kind := range step.kinds {
			if err := wires[0].do(ctx, "POST", admissionPath+kind, jsonType, jsonType, []byte(step.bodies[i])); err != nil {
				return err
			}
		}
		if len(step.kinds) > 0 {
			if err := sleep(ctx, 5*time.Second); err != nil { // upstream's server takes a moment to see them
				return err
			}
		}
		if err := creates(step.name); err != nil {
			return err
		}
		for _, kind := range step.kinds {
			if err := wires[0].do(ctx, "DELETE", admissionPath+kind+"/bench", jsonType, "", nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // of bytes it cannot fail
	}
	return data
}

// allow is a webhook that agrees.
func allow(w http.ResponseWriter, req *http.Request) {
	var review struct {
		Request struct {
			UID string `json:"uid"`
		} `json:"request"`
	}
	if data, err := io.ReadAll(req.Body); err != nil || json.Unmarshal(data, &review) != nil {
		http.Error(w, "no review", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", jsonType)
	fmt.Fprintf(w, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":%q,"allowed":true}}`, review.Request.UID)
}

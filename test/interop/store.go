package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// store is what an API server wants of its etcd, with nothing else around.
// The API server must be started with --event-ttl=20s.
var store = []step{
	{name: "namespace", within: 30 * time.Second, run: makeNamespace},
	{name: "pages", needs: "namespace", within: 60 * time.Second, run: pages},
	{name: "watch", needs: "namespace", within: 30 * time.Second, run: watch},
	{name: "conflict", needs: "namespace", within: 30 * time.Second, run: conflict},
	{name: "event", needs: "namespace", within: 30 * time.Second, run: leasedEvent},
	{name: "expiry", needs: "event", within: 120 * time.Second, run: expiry},
	{name: "compaction", needs: "pages", within: 60 * time.Second, run: compaction},
	{name: "restart", needs: "pages", within: 60 * time.Second, run: restart},
	{name: "after restart", needs: "restart", within: 30 * time.Second, run: watch},
}

const configMaps = "/api/v1/namespaces/" + namespace + "/configmaps"

// pages creates 25 ConfigMaps and reads them seven at a time: each once, all
// from one moment.
func pages(ctx context.Context, s *session) error {
	var manifests strings.Builder
	for i := range 25 {
		fmt.Fprintf(&manifests, "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: page-%02d, labels: {pages: \"yes\"}}\ndata: {n: \"%d\"}\n", i, i)
	}
	if _, err := s.kubectl(ctx, manifests.String(), "--namespace="+namespace, "create", "-f", "-"); err != nil {
		return err
	}
	first, err := s.list(ctx, configMaps+"?limit=7&labelSelector=pages")
	if err != nil {
		return err
	}
	s.memory["continue"], s.memory["revision"] = first.Metadata.Continue, first.Metadata.ResourceVersion
	var names []string
	for page := first; ; {
		for _, item := range page.Items {
			names = append(names, item.Metadata.Name)
		}
		if page.Metadata.Continue == "" {
			break
		}
		if len(page.Items) != 7 {
			return fmt.Errorf("a page of %d, want 7", len(page.Items))
		}
		if page, err = s.list(ctx, configMaps+"?limit=7&labelSelector=pages&continue="+url.QueryEscape(page.Metadata.Continue)); err != nil {
			return err
		}
		if page.Metadata.ResourceVersion != first.Metadata.ResourceVersion {
			return fmt.Errorf("pages are from revisions %s and %s", first.Metadata.ResourceVersion, page.Metadata.ResourceVersion)
		}
	}
	for i, name := range names {
		if name != fmt.Sprintf("page-%02d", i) {
			return fmt.Errorf("pages hold %v", names)
		}
	}
	if len(names) != 25 {
		return fmt.Errorf("pages hold %d objects, want 25", len(names))
	}
	return nil
}

// watch makes three changes and then watches from before them.
func watch(ctx context.Context, s *session) error {
	before, err := s.list(ctx, configMaps)
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"create", "configmap", "watched", "--from-literal=a=1"},
		{"patch", "configmap", "watched", "-p", `{"data":{"a":"2"}}`},
		{"delete", "configmap", "watched"},
	} {
		if _, err := s.in(ctx, args...); err != nil {
			return err
		}
	}
	out, err := s.kubectl(ctx, "", "get", "--raw", configMaps+"?watch=1&timeoutSeconds=2&fieldSelector=metadata.name%3Dwatched&resourceVersion="+before.Metadata.ResourceVersion)
	if err != nil {
		return err
	}
	var got []string
	for line := range strings.Lines(out) {
		var e struct {
			Type   string
			Object struct {
				Data     map[string]string
				Metadata struct{ ResourceVersion string }
			}
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return fmt.Errorf("watch sent %q: %w", line, err)
		}
		got = append(got, e.Type+" "+e.Object.Data["a"])
	}
	if want := "ADDED 1, MODIFIED 2, DELETED 2"; strings.Join(got, ", ") != want {
		return fmt.Errorf("watch sent %v, want %s", got, want)
	}
	return nil
}

// conflict updates from an old version.
func conflict(ctx context.Context, s *session) error {
	old, err := s.in(ctx, "get", "configmap", "page-00", "-o=json")
	if err != nil {
		return err
	}
	if _, err := s.in(ctx, "label", "configmap", "page-00", "newer=yes"); err != nil {
		return err
	}
	_, err = s.kubectl(ctx, old, "--namespace="+namespace, "replace", "-f", "-")
	if err == nil {
		return errors.New("an update from an old version was accepted")
	}
	return contains(err.Error(), "the object has been modified")
}

// etcdctl runs upstream's against the cell's store.
func (s *session) etcdctl(ctx context.Context, args ...string) (string, error) {
	cmd := s.cluster.Command(ctx, s.p.upstream.Path("etcdctl"), append(s.cluster.EtcdctlArgs(), args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("etcdctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

const eventManifest = `
apiVersion: v1
kind: Event
metadata: {name: interop}
type: Normal
reason: Interop
message: bound to a lease
involvedObject: {kind: Namespace, name: ` + namespace + `, namespace: ` + namespace + `}
`

// leasedEvent looks for the lease an Event is bound to in the store.
func leasedEvent(ctx context.Context, s *session) error {
	if _, err := s.kubectl(ctx, eventManifest, "--namespace="+namespace, "create", "-f", "-"); err != nil {
		return err
	}
	// With the value: etcd leaves leases out of answers without.
	out, err := s.etcdctl(ctx, "get", "/registry/events/"+namespace+"/interop", "-w=json")
	if err != nil {
		return err
	}
	var got struct{ Kvs []struct{ Lease int64 } }
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		return err
	}
	if len(got.Kvs) != 1 || got.Kvs[0].Lease == 0 {
		return fmt.Errorf("the event is stored without a lease: %s", out)
	}
	out, err = s.etcdctl(ctx, "lease", "timetolive", strconv.FormatInt(got.Kvs[0].Lease, 16), "--keys")
	if err != nil {
		return err
	}
	return contains(out, "/registry/events/"+namespace+"/interop")
}

// expiry waits until the Event is gone, and a watcher told.
func expiry(ctx context.Context, s *session) error {
	return s.shows(ctx, "", "get", "events", "--field-selector=metadata.name=interop", "-o=name")
}

// compaction forgets the store's history under the API server: what is left
// is served, and what is gone is refused as upstream refuses it.
func compaction(ctx context.Context, s *session) error {
	for range 3 {
		if _, err := s.in(ctx, "label", "configmap", "page-24", "--overwrite", "turn="+strconv.FormatInt(time.Now().UnixNano(), 36)); err != nil {
			return err
		}
	}
	out, err := s.etcdctl(ctx, "get", "/registry/", "--limit=1", "--keys-only", "-w=json")
	if err != nil {
		return err
	}
	var head struct{ Header struct{ Revision int64 } }
	if err := json.Unmarshal([]byte(out), &head); err != nil {
		return err
	}
	if _, err := s.etcdctl(ctx, "compact", "--physical", strconv.FormatInt(head.Header.Revision, 10)); err != nil {
		return err
	}
	if _, err := s.etcdctl(ctx, "get", "/registry/", "--limit=1", "--rev="+s.memory["revision"]); err == nil || !strings.Contains(err.Error(), "required revision has been compacted") {
		return fmt.Errorf("the store still answers for a compacted revision: %v", err)
	}
	// The API server may still have the moment of the first page; if not it
	// says so with a status of its own.
	_, err = s.list(ctx, configMaps+"?limit=7&labelSelector=pages&continue="+url.QueryEscape(s.memory["continue"]))
	if err != nil && !strings.Contains(err.Error(), "too old") && !strings.Contains(err.Error(), "Expired") {
		return fmt.Errorf("a page of the past: %w", err)
	}
	all, err := s.list(ctx, configMaps+"?labelSelector=pages")
	if err != nil {
		return err
	}
	if len(all.Items) != 25 {
		return fmt.Errorf("%d objects after the compaction, want 25", len(all.Items))
	}
	return watch(ctx, s)
}

// restart ends the store hard; the API server finds it again.
func restart(ctx context.Context, s *session) error {
	if err := s.cluster.Replace(ctx, "etcd", s.options.Etcd); err != nil {
		return err
	}
	return until(ctx, func(ctx context.Context) error {
		all, err := s.list(ctx, configMaps+"?labelSelector=pages")
		if err == nil && len(all.Items) != 25 {
			err = fmt.Errorf("%d objects after the restart, want 25", len(all.Items))
		}
		return err
	})
}

package aggregator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientdiscovery "k8s.io/client-go/discovery"

	"github.com/skiff-project/skiff/api/apiregistration"
	"github.com/skiff-project/skiff/apiserver/discovery"
	"github.com/skiff-project/skiff/object/codec"
)

// How often what a server has is asked for, and after a failure.
const (
	discoveryRefresh = time.Minute
	discoveryRetry   = 500 * time.Millisecond
)

// Groups are the groups this server has itself, with the aggregated ones among them.
func (a *Aggregator) Groups(own discovery.Groups) discovery.Groups {
	remotes := a.table()
	if len(remotes) == 0 {
		return own
	}
	versions := map[string][]discovery.Version{}
	for _, r := range remotes {
		s := &r.spec
		versions[s.Group] = append(versions[s.Group], discovery.Version{
			Name: s.Version, Priority: apiregistration.Priority{Group: s.GroupPriorityMinimum, Version: s.VersionPriority}, Remote: r.found.Load(),
		})
	}
	return own.With(versions)
}

// keepDiscovery keeps what the server says it has, or that it could not be asked.
func (r *remote) keepDiscovery(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		found, err := r.discover(ctx)
		if ctx.Err() != nil {
			return
		}
		next := discoveryRefresh
		if err != nil {
			r.etag = ""
			found = &apidiscoveryv2.APIVersionDiscovery{Version: r.spec.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessStale}
			next = backoff(discoveryRetry, discoveryRefresh, failures)
			failures++
			r.a.Log.Debug("the discovery document of an APIService cannot be had", "apiservice", r.name, "error", err)
		} else {
			failures = 0
		}
		r.found.Store(found)
		r.a.wait(ctx, r.changed.discovery, next)
	}
}

// discover asks for the aggregated document and, of a server that has none, for the plain one.
func (r *remote) discover(ctx context.Context) (*apidiscoveryv2.APIVersionDiscovery, error) {
	header := http.Header{"Accept": {clientdiscovery.AcceptV2}}
	if r.etag != "" {
		header.Set("If-None-Match", r.etag)
	}
	resp, data, err := r.read(ctx, "/apis", header, "system:kube-aggregator", "system:masters")
	if err != nil {
		return nil, err
	}
	gvk := apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList")
	aggregated, _ := clientdiscovery.ContentTypeIsGVK(resp.Header.Get("Content-Type"), gvk)
	switch {
	case resp.StatusCode == http.StatusNotModified && r.etag != "":
		return r.found.Load(), nil
	case resp.StatusCode == http.StatusServiceUnavailable:
		return nil, errors.New("the server says that it is unavailable")
	case resp.StatusCode != http.StatusOK || !aggregated:
		r.etag = ""
		return r.discoverPlain(ctx)
	}
	var list apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	r.etag = resp.Header.Get("Etag")
	return r.pick(&list), nil
}

// pick takes the remote's version out of a document.
func (r *remote) pick(list *apidiscoveryv2.APIGroupDiscoveryList) *apidiscoveryv2.APIVersionDiscovery {
	out := &apidiscoveryv2.APIVersionDiscovery{Version: r.spec.Version}
	for i := range list.Items {
		for j := range list.Items[i].Versions {
			if v := &list.Items[i].Versions[j]; list.Items[i].Name == r.spec.Group && v.Version == r.spec.Version {
				out = v.DeepCopy()
			}
		}
	}
	out.Freshness = apidiscoveryv2.DiscoveryFreshnessCurrent
	for i := range out.Resources { // old clients take a kind for granted
		res := &out.Resources[i]
		if res.ResponseKind == nil {
			res.ResponseKind = &metav1.GroupVersionKind{}
		}
		for j := range res.Subresources {
			if res.Subresources[j].ResponseKind == nil {
				res.Subresources[j].ResponseKind = &metav1.GroupVersionKind{}
			}
		}
	}
	return out
}

func (r *remote) discoverPlain(ctx context.Context) (*apidiscoveryv2.APIVersionDiscovery, error) {
	resp, data, err := r.read(ctx, r.root(), http.Header{"Accept": {codec.JSON}}, "system:kube-aggregator")
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s: %.200s", r.root(), resp.Status, data)
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	out := &apidiscoveryv2.APIVersionDiscovery{Version: r.spec.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
	at := map[string]int{}
	add := func(d apidiscoveryv2.APIResourceDiscovery) *apidiscoveryv2.APIResourceDiscovery {
		i, ok := at[d.Resource]
		if !ok {
			i = len(out.Resources)
			at[d.Resource] = i
			out.Resources = append(out.Resources, apidiscoveryv2.APIResourceDiscovery{})
		}
		d.Subresources = out.Resources[i].Subresources
		out.Resources[i] = d
		return &out.Resources[i]
	}
	for i := range list.APIResources {
		res := &list.APIResources[i]
		kind := &metav1.GroupVersionKind{Group: res.Group, Version: res.Version, Kind: res.Kind}
		if kind.Group == "" && kind.Version == "" { // it says so only where it is another one
			kind.Group, kind.Version = r.spec.Group, r.spec.Version
		}
		scope := apidiscoveryv2.ScopeCluster
		if res.Namespaced {
			scope = apidiscoveryv2.ScopeNamespace
		}
		name, sub, is := strings.Cut(res.Name, "/")
		if !is {
			add(apidiscoveryv2.APIResourceDiscovery{
				Resource: name, SingularResource: res.SingularName, Scope: scope, ResponseKind: kind,
				Verbs: res.Verbs, ShortNames: res.ShortNames, Categories: res.Categories,
			})
			continue
		}
		var parent *apidiscoveryv2.APIResourceDiscovery
		if j, ok := at[name]; ok {
			parent = &out.Resources[j]
		} else {
			parent = add(apidiscoveryv2.APIResourceDiscovery{Resource: name, Scope: scope, ResponseKind: &metav1.GroupVersionKind{}})
		}
		parent.Subresources = append(parent.Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: sub, ResponseKind: kind, Verbs: res.Verbs})
	}
	return out, nil
}

package aggregator

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/transport"
	v1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/apiregistration"
	"github.com/skiff-project/skiff/apiserver/registry"
)

// How availability is watched, as upstream does it.
const (
	recheck       = 30 * time.Second
	firstRetry    = 5 * time.Millisecond
	probeAttempts = 5
	probeTimeout  = 5 * time.Second
)

// source is what can change a remote's availability.
type source struct {
	reg *registry.Registry
	sel registry.Selection
}

func (r *remote) watches() []source {
	ref := r.spec.Service
	return []source{
		{r.a.Services, registry.Selection{Namespace: ref.Namespace, Fields: fields.OneTermEqualSelector("metadata.name", ref.Name)}},
		{r.a.Slices, registry.Selection{Namespace: ref.Namespace, Labels: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: ref.Name})}},
	}
}

// wake has availability looked at whenever s changes.
func (r *remote) wake(ctx context.Context, s source) error {
	w, err := s.reg.Watch(ctx, registry.WatchOptions{Selection: s.sel})
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		poke(r.changed.availability) // the first time for what was missed
		if _, err := w.Next(ctx); err != nil {
			return err
		}
	}
}

// keepAvailability keeps the Available condition true to the facts.
func (r *remote) keepAvailability(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		select {
		case r.a.probing <- struct{}{}:
		case <-ctx.Done():
			return
		}
		c := r.judge(ctx)
		<-r.a.probing
		if ctx.Err() != nil {
			return
		}
		err := r.report(ctx, c)
		if err != nil {
			r.a.Log.Error("the status of an APIService cannot be brought up to date", "name", r.name, "error", err)
		}
		next := recheck
		if failures++; err != nil || c.Reason == "FailedDiscoveryCheck" {
			next = backoff(firstRetry, recheck, failures-1)
		} else {
			failures = 0
		}
		r.a.wait(ctx, r.changed.availability, next)
	}
}

// report writes the condition, unless it is there already or the APIService has become another.
func (r *remote) report(ctx context.Context, c v1.APIServiceCondition) error {
	_, _, err := r.a.Registry.Update(ctx, registry.Update{
		Write: registry.Write{Name: r.name}, View: &api.View{}, Unconditional: true,
		Change: func(_ context.Context, obj api.Object) (api.Object, error) {
			if s, ok := obj.(*apiregistration.APIService); ok && s.UID == r.uid && apiequality.Semantic.DeepEqual(s.Spec, r.spec) {
				apiregistration.SetAvailable(s, c, r.a.Clock.Now())
			}
			return obj, nil
		},
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// judge looks at the Service, its endpoints and the server behind them.
func (r *remote) judge(ctx context.Context) v1.APIServiceCondition {
	ref := r.spec.Service
	say := func(status v1.ConditionStatus, reason, format string, args ...any) v1.APIServiceCondition {
		return apiregistration.Available(status, reason, fmt.Sprintf(format, args...))
	}
	where := fmt.Sprintf("service/%s in %q", ref.Name, ref.Namespace)
	obj, err := r.a.Reader.Get("", "services", ref.Namespace, ref.Name)
	switch svc, _ := obj.(*corev1.Service); {
	case apierrors.IsNotFound(err):
		return say(v1.ConditionFalse, "ServiceNotFound", "%s is not present", where)
	case err != nil:
		return say(v1.ConditionUnknown, "ServiceAccessError", "%s cannot be checked due to: %v", where, err)
	case svc.Spec.Type == corev1.ServiceTypeClusterIP:
		at := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == apiregistration.Port(ref) })
		if at < 0 {
			return say(v1.ConditionFalse, "ServicePortError", "%s is not listening on port %d", where, apiregistration.Port(ref))
		}
		port := svc.Spec.Ports[at].Name
		slices, err := r.slices()
		switch {
		case err != nil:
			return say(v1.ConditionUnknown, "EndpointsAccessError", "%s cannot be checked due to: %v", where, err)
		case len(slices) == 0:
			return say(v1.ConditionFalse, "EndpointsNotFound", "cannot find endpointslices for %s", where)
		case !anyReady(slices, port):
			return say(v1.ConditionFalse, "MissingEndpoints", "endpointslices for %s have no addresses with port name %q", where, port)
		}
	}
	if err := r.probe(ctx); err != nil {
		return say(v1.ConditionFalse, "FailedDiscoveryCheck", "%v", err)
	}
	return say(v1.ConditionTrue, "Passed", "all checks passed")
}

// slices are the EndpointSlices of the Service.
func (r *remote) slices() (out []*discoveryv1.EndpointSlice, err error) {
	list, err := r.a.Reader.List("discovery.k8s.io", "endpointslices", r.spec.Service.Namespace)
	for _, o := range list {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] == r.spec.Service.Name {
			out = append(out, s)
		}
	}
	return out, err
}

func anyReady(list []*discoveryv1.EndpointSlice, port string) bool {
	return slices.ContainsFunc(list, func(s *discoveryv1.EndpointSlice) bool {
		return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }) &&
			slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool { return p.Name != nil && *p.Name == port && p.Port != nil })
	})
}

// probe asks several times at once for a document every API server has: one
// answer is enough, whichever endpoint it is from.
func (r *remote) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	results := make(chan error, probeAttempts)
	for range probeAttempts {
		go func() { results <- r.probeOnce(ctx) }()
	}
	var err error
	for range probeAttempts {
		if err = <-results; err == nil {
			return nil
		}
	}
	return err
}

func (r *remote) probeOnce(ctx context.Context) error {
	u, err := r.url(r.root())
	if err != nil {
		return err
	}
	resp, err := r.get(ctx, u, http.Header{}, "system:kube-aggregator", "system:masters")
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode < 200 || resp.StatusCode > 299 {
			err = fmt.Errorf("bad status from %v: %d", u, resp.StatusCode)
		}
	}
	if err != nil {
		if r.transport != nil {
			r.transport.CloseIdleConnections()
		}
		return fmt.Errorf("failing or missing response from %v: %w", u, err)
	}
	return nil
}

// root is the path of the version's discovery document.
func (r *remote) root() string {
	if r.spec.Group == "" {
		return "/api/" + r.spec.Version
	}
	return "/apis/" + r.spec.Group + "/" + r.spec.Version
}

// url is where a path is reached now.
func (r *remote) url(path string) (*url.URL, error) {
	ref := r.spec.Service
	host, err := r.a.Route(ref.Namespace, ref.Name, strconv.Itoa(int(apiregistration.Port(ref))))
	return &url.URL{Scheme: "https", Host: host, Path: path}, err
}

// get asks the server for a document as a user of this server's own. The
// caller closes the body; redirects are not followed.
func (r *remote) get(ctx context.Context, u *url.URL, header http.Header, user string, groups ...string) (*http.Response, error) {
	if r.broken != nil {
		return nil, r.broken
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header = header
	transport.SetAuthProxyHeaders(req, user, "", groups, nil)
	client := &http.Client{Transport: r.transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return client.Do(req)
}

// maxDocument bounds discovery and OpenAPI documents, in bytes.
const maxDocument = 32 << 20

// read gets a whole document.
func (r *remote) read(ctx context.Context, path string, header http.Header, user string, groups ...string) (*http.Response, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	u, err := r.url(path)
	if err != nil {
		return nil, nil, err
	}
	resp, err := r.get(ctx, u, header, user, groups...)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err == nil && len(data) > maxDocument {
		err = fmt.Errorf("%v is larger than %d bytes", u, maxDocument)
	}
	return resp, data, err
}

// Package componentstatus answers for v1 ComponentStatus: it asks the
// components of the control plane how they are, each time somebody wants to know.
package componentstatus

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/api"
)

// Upstream's bounds of one question.
const (
	timeout   = 20 * time.Second
	maxAnswer = 10 << 10
)

// Check asks one component; the message says how it is.
type Check func(context.Context) (corev1.ConditionStatus, string)

// Checks are the components by name.
type Checks map[string]Check

// Of returns upstream's components: the controller manager, the scheduler and
// the store. own knows those that run in this process ("ok" is well); others
// are asked where upstream's listen by default.
func Of(own func(component string) (health string, here bool), store func(context.Context) error) Checks {
	in := func(component string, elsewhere Check) Check {
		return func(ctx context.Context) (corev1.ConditionStatus, string) {
			if own != nil {
				if health, here := own(component); here {
					return status(health == "ok"), health
				}
			}
			return elsewhere(ctx)
		}
	}
	return Checks{
		"controller-manager": in("controllers", HTTPS("https://127.0.0.1:10257/healthz")),
		"scheduler":          in("scheduler", HTTPS("https://127.0.0.1:10259/healthz")),
		"etcd-0": func(ctx context.Context) (corev1.ConditionStatus, string) {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			if err := store(ctx); err != nil {
				return corev1.ConditionFalse, err.Error()
			}
			return corev1.ConditionTrue, "ok"
		},
	}
}

func status(well bool) corev1.ConditionStatus {
	if well {
		return corev1.ConditionTrue
	}
	return corev1.ConditionFalse
}

// HTTPS asks a health endpoint, whose certificate, as upstream, may be anybody's.
func HTTPS(url string) Check {
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, DisableCompression: true, //nolint:gosec // as upstream
	}}
	return func(ctx context.Context) (corev1.ConditionStatus, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return corev1.ConditionUnknown, err.Error()
		}
		resp, err := client.Do(req)
		if err != nil {
			return corev1.ConditionFalse, err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		switch {
		case err != nil:
			return corev1.ConditionUnknown, err.Error()
		case resp.StatusCode >= 400 || resp.StatusCode < 200:
			return corev1.ConditionFalse, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)
		case resp.StatusCode >= 300:
			return corev1.ConditionUnknown, fmt.Sprintf("Probe terminated redirects, Response body: %s", body)
		}
		return corev1.ConditionTrue, string(body)
	}
}

func (c Checks) ask(ctx context.Context, name string) api.Object {
	well, message := c[name](ctx)
	return &corev1.ComponentStatus{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ComponentStatus"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Conditions: []corev1.ComponentCondition{{Type: corev1.ComponentHealthy, Status: well, Message: message}},
	}
}

// Get asks one component.
func (c Checks) Get(ctx context.Context, name string) (api.Object, error) {
	if c[name] == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "componentstatus"}, name)
	}
	return c.ask(ctx, name), nil
}

// List asks all components at once and returns those that match, by name. They have no labels; field may be nil.
func (c Checks) List(ctx context.Context, labelSelector string, field fields.Selector) ([]api.Object, error) {
	label, err := labels.Parse(labelSelector)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(c)), func(name string) bool {
		return !label.Matches(labels.Set{}) || field != nil && !field.Matches(fields.Set{"metadata.name": name})
	})
	out := make([]api.Object, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { out[i] = c.ask(ctx, name) })
	}
	all.Wait()
	return out, nil
}

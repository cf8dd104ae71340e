package definitions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/transport"

	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/api/customresource"
)

const conversionTimeout = 30 * time.Second

// hook returns the caller of a definition's conversion webhook; nil
// where it has none.
func (t *Table) hook(crd *apiextensions.CRD) customresource.Convert {
	c := crd.Spec.Conversion
	if c == nil || c.Strategy != v1.WebhookConverter || c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return nil
	}
	h := &webhook{t: t, group: crd.Spec.Group, config: c.Webhook}
	return h.convert
}

// webhook calls one conversion webhook. The client is made on first use and
// lives as long as the definition is unchanged.
type webhook struct {
	t      *Table
	group  string
	config *v1.WebhookConversion
	client *http.Client
	target string
}

// convert implements customresource.Convert. It believes nothing the webhook
// says about what an object is: kind, name, namespace, UID and all metadata but
// labels and annotations stay as they were.
func (h *webhook) convert(ctx context.Context, in *unstructured.Unstructured, version string) (*unstructured.Unstructured, error) {
	to := schema.GroupVersion{Group: h.group, Version: version}
	kind := in.GroupVersionKind()
	out, err := h.ask(ctx, in, to)
	if err != nil {
		return nil, fmt.Errorf("conversion webhook for %v failed: %w", kind, err)
	}
	if len(out) != 1 {
		return nil, fmt.Errorf("conversion webhook for %v returned %d objects, expected %d", kind, len(out), 1)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(out[0]); err != nil {
		return nil, fmt.Errorf("conversion webhook for %v returned invalid object at index 0: %w", kind, err)
	}
	if got := u.GroupVersionKind(); got.GroupVersion() != to {
		return nil, fmt.Errorf("conversion webhook for %v returned invalid object at index 0: invalid groupVersion (expected %v, received %v)", kind, to, got.GroupVersion())
	} else if got.Kind != kind.Kind {
		return nil, fmt.Errorf("conversion webhook for %v returned invalid object at index 0: invalid kind (expected %v, received %v)", kind, kind.Kind, got.Kind)
	}
	if err := customresource.SameObject(in, u); err != nil {
		return nil, fmt.Errorf("conversion webhook for %v returned invalid object: %w", kind, err)
	}
	if err := customresource.RestoreMetadata(in, u); err != nil {
		return nil, fmt.Errorf("conversion webhook for %v returned invalid metadata: %w", kind, err)
	}
	return u, nil
}

// review is a ConversionReview of either version; they differ in name only.
type review struct {
	metav1.TypeMeta `json:",inline"`
	Request         *reviewRequest  `json:"request,omitempty"`
	Response        *reviewResponse `json:"response,omitempty"`
}

type reviewRequest struct {
	UID               string                       `json:"uid"`
	DesiredAPIVersion string                       `json:"desiredAPIVersion"`
	Objects           []*unstructured.Unstructured `json:"objects"`
}

type reviewResponse struct {
	UID              string            `json:"uid"`
	ConvertedObjects []json.RawMessage `json:"convertedObjects"`
	Result           metav1.Status     `json:"result"`
}

func (h *webhook) ask(ctx context.Context, in *unstructured.Unstructured, to schema.GroupVersion) ([]json.RawMessage, error) {
	ask := review{Request: &reviewRequest{UID: uuid.NewString(), DesiredAPIVersion: to.String(), Objects: []*unstructured.Unstructured{in}}}
	for _, v := range h.config.ConversionReviewVersions {
		if v == "v1" || v == "v1beta1" {
			ask.TypeMeta = metav1.TypeMeta{Kind: "ConversionReview", APIVersion: apiextensions.Group + "/" + v}
			break
		}
	}
	if ask.Kind == "" {
		return nil, errors.New("no supported conversion review versions")
	}
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, conversionTimeout)
	defer cancel()
	answer, err := h.post(ctx, body)
	if err != nil {
		return nil, err
	}
	var got review
	if err := json.Unmarshal(answer, &got); err != nil {
		return nil, err
	}
	old := ask.APIVersion == apiextensions.Group+"/v1beta1" // checked neither kind nor UID
	switch r := got.Response; {
	case !old && got.TypeMeta != ask.TypeMeta:
		return nil, fmt.Errorf("expected webhook response of %v, got %v", ask.GroupVersionKind(), got.GroupVersionKind())
	case r == nil:
		return nil, errors.New("no response provided")
	case !old && r.UID != ask.Request.UID:
		return nil, fmt.Errorf("expected response.uid=%q, got %q", ask.Request.UID, r.UID)
	case r.Result.Status != metav1.StatusSuccess && r.Result.Message != "":
		return nil, errors.New(r.Result.Message)
	case r.Result.Status != metav1.StatusSuccess:
		return nil, fmt.Errorf("response.result.status was '%s', not 'Success'", r.Result.Status)
	}
	return got.Response.ConvertedObjects, nil
}

func (h *webhook) post(ctx context.Context, body []byte) ([]byte, error) {
	client, target, err := h.connect()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, */*")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, h.t.Body+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(data)) > h.t.Body:
		return nil, fmt.Errorf("the answer of %s is larger than %d bytes", target, h.t.Body)
	case resp.StatusCode < 200 || resp.StatusCode > 206:
		return nil, fmt.Errorf("%s answered %s: %.200s", target, resp.Status, data)
	}
	return data, nil
}

// connect makes the client: the webhook is trusted by its bundle or the
// system's roots, and a Service is reached at an endpoint under its DNS name.
func (h *webhook) connect() (*http.Client, string, error) {
	h.t.hooks.Lock()
	defer h.t.hooks.Unlock()
	if h.client != nil {
		return h.client, h.target, nil
	}
	c := h.config.ClientConfig
	tlsConfig, err := transport.TLSConfigFor(&transport.Config{TLS: transport.TLSConfig{CAData: bytes.TrimSpace(c.CABundle)}})
	if err != nil {
		return nil, "", err
	}
	t := &http.Transport{TLSClientConfig: tlsConfig, DialContext: h.t.Dial, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second, ForceAttemptHTTP2: true}
	switch {
	case c.URL != nil:
		h.target = *c.URL
	case c.Service != nil:
		port := 443
		if c.Service.Port != nil {
			port = int(*c.Service.Port)
		}
		host := net.JoinHostPort(c.Service.Name+"."+c.Service.Namespace+".svc", strconv.Itoa(port))
		u := url.URL{Scheme: "https", Host: host}
		if c.Service.Path != nil {
			u.Path = *c.Service.Path
		}
		h.target = u.String()
		t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			host, err := h.t.Host(c.Service.Namespace, c.Service.Name, strconv.Itoa(port))
			if err != nil {
				return nil, err
			}
			return h.t.Dial(ctx, network, host)
		}
	default:
		return nil, "", errors.New("the definition names neither a URL nor a Service")
	}
	h.client = &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return h.client, h.target, nil
}

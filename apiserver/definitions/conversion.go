package definitions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/skiff-project/skiff/api/apiextensions"
	"github.com/skiff-project/skiff/api/customresource"
	"github.com/skiff-project/skiff/apiserver/callout"
)

const conversionTimeout = 30 * time.Second

// reviews decodes the answers of conversion webhooks.
func reviews() runtime.Serializer {
	s := runtime.NewScheme()
	s.AddKnownTypes(v1.SchemeGroupVersion, &v1.ConversionReview{})
	s.AddKnownTypes(v1beta1.SchemeGroupVersion, &v1beta1.ConversionReview{})
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, s, s, jsonserializer.SerializerOptions{})
}

// hook returns the caller of a definition's conversion webhook; nil
// where it has none.
func (t *Table) hook(crd *apiextensions.CRD) customresource.Convert {
	c := crd.Spec.Conversion
	if c == nil || c.Strategy != v1.WebhookConverter || c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return nil
	}
	h := &webhook{clients: t.clients, group: crd.Spec.Group, versions: c.Webhook.ConversionReviewVersions}
	h.target.CABundle = c.Webhook.ClientConfig.CABundle
	if url := c.Webhook.ClientConfig.URL; url != nil {
		h.target.URL = *url
	}
	if s := c.Webhook.ClientConfig.Service; s != nil {
		h.target.Service = &callout.Service{Namespace: s.Namespace, Name: s.Name}
		if s.Path != nil {
			h.target.Service.Path = *s.Path
		}
		if s.Port != nil {
			h.target.Service.Port = *s.Port
		}
	}
	return h.convert
}

// webhook is one conversion webhook.
type webhook struct {
	clients  *callout.Clients
	group    string
	versions []string // of reviews it knows
	target   callout.Target
}

// convert implements customresource.Convert. It believes nothing the webhook
// says about what an object is: kind, name, namespace, UID and all metadata but
// labels and annotations stay as they were.
func (h *webhook) convert(ctx context.Context, in []*unstructured.Unstructured, version string) ([]*unstructured.Unstructured, error) {
	to := schema.GroupVersion{Group: h.group, Version: version}
	kind := in[0].GroupVersionKind()
	said, err := h.ask(ctx, in, to)
	if err != nil {
		return nil, fmt.Errorf("conversion webhook for %v failed: %w", kind, err)
	}
	if len(said) != len(in) {
		return nil, fmt.Errorf("conversion webhook for %v returned %d objects, expected %d", kind, len(said), len(in))
	}
	out := make([]*unstructured.Unstructured, len(in))
	for i, raw := range said {
		bad := fmt.Sprintf("conversion webhook for %v returned invalid", kind)
		u, want := &unstructured.Unstructured{}, in[i].GetKind()
		if err := u.UnmarshalJSON(raw.Raw); err != nil {
			return nil, fmt.Errorf("%s object at index %d: %w", bad, i, err)
		}
		if got := u.GroupVersionKind(); got.GroupVersion() != to {
			return nil, fmt.Errorf("%s object at index %d: invalid groupVersion (expected %v, received %v)", bad, i, to, got.GroupVersion())
		} else if got.Kind != want {
			return nil, fmt.Errorf("%s object at index %d: invalid kind (expected %v, received %v)", bad, i, want, got.Kind)
		}
		if err := customresource.SameObject(in[i], u); err != nil {
			return nil, fmt.Errorf("%s object: %w", bad, err)
		}
		if err := customresource.RestoreMetadata(in[i], u); err != nil {
			return nil, fmt.Errorf("%s metadata: %w", bad, err)
		}
		out[i] = u
	}
	return out, nil
}

// ask sends one review with all objects.
func (h *webhook) ask(ctx context.Context, in []*unstructured.Unstructured, to schema.GroupVersion) ([]runtime.RawExtension, error) {
	uid := uuid.NewUUID()
	req := &v1.ConversionRequest{UID: uid, DesiredAPIVersion: to.String()}
	for _, u := range in {
		req.Objects = append(req.Objects, runtime.RawExtension{Object: u})
	}
	kind, reply := metav1.TypeMeta{Kind: "ConversionReview"}, runtime.Object(nil)
	for _, v := range h.versions {
		switch v {
		case "v1":
			kind.APIVersion, reply = v1.SchemeGroupVersion.String(), &v1.ConversionReview{}
		case "v1beta1":
			kind.APIVersion, reply = v1beta1.SchemeGroupVersion.String(), &v1beta1.ConversionReview{}
		default:
			continue
		}
		break
	}
	if reply == nil {
		return nil, errors.New("no supported conversion review versions")
	}
	body, err := json.Marshal(&v1.ConversionReview{TypeMeta: kind, Request: req}) // both versions have the same fields
	if err != nil {
		return nil, err
	}
	client, err := h.clients.To(h.target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, conversionTimeout)
	defer cancel()
	if err := client.Post(ctx, body, false, reply); err != nil {
		return nil, err
	}
	return verify(reply, uid)
}

// verify checks an answer. What v1beta1 never asked for, kind and UID, is not
// asked of it.
func verify(reply runtime.Object, uid types.UID) ([]runtime.RawExtension, error) {
	var result metav1.Status
	var objects []runtime.RawExtension
	switch got := reply.(type) {
	case *v1beta1.ConversionReview:
		if got.Response == nil {
			return nil, errors.New("no response provided")
		}
		result, objects = got.Response.Result, got.Response.ConvertedObjects
	case *v1.ConversionReview:
		want := v1.SchemeGroupVersion.WithKind("ConversionReview")
		switch r := got.Response; {
		case got.GroupVersionKind() != want:
			return nil, fmt.Errorf("expected webhook response of %v, got %v", want, got.GroupVersionKind())
		case r == nil:
			return nil, errors.New("no response provided")
		case r.UID != uid:
			return nil, fmt.Errorf("expected response.uid=%q, got %q", uid, r.UID)
		}
		result, objects = got.Response.Result, got.Response.ConvertedObjects
	}
	switch {
	case result.Status != metav1.StatusSuccess && result.Message != "":
		return nil, errors.New(result.Message)
	case result.Status != metav1.StatusSuccess:
		return nil, fmt.Errorf("response.result.status was '%s', not 'Success'", result.Status)
	}
	return objects, nil
}

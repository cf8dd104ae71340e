package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionv1beta1 "k8s.io/api/admission/v1beta1"
	v1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/skiff-project/skiff/apiserver/admission"
)

// answers decodes the answers of admission webhooks.
func answers() runtime.Serializer {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{admissionv1.AddToScheme, admissionv1beta1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // the packages contradict themselves
		}
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, s, s, jsonserializer.SerializerOptions{})
}

// callError says that a webhook could not be asked, or gave no answer that counts.
type callError struct {
	name   string
	reason error
}

func (e *callError) Error() string {
	return fmt.Sprintf("failed calling webhook %q: %v", e.name, e.reason)
}

func (e *callError) Unwrap() error { return e.reason }

// answer is what a webhook said, whatever the version it spoke.
type answer struct {
	*admissionv1.AdmissionResponse
}

// ask asks one webhook about the request as v shows it. The error is a
// callError, or the rejection the client gets.
func (s *source) ask(ctx context.Context, h *hook, f admission.Form, v *view, mutating bool) (answer, error) {
	fail := func(format string, args ...any) (answer, error) {
		return answer{}, &callError{h.Name, fmt.Errorf(format, args...)}
	}
	if v.r.DryRun {
		switch e := h.SideEffects; {
		case e == nil:
			return fail("Webhook SideEffects is nil")
		case *e != v1.SideEffectClassNone && *e != v1.SideEffectClassNoneOnDryRun:
			return answer{}, apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q does not support dry run", h.Name))
		}
	}
	uid := uuid.NewUUID()
	body, reply, err := v.review(h, f, uid)
	if err != nil {
		return fail("could not create admission objects: %w", err)
	}
	client, err := s.clients.To(h.target)
	if err != nil {
		return fail("could not get REST client: %w", err)
	}
	within := ctx
	if h.TimeoutSeconds != nil {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, time.Duration(*h.TimeoutSeconds)*time.Second)
		defer cancel()
	}
	if err := client.Post(within, body, true, reply); err != nil {
		return fail("failed to call webhook: %w", err)
	}
	a, err := verify(uid, mutating, reply)
	if err != nil {
		return fail("received invalid webhook response: %w", err)
	}
	if !a.Allowed {
		return a, denied(h.Name, a.Result)
	}
	return a, nil
}

// tell passes on the warnings and audit annotations of an answer.
func (a answer) tell(ctx context.Context, h *hook) {
	if a.AdmissionResponse == nil {
		return
	}
	for k, value := range a.AuditAnnotations {
		admission.Annotate(ctx, h.Name+"/"+k, value)
	}
	for _, w := range a.Warnings {
		admission.Warn(ctx, w)
	}
}

// review is the request to a webhook and what its answer is decoded into.
func (v *view) review(h *hook, f admission.Form, uid types.UID) (body []byte, reply runtime.Object, err error) {
	req := v.r.Review(f)
	req.UID = uid
	req.Object.Object, req.OldObject.Object = v.now, v.old
	kind := metav1.TypeMeta{Kind: "AdmissionReview"}
	for _, version := range h.AdmissionReviewVersions {
		switch version {
		case "v1":
			kind.APIVersion, reply = admissionv1.SchemeGroupVersion.String(), &admissionv1.AdmissionReview{}
		case "v1beta1":
			kind.APIVersion, reply = admissionv1beta1.SchemeGroupVersion.String(), &admissionv1beta1.AdmissionReview{}
		default:
			continue
		}
		// Both versions have the same fields.
		body, err = json.Marshal(&admissionv1.AdmissionReview{TypeMeta: kind, Request: req})
		return body, reply, err
	}
	return nil, nil, errors.New("webhook does not accept known AdmissionReview versions (v1, v1beta1)")
}

// verify checks an answer. What v1beta1 never asked for is not asked of it.
func verify(uid types.UID, mutating bool, reply runtime.Object) (answer, error) {
	absent := errors.New("webhook response was absent")
	if old, ok := reply.(*admissionv1beta1.AdmissionReview); ok {
		r := old.Response
		if r == nil {
			return answer{}, absent
		}
		out := &admissionv1.AdmissionResponse{Allowed: r.Allowed, Result: r.Result, AuditAnnotations: r.AuditAnnotations, Warnings: r.Warnings}
		if patch := admissionv1.PatchTypeJSONPatch; mutating && len(r.Patch) > 0 {
			out.Patch, out.PatchType = r.Patch, &patch
		}
		return answer{out}, nil
	}
	review, ok := reply.(*admissionv1.AdmissionReview)
	if !ok {
		return answer{}, fmt.Errorf("unexpected response type %T", reply)
	}
	want := admissionv1.SchemeGroupVersion.WithKind("AdmissionReview")
	switch r := review.Response; {
	case r == nil:
		return answer{}, absent
	case r.UID != uid:
		return answer{}, fmt.Errorf("expected response.uid=%q, got %q", uid, r.UID)
	case review.GroupVersionKind() != want:
		return answer{}, fmt.Errorf("expected webhook response of %v, got %v", want, review.GroupVersionKind())
	case !mutating && len(r.Patch) > 0:
		return answer{}, errors.New("validating webhook may not return response.patch")
	case !mutating && r.PatchType != nil:
		return answer{}, errors.New("validating webhook may not return response.patchType")
	case len(r.Patch) > 0 && r.PatchType == nil:
		return answer{}, errors.New("webhook returned response.patch but not response.patchType")
	case len(r.Patch) == 0 && r.PatchType != nil:
		return answer{}, errors.New("webhook returned response.patchType but not response.patch")
	case r.PatchType != nil && *r.PatchType == "":
		return answer{}, fmt.Errorf("webhook returned invalid response.patchType of %q", *r.PatchType)
	}
	return answer{review.Response}, nil
}

// denied is the answer to a request a webhook rejects: what it says, made sure
// to be an error.
func denied(name string, result *metav1.Status) error {
	st := metav1.Status{Status: metav1.StatusFailure}
	if result != nil {
		st = *result
	}
	if st.Code < http.StatusBadRequest {
		st.Code = http.StatusBadRequest
	}
	if st.Status == "" || st.Status == metav1.StatusSuccess {
		st.Status = metav1.StatusFailure
	}
	by := fmt.Sprintf("admission webhook %q denied the request", name)
	switch {
	case st.Message != "":
		st.Message = by + ": " + st.Message
	case st.Reason != "":
		st.Message = by + ": " + string(st.Reason)
	default:
		st.Message = by + " without explanation"
	}
	return &apierrors.StatusError{ErrStatus: st}
}

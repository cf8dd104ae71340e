package request

import (
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/auth"
)

var htmlEscaper = strings.NewReplacer(`&`, "&amp;", `<`, "&lt;", `>`, "&gt;")

// Refusal is the 403 an authorizer's answer makes, or the 500 where it could
// not answer; nil where it allows.
func Refusal(a auth.Attributes, d auth.Decision, reason string, err error) error {
	if d == auth.Allow {
		return nil
	}
	if err != nil && d == auth.NoOpinion && reason == "" {
		return apierrors.NewInternalError(err)
	}
	msg := htmlEscaper.Replace(auth.ForbiddenMessage(a))
	if reason != "" {
		msg += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.APIGroup, Resource: a.Resource}, a.Name, errors.New(msg))
}

package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/authorization"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/auth"
)

// serveReview answers the resources that are questions, not objects.
func (s *Server) serveReview(c *call) {
	if c.info.Resource == "bindings" && c.info.Group == "" {
		s.bindPod(c)
		return
	}
	if c.info.Resource == "componentstatuses" {
		s.componentStatuses(c)
		return
	}
	answer := map[string]func(*call, api.Object) error{
		"tokenreviews":              s.tokenReview,
		"selfsubjectreviews":        s.selfReview,
		"subjectaccessreviews":      s.accessReview,
		"localsubjectaccessreviews": s.localAccessReview,
		"selfsubjectaccessreviews":  s.selfAccessReview,
		"selfsubjectrulesreviews":   s.rulesReview,
	}[c.info.Resource]
	if answer == nil || c.info.Name != "" {
		s.notImplemented(c)
		return
	}
	out, err := c.negotiate(true)
	if err == nil && out.shape == shapeTable {
		err = notAcceptable(acceptedMedia...)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	o := parseWriteOptions(c)
	if err := o.check("CreateOptions", metavalidation.ValidateCreateOptions(o.create())); err != nil {
		s.fail(c, err)
		return
	}
	obj := c.ep.ver.New()
	err = s.decodeBody(c, o, c.ep.kind, obj)
	c.audited(obj)
	if err == nil {
		request.ClearReviewed(obj, c.ep.res.Namespaced)
		err = s.admission.Admit(c.ctx(), s.admissionRequest(c, obj, nil, o.create(), o.isDryRun()))
	}
	if err == nil {
		err = answer(c, obj)
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	obj.GetObjectKind().SetGroupVersionKind(c.ep.kind)
	data, err := s.encodeOne(c, out, obj)
	if err != nil {
		s.fail(c, err)
		return
	}
	s.write(c, out.media, http.StatusCreated, data)
}

// componentStatuses answers how the control plane's components are.
func (s *Server) componentStatuses(c *call) {
	out, err := c.negotiate(true)
	var data []byte
	if err == nil && c.info.Verb == "get" {
		var obj api.Object
		if obj, err = s.components.Get(c.ctx(), c.info.Name); err == nil {
			data, err = s.encodeOne(c, out, obj)
		}
	} else if err == nil {
		var list []api.Object
		if list, err = s.components.List(c.ctx(), c.info.Labels, c.info.Fields); err == nil {
			data, err = s.encodeMany(c, out, list, metav1.ListMeta{})
		}
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	s.write(c, out.media, http.StatusOK, data)
}

func (s *Server) notImplemented(c *call) {
	s.fail(c, statusError(http.StatusNotImplemented, metav1.StatusReasonUnknown, fmt.Sprintf("%s is not implemented", c.ep.gr)))
}

func (s *Server) tokenReview(c *call, obj api.Object) error {
	r := obj.(*authenticationv1.TokenReview)
	if r.Spec.Token == "" {
		return apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	r.Status = authenticationv1.TokenReviewStatus{}
	token := r.Spec.Token
	if s.cfg.Tokens == nil {
		return nil
	}
	id, ok, err := s.cfg.Tokens.AuthenticateToken(c.ctx(), token, r.Spec.Audiences)
	if err == nil && !ok {
		err = errors.New("invalid bearer token")
	}
	if err != nil {
		r.Status.Error = err.Error()
		return nil
	}
	r.Status.Authenticated = true
	r.Status.User = id.User.Info()
	if !slices.Contains(r.Status.User.Groups, auth.GroupAuthenticated) {
		r.Status.User.Groups = append(append([]string(nil), r.Status.User.Groups...), auth.GroupAuthenticated)
	}
	r.Status.Audiences = id.Audiences
	return nil
}

func (s *Server) selfReview(c *call, obj api.Object) error {
	r := obj.(*authenticationv1.SelfSubjectReview)
	*r = authenticationv1.SelfSubjectReview{Status: authenticationv1.SelfSubjectReviewStatus{UserInfo: c.user.User.Info()}}
	r.CreationTimestamp = metav1.NewTime(s.cfg.Clock.Now())
	return nil
}

func (s *Server) accessReview(c *call, obj api.Object) error {
	r := obj.(*authorizationv1.SubjectAccessReview)
	if err := authorization.Validate(&r.ObjectMeta, &r.Spec, c.ep.res.Namespaced, true); err != nil {
		return err
	}
	r.Status = s.decide(c, request.ReviewedUser(&r.Spec), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
	return nil
}

func (s *Server) localAccessReview(c *call, obj api.Object) error {
	r := obj.(*authorizationv1.LocalSubjectAccessReview)
	if err := checkNamespace(c, r); err != nil {
		return err
	}
	if err := authorization.Validate(&r.ObjectMeta, &r.Spec, c.ep.res.Namespaced, true); err != nil {
		return err
	}
	r.Status = s.decide(c, request.ReviewedUser(&r.Spec), r.Spec.ResourceAttributes, nil)
	return nil
}

func (s *Server) selfAccessReview(c *call, obj api.Object) error {
	r := obj.(*authorizationv1.SelfSubjectAccessReview)
	spec := authorizationv1.SubjectAccessReviewSpec{ResourceAttributes: r.Spec.ResourceAttributes, NonResourceAttributes: r.Spec.NonResourceAttributes}
	if err := authorization.Validate(&r.ObjectMeta, &spec, false, false); err != nil {
		return err
	}
	r.Status = s.decide(c, c.user.User, r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
	return nil
}

// decide asks the authorizer on someone's behalf.
func (s *Server) decide(c *call, u auth.User, res *authorizationv1.ResourceAttributes, non *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	attrs, problems := request.ReviewedAttributes(u, res, non)
	d, reason, err := s.cfg.Authorizer.Authorize(c.ctx(), attrs)
	if err != nil {
		problems = slices.Insert(problems, 0, err.Error())
	}
	return authorizationv1.SubjectAccessReviewStatus{Allowed: d == auth.Allow, Denied: d == auth.Deny, Reason: reason, EvaluationError: strings.Join(problems, "; ")}
}

func (s *Server) rulesReview(c *call, obj api.Object) error {
	r := obj.(*authorizationv1.SelfSubjectRulesReview)
	if r.Spec.Namespace == "" {
		return apierrors.NewBadRequest("no namespace on request")
	}
	namespace := r.Spec.Namespace
	*r = authorizationv1.SelfSubjectRulesReview{} // which is all that is asked about
	if s.cfg.Rules == nil {
		r.Status = authorizationv1.SubjectRulesReviewStatus{Incomplete: true, ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
		return nil
	}
	r.Status = s.cfg.Rules.ReviewRules(c.user.User, namespace)
	return nil
}

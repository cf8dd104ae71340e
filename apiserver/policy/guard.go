package policy

import (
	"context"
	"fmt"
	"reflect"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/auth"
)

// guard refuses policies and bindings with parameters that who writes them may
// not read: what expressions see of them can be told. Upstream does this where
// the objects are validated. policies is the resource of the bindings' policies.
func (c *Config) guard(ctx context.Context, r *admission.Request, policies string) error {
	if r.Subresource != "" || r.Object == nil || slices.Contains(r.User.Groups, auth.GroupMasters) {
		return nil
	}
	var at *field.Path
	var err error
	if r.Resource == policies {
		at, err = field.NewPath("spec", "paramKind"), c.guardPolicy(ctx, r)
	} else {
		at, err = field.NewPath("spec", "paramRef"), c.guardBinding(ctx, r, policies)
	}
	if err == nil {
		return nil
	}
	return apierrors.NewInvalid(r.Kind.GroupKind(), r.Object.GetName(), field.ErrorList{field.Forbidden(at, err.Error())})
}

// who is a user as upstream prints one.
func who(u auth.User) string { return fmt.Sprintf("&{%s %s %v %v}", u.Name, u.UID, u.Groups, u.Extra) }

func (c *Config) guardPolicy(ctx context.Context, r *admission.Request) error {
	p := asPolicy(r.Object)
	if p.params == nil {
		return nil
	}
	if r.Old != nil {
		if old := asPolicy(r.Old); old.params != nil && *old.params == *p.params {
			return nil
		}
	}
	a := c.reading(ctx, r, p.params)
	a.Verb, a.Name, a.Namespace = "get", "*", "*"
	if d, _, err := c.Authorizer.Authorize(ctx, a); err != nil || d == auth.Allow {
		return err
	}
	return fmt.Errorf(`user %v must have "get" permission on all objects of the referenced paramKind (kind=%s, apiVersion=%s)`, who(r.User), p.params.Kind, p.params.APIVersion)
}

func (c *Config) guardBinding(ctx context.Context, r *admission.Request, policies string) error {
	b := asBinding(r.Object)
	if b.param == nil {
		return nil
	}
	if r.Old != nil {
		if old := asBinding(r.Old); old.policy == b.policy && reflect.DeepEqual(old.param, b.param) {
			return nil
		}
	}
	verb := "get"
	if b.param.Name == "" {
		verb = "list"
	}
	var params *admissionv1.ParamKind
	obj, missing := c.Reader.Get(admissionv1.GroupName, policies, "", b.policy)
	if missing == nil {
		params = asPolicy(obj).params
	}
	a := c.reading(ctx, r, params)
	a.Verb, a.Name, a.Namespace = verb, b.param.Name, b.param.Namespace
	d, _, err := c.Authorizer.Authorize(ctx, a)
	everything := fmt.Sprintf(`and user %v does not have "%v" permission for all groups, versions and resources`, who(r.User), verb)
	switch {
	case err != nil:
		return fmt.Errorf("failed to authorize request: %w", err)
	case d == auth.Allow:
		return nil
	case missing != nil:
		return fmt.Errorf("unable to get policy %s to determine minimum required permissions %s", b.policy, everything)
	case params != nil && a.Resource == "*":
		return fmt.Errorf("unable to resolve paramKind %v to determine minimum required permissions %s", params, everything)
	}
	return fmt.Errorf(`user %v does not have "%v" permission on the object referenced by paramRef`, who(r.User), verb)
}

// reading is a request for the objects of a kind; for everything if it is not known.
func (c *Config) reading(ctx context.Context, r *admission.Request, k *admissionv1.ParamKind) auth.Attributes {
	a := auth.Attributes{User: r.User, ResourceRequest: true, APIGroup: "*", APIVersion: "*", Resource: "*"}
	if k == nil {
		return a
	}
	kind := schema.FromAPIVersionAndKind(k.APIVersion, k.Kind)
	a.APIGroup, a.APIVersion = kind.Group, kind.Version
	if stored, ok := c.Kinds.Stored(ctx, kind); ok {
		a.Resource = stored.Resource.Name
	}
	return a
}

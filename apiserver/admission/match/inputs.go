package match

import (
	"context"
	"time"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/library"

	"github.com/skiff-project/skiff/api/admissionregistration/expression"
	"github.com/skiff-project/skiff/apiserver/admission"
	"github.com/skiff-project/skiff/auth"
)

// Inputs are the values expressions see of a request whose objects, nil for
// none, are shown in f. Params and namespaceObject are left to the caller.
func Inputs(r *admission.Request, f admission.Form, object, old runtime.Object, a auth.Authorizer) expression.Inputs {
	in := expression.Inputs{Object: Value(object), OldObject: Value(old)}
	Ask(&in, r, f, a)
	return in
}

// Ask sets what of the inputs is the same whatever the objects: request and authorizer.
func Ask(in *expression.Inputs, r *admission.Request, f admission.Form, a auth.Authorizer) {
	who := &user.DefaultInfo{Name: r.User.Name, UID: r.User.UID, Groups: r.User.Groups, Extra: r.User.Extra}
	in.Request = common.SchemalessTypedToVal(r.Review(f))
	in.Authorizer = library.NewAuthorizerVal(who, access{a})
	in.RequestResource = library.NewResourceAuthorizerVal(who, access{a}, requestResource{r})
}

// Conditions tells whether the match conditions of the policy of a name hold for a request, as expression.Match does, and counts that.
func Conditions(ctx context.Context, r *admission.Request, name string, list []expression.Condition, in expression.Inputs,
	variables []*expression.Expression, failure *admissionv1.FailurePolicyType) (bool, error) {
	began := time.Now()
	ok, failed, err := expression.Match(ctx, list, in, variables, failure)
	r.Conditioned(name, "policy", "validate", time.Since(began), failed, false) // mutating ones too, as upstream
	return ok, err
}

// Value is an object as CEL reads it, field by field as expressions ask; nil is null.
func Value(obj runtime.Object) ref.Val {
	if obj == nil {
		return types.NullValue
	}
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return types.DefaultTypeAdapter.NativeToValue(u.Object)
	}
	return common.SchemalessTypedToVal(obj)
}

// access lets expressions ask the authorizer.
type access struct{ to auth.Authorizer }

// Authorize implements authorizer.UnconditionalAuthorizer.
func (a access) Authorize(ctx context.Context, x authorizer.Attributes) (authorizer.Decision, string, error) {
	who := x.GetUser()
	at := auth.Attributes{
		User: auth.User{Name: who.GetName(), UID: who.GetUID(), Groups: who.GetGroups(), Extra: who.GetExtra()},
		Verb: x.GetVerb(), Namespace: x.GetNamespace(), APIGroup: x.GetAPIGroup(), APIVersion: x.GetAPIVersion(), Resource: x.GetResource(),
		Subresource: x.GetSubresource(), Name: x.GetName(), ResourceRequest: x.IsResourceRequest(), Path: x.GetPath(),
	}
	if sel, err := x.GetFieldSelector(); err == nil {
		at.FieldSelector = sel
	}
	d, reason, err := a.to.Authorize(ctx, at)
	switch d {
	case auth.Allow:
		return authorizer.DecisionAllow, reason, err
	case auth.Deny:
		return authorizer.DecisionDeny, reason, err
	}
	return authorizer.DecisionNoOpinion, reason, err
}

// requestResource is what authorizer.requestResource asks about.
type requestResource struct{ r *admission.Request }

// GetName implements library.Resource.
func (q requestResource) GetName() string { return q.r.ObjectName() }

// GetNamespace implements library.Resource.
func (q requestResource) GetNamespace() string { return q.r.Namespace }

// GetResource implements library.Resource.
func (q requestResource) GetResource() schema.GroupVersionResource { return q.r.Own().Resource }

// GetSubresource implements library.Resource.
func (q requestResource) GetSubresource() string { return q.r.Subresource }

package serviceaccount

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/auth"
)

// podSeconds is how long kubelets ask for tokens of pods that do not say; nobody else asks for just that. Such a
// token is good for extended.
const (
	podSeconds = 3607
	extended   = 365 * 24 * time.Hour
)

// Request answers a TokenRequest for service account namespace/name with the
// token in its status. The errors are API errors, the warnings for Warning
// headers. in is not changed.
func (t *Tokens) Request(ctx context.Context, namespace, name string, in *authenticationv1.TokenRequest) (out *authenticationv1.TokenRequest, warnings []string, err error) {
	kind := schema.GroupKind{Group: authenticationv1.GroupName, Kind: "TokenRequest"}
	if in.Name != "" && in.Name != name {
		return nil, nil, invalid(kind, name, field.Invalid(field.NewPath("metadata", "name"), in.Name, "must match the service account name if specified"))
	}
	if in.Namespace != "" && in.Namespace != namespace {
		return nil, nil, invalid(kind, name, field.Invalid(field.NewPath("metadata", "namespace"), in.Namespace, "must match the service account namespace if specified"))
	}
	sa, err := t.cfg.Getter.ServiceAccount(ctx, namespace, name)
	if err != nil {
		return nil, nil, err
	}
	if in.UID != "" && in.UID != sa.UID {
		return nil, nil, apierrors.NewConflict(schema.GroupResource{Group: kind.Group, Resource: kind.Kind}, name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", in.UID, sa.UID))
	}
	now := t.cfg.Clock.Now()
	out = in.DeepCopy()
	out.Name, out.Namespace, out.UID = name, namespace, sa.UID
	out.CreationTimestamp = metav1.NewTime(now)
	out.Status = authenticationv1.TokenRequestStatus{}
	if len(out.Spec.Audiences) == 0 {
		out.Spec.Audiences = t.cfg.Audiences
	}
	seconds := int64(3600)
	if out.Spec.ExpirationSeconds != nil {
		seconds = *out.Spec.ExpirationSeconds
	}
	path := field.NewPath("spec", "expirationSeconds")
	switch {
	case seconds < 600:
		return nil, nil, invalid(kind, "", field.Invalid(path, seconds, "may not specify a duration less than 10 minutes"))
	case seconds > 1<<32:
		return nil, nil, invalid(kind, "", field.Invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	k := &bound{Namespace: namespace, ServiceAccount: ref{Name: name, UID: string(sa.UID)}}
	if err := t.bind(ctx, k, out.Spec.BoundObjectRef); err != nil {
		return nil, nil, err
	}
	if limit := t.cfg.MaxExpirationSeconds; limit > 0 && seconds > limit {
		warnings = append(warnings, fmt.Sprintf("requested expiration of %d seconds shortened to %d seconds", seconds, limit))
		seconds = limit
	}
	out.Spec.ExpirationSeconds = &seconds
	expires := now.Add(time.Duration(seconds) * time.Second)
	out.Status.ExpirationTimestamp = metav1.NewTime(expires)
	if k.Pod != nil && seconds == podSeconds && !t.cfg.NoExtension && len(intersect(out.Spec.Audiences, t.cfg.Audiences)) == len(out.Spec.Audiences) {
		k.WarnAfter, expires = jwt.NewNumericDate(expires), now.Add(extended)
	}
	out.Status.Token, err = jwt.Signed(t.signer).Claims(claims{
		Claims: jwt.Claims{
			Issuer: t.cfg.Issuer, Subject: auth.ServiceAccountUser(namespace, name),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(expires), ID: newID(),
		},
		Audience: out.Spec.Audiences, Kubernetes: k,
	}).Serialize()
	if err != nil {
		return nil, nil, apierrors.NewInternalError(fmt.Errorf("failed to generate token: %v", err))
	}
	return out, warnings, nil
}

func invalid(kind schema.GroupKind, name string, err *field.Error) error {
	return apierrors.NewInvalid(kind, name, field.ErrorList{err})
}

// newID is a random (version 4) UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// bind fills in what the token is tied to: when that object goes, so does the
// token.
func (t *Tokens) bind(ctx context.Context, k *bound, to *authenticationv1.BoundObjectReference) error {
	if to == nil {
		return nil
	}
	var uid types.UID
	gvk := schema.FromAPIVersionAndKind(to.APIVersion, to.Kind)
	switch gvk.Group + "/" + gvk.Kind {
	case "/Pod":
		pod, err := t.cfg.Getter.Pod(ctx, k.Namespace, to.Name)
		if err != nil {
			return err
		}
		if pod.Spec.ServiceAccountName != k.ServiceAccount.Name {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", k.ServiceAccount.Name))
		}
		uid = pod.UID
		k.Pod = &ref{Name: pod.Name, UID: string(uid)}
		if pod.Spec.NodeName != "" {
			k.Node = &ref{Name: pod.Spec.NodeName}
			node, err := t.cfg.Getter.Node(ctx, pod.Spec.NodeName)
			if err == nil {
				k.Node.UID = string(node.UID)
			} else if !apierrors.IsNotFound(err) {
				return apierrors.NewInternalError(err)
			}
		}
	case "/Node":
		node, err := t.cfg.Getter.Node(ctx, to.Name)
		if err != nil {
			return err
		}
		uid = node.UID
		k.Node = &ref{Name: node.Name, UID: string(uid)}
	case "/Secret":
		secret, err := t.cfg.Getter.Secret(ctx, k.Namespace, to.Name)
		if err != nil {
			return err
		}
		uid = secret.UID
		k.Secret = &ref{Name: secret.Name, UID: string(uid)}
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk.String()))
	}
	if to.UID != "" && uid != to.UID {
		return apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, to.Name,
			fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", to.UID))
	}
	return nil
}

// legacyIssuer marks tokens kept in Secrets.
const legacyIssuer = "kubernetes/serviceaccount"

// Legacy returns the token the token controller stores in a
// kubernetes.io/service-account-token Secret. It never expires: it lives as
// long as the Secret.
func (t *Tokens) Legacy(sa *corev1.ServiceAccount, secretName string) (string, error) {
	return jwt.Signed(t.signer).Claims(claims{
		Claims:          jwt.Claims{Issuer: legacyIssuer, Subject: auth.ServiceAccountUser(sa.Namespace, sa.Name)},
		LegacyNamespace: sa.Namespace, LegacyName: sa.Name, LegacyUID: string(sa.UID), LegacySecret: secretName,
	}).Serialize()
}

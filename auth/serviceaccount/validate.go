package serviceaccount

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/skiff-project/skiff/auth"
)

// leeway forgives clocks that differ a little between machines.
const leeway = jwt.DefaultLeeway

var errInvalidated = errors.New("service account token has been invalidated")

// AuthenticateToken implements auth.TokenAuthenticator. A token of another
// issuer is not ours to judge: no error.
func (t *Tokens) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	issuer := unverifiedIssuer(token)
	if issuer != t.cfg.Issuer && issuer != legacyIssuer {
		return auth.Identity{}, false, nil
	}
	c, err := t.verified(token)
	if c == nil || err != nil {
		return auth.Identity{}, false, err
	}
	if c.Issuer != issuer { // read before the signature was checked
		return auth.Identity{}, false, fmt.Errorf("token issuer %q is invalid", c.Issuer)
	}
	// A legacy token names no audience and is for the API server only.
	has, want := []string(c.Audience), audiences
	if len(has) == 0 {
		has = t.cfg.Audiences
	}
	if want == nil {
		want = t.cfg.Audiences
	}
	both := intersect(has, want)
	if len(both) == 0 {
		return auth.Identity{}, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", has, want)
	}
	id := auth.Identity{Audiences: both}
	if issuer == legacyIssuer {
		id.User, id.Remarks, err = t.validateLegacy(ctx, token, c)
	} else {
		id.User, err = t.validateBound(ctx, c)
		id.Remarks = t.stale(c)
	}
	if err != nil {
		return auth.Identity{}, false, err
	}
	return id, true, nil
}

// stale says of a token that was extended that it should have been read again.
func (t *Tokens) stale(c *claims) *auth.Remarks {
	now := t.cfg.Clock.Now()
	if c.Kubernetes == nil || c.Kubernetes.WarnAfter == nil || *c.Kubernetes.WarnAfter == 0 || !now.After(c.Kubernetes.WarnAfter.Time()) {
		return nil
	}
	return &auth.Remarks{Annotations: map[string]string{"authentication.k8s.io/stale-token": fmt.Sprintf(
		"subject: %s, seconds after warning threshold: %d", c.Subject, now.Unix()-c.Kubernetes.WarnAfter.Time().Unix())}}
}

func intersect(a, b []string) []string {
	var out []string
	for _, s := range a {
		if slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

// unverifiedIssuer reads the issuer of what may be a token; do not trust it.
func unverifiedIssuer(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &c) != nil {
		return ""
	}
	return c.Issuer
}

// verified returns the claims of a token with a good signature, nil without
// an error for what is not a token at all. Signatures found good are
// remembered, for a pod sends its token with every request; everything that
// can change is checked each time by the caller.
func (t *Tokens) verified(token string) (*claims, error) {
	sum := sha256.Sum256([]byte(token))
	t.mu.Lock()
	c := t.seen[sum]
	t.mu.Unlock()
	if c != nil {
		return c, nil
	}
	parsed, err := jwt.ParseSigned(token, t.algorithms)
	if err != nil {
		return nil, nil
	}
	id := ""
	for _, h := range parsed.Headers {
		if h.KeyID != "" {
			id = h.KeyID
			break
		}
	}
	tried := false
	var errs []error
	for _, k := range t.keys {
		if id != "" && id != k.id {
			continue
		}
		tried = true
		c := &claims{}
		if err := parsed.Claims(k.key, c); err != nil {
			errs = append(errs, err)
			continue
		}
		t.mu.Lock()
		if len(t.seen) >= maxSeen {
			clear(t.seen)
		}
		t.seen[sum] = c
		t.mu.Unlock()
		return c, nil
	}
	if !tried {
		return nil, errors.New("invalid signature, no keys found")
	}
	return nil, utilerrors.NewAggregate(errs)
}

func (t *Tokens) validateBound(ctx context.Context, c *claims) (auth.User, error) {
	now := t.cfg.Clock.Now()
	switch err := c.ValidateWithLeeway(jwt.Expected{Time: now}, leeway); {
	case errors.Is(err, jwt.ErrExpired):
		return auth.User{}, errors.New("service account token has expired")
	case errors.Is(err, jwt.ErrNotValidYet):
		return auth.User{}, errors.New("service account token is not valid yet")
	case errors.Is(err, jwt.ErrIssuedInTheFuture):
		return auth.User{}, errors.New("service account token is issued in the future")
	case err != nil:
		return auth.User{}, errors.New("service account token claims could not be validated due to unexpected validation error")
	}
	k := c.Kubernetes
	if k == nil {
		k = &bound{}
	}
	gone := now.Add(-leeway) // objects deleted before this no longer back a token
	sa, err := t.cfg.Getter.ServiceAccount(ctx, k.Namespace, k.ServiceAccount.Name)
	if err != nil {
		return auth.User{}, err
	}
	if string(sa.UID) != k.ServiceAccount.UID {
		return auth.User{}, fmt.Errorf("service account UID (%s) does not match claim (%s)", sa.UID, k.ServiceAccount.UID)
	}
	if deletedBefore(sa, gone) {
		return auth.User{}, fmt.Errorf("service account %s/%s has been deleted", k.Namespace, sa.Name)
	}
	if err := t.checkBindings(ctx, k, gone); err != nil {
		return auth.User{}, err
	}
	u := user(k.Namespace, k.ServiceAccount.Name, k.ServiceAccount.UID)
	u.Extra = map[string][]string{}
	if c.ID != "" {
		u.Extra[auth.CredentialIDKey] = []string{"JTI=" + c.ID}
	}
	if k.Pod != nil && k.Pod.Name != "" && k.Pod.UID != "" {
		u.Extra[extraPodName], u.Extra[extraPodUID] = []string{k.Pod.Name}, []string{k.Pod.UID}
	}
	if k.Node != nil && k.Node.Name != "" {
		u.Extra[NodeNameKey] = []string{k.Node.Name}
		if k.Node.UID != "" {
			u.Extra[extraNodeUID] = []string{k.Node.UID}
		}
	}
	return u, nil
}

// checkBindings makes sure that what the token is bound to is still there. A
// pod's token names its node too, but only for information.
func (t *Tokens) checkBindings(ctx context.Context, k *bound, gone time.Time) error {
	if k.Secret != nil {
		secret, err := t.cfg.Getter.Secret(ctx, k.Namespace, k.Secret.Name)
		if err := checkBound(secret, err, boundTo{"secret", "secret", *k.Secret}, gone); err != nil {
			return err
		}
	}
	if k.Pod != nil {
		pod, err := t.cfg.Getter.Pod(ctx, k.Namespace, k.Pod.Name)
		if err := checkBound(pod, err, boundTo{"pod", "pod", *k.Pod}, gone); err != nil {
			return err
		}
	}
	if k.Node != nil && k.Pod == nil {
		node, err := t.cfg.Getter.Node(ctx, k.Node.Name)
		if err := checkBound(node, err, boundTo{"node", "node", *k.Node}, gone); err != nil {
			return err
		}
	}
	return nil
}

type boundTo struct {
	kind, claim string
	ref         ref
}

func checkBound(obj identified, err error, to boundTo, gone time.Time) error {
	if err != nil {
		return errInvalidated
	}
	if string(obj.GetUID()) != to.ref.UID {
		return fmt.Errorf("%s UID (%s) does not match service account %s ref claim (%s)", to.kind, obj.GetUID(), to.claim, to.ref.UID)
	}
	if deletedBefore(obj, gone) {
		return errInvalidated
	}
	return nil
}

type identified interface {
	GetUID() types.UID
	GetDeletionTimestamp() *metav1.Time
}

func deletedBefore(obj identified, at time.Time) bool {
	ts := obj.GetDeletionTimestamp()
	return ts != nil && ts.Time.Before(at)
}

// Labels of the Secrets of legacy tokens, both with a day as value.
const (
	invalidSinceLabel = "kubernetes.io/legacy-token-invalid-since"
	lastUsedLabel     = "kubernetes.io/legacy-token-last-used"
)

const autoGenerated = "Use tokens from the TokenRequest API or manually created secret-based tokens instead of auto-generated secret-based tokens."

func (t *Tokens) validateLegacy(ctx context.Context, token string, c *claims) (auth.User, *auth.Remarks, error) {
	for _, need := range []struct{ value, missing string }{
		{c.Subject, "sub claim is missing"},
		{c.LegacyNamespace, "namespace claim is missing"},
		{c.LegacySecret, "secretName claim is missing"},
		{c.LegacyName, "serviceAccountName claim is missing"},
		{c.LegacyUID, "serviceAccountUID claim is missing"},
	} {
		if need.value == "" {
			return auth.User{}, nil, errors.New(need.missing)
		}
	}
	if !auth.IsServiceAccount(c.Subject, c.LegacyNamespace, c.LegacyName) {
		return auth.User{}, nil, errors.New("sub claim is invalid")
	}
	secret, err := t.cfg.Getter.Secret(ctx, c.LegacyNamespace, c.LegacySecret)
	if err != nil || secret.DeletionTimestamp != nil {
		//lint:ignore ST1005 upstream's text
		return auth.User{}, nil, errors.New("Token has been invalidated")
	}
	if subtle.ConstantTimeCompare(secret.Data[corev1.ServiceAccountTokenKey], []byte(token)) == 0 {
		//lint:ignore ST1005 upstream's text
		return auth.User{}, nil, errors.New("Token does not match server's copy")
	}
	sa, err := t.cfg.Getter.ServiceAccount(ctx, c.LegacyNamespace, c.LegacyName)
	if err != nil {
		return auth.User{}, nil, err
	}
	if sa.DeletionTimestamp != nil {
		return auth.User{}, nil, fmt.Errorf("ServiceAccount %s/%s has been deleted", c.LegacyNamespace, c.LegacyName)
	}
	if string(sa.UID) != c.LegacyUID {
		return auth.User{}, nil, fmt.Errorf("ServiceAccount UID (%s) does not match claim (%s)", sa.UID, c.LegacyUID)
	}
	defer t.used(ctx, secret)
	if secret.Labels[invalidSinceLabel] != "" {
		err := fmt.Errorf("the token in secret %s/%s for service account %s/%s has been marked invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the '%s' label from the secret to temporarily allow use of this token",
			c.LegacyNamespace, c.LegacySecret, c.LegacyNamespace, c.LegacyName, invalidSinceLabel)
		return auth.User{}, nil, auth.NewRemarkedError(err, "authentication.k8s.io/legacy-token-invalidated", secret.Name+"/"+secret.Namespace)
	}
	remarks := &auth.Remarks{Annotations: map[string]string{"authentication.k8s.io/legacy-token-manual-secret": secret.Name}}
	if slices.ContainsFunc(sa.Secrets, func(ref corev1.ObjectReference) bool { return ref.Name == secret.Name }) {
		remarks = &auth.Remarks{Warning: autoGenerated, Annotations: map[string]string{"authentication.k8s.io/legacy-token-autogenerated-secret": secret.Name}}
	}
	return user(c.LegacyNamespace, c.LegacyName, c.LegacyUID), remarks, nil
}

// used has the day noted on which a legacy token was used, once a day.
func (t *Tokens) used(ctx context.Context, secret *corev1.Secret) {
	now, last := t.cfg.Clock.Now().UTC(), secret.Labels[lastUsedLabel]
	today := now.Format(time.DateOnly)
	if t.noteUse == nil || last == today || last == now.AddDate(0, 0, 1).Format(time.DateOnly) { // another server's clock may be ahead
		return
	}
	t.noteUse(ctx, secret, lastUsedLabel, today)
}

// NoteUse says how to note on its Secret, under a label, that a legacy token was used on a day. Set it before the first
// token is looked at; without it nothing is noted.
func (t *Tokens) NoteUse(note func(ctx context.Context, secret *corev1.Secret, label, day string)) {
	t.noteUse = note
}

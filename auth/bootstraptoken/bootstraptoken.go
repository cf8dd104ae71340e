// Package bootstraptoken authenticates joining nodes by the tokens kubeadm
// keeps in Secrets kube-system/bootstrap-token-<id>.
package bootstraptoken

import (
	"context"
	"crypto/subtle"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
)

// SecretType is the type such a Secret must have.
const SecretType = corev1.SecretType("bootstrap.kubernetes.io/token")

// GetSecret returns one Secret of kube-system, or an API NotFound error.
type GetSecret func(ctx context.Context, name string) (*corev1.Secret, error)

// Authenticator implements auth.TokenAuthenticator.
type Authenticator struct {
	get   GetSecret
	clock clock.PassiveClock
	token *regexp.Regexp
	group *regexp.Regexp
}

// New returns an authenticator over get. A nil clock is the real one.
func New(get GetSecret, c clock.PassiveClock) *Authenticator {
	if c == nil {
		c = clock.RealClock{}
	}
	return &Authenticator{
		get: get, clock: c,
		token: regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`),
		group: regexp.MustCompile(`\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`),
	}
}

// AuthenticateToken implements auth.TokenAuthenticator. A token that matches
// no usable Secret is simply not one of ours: the answer never says why, so
// that it helps no one to guess.
func (z *Authenticator) AuthenticateToken(ctx context.Context, token string, _ []string) (auth.Identity, bool, error) {
	m := z.token.FindStringSubmatch(token)
	if m == nil {
		return auth.Identity{}, false, nil
	}
	id, secret := m[1], m[2]
	s, err := z.get(ctx, "bootstrap-token-"+id)
	if apierrors.IsNotFound(err) {
		return auth.Identity{}, false, nil
	}
	if err != nil {
		return auth.Identity{}, false, err
	}
	if s.DeletionTimestamp != nil || s.Type != SecretType ||
		subtle.ConstantTimeCompare(s.Data["token-secret"], []byte(secret)) != 1 ||
		string(s.Data["token-id"]) != id || z.expired(s) ||
		string(s.Data["usage-bootstrap-authentication"]) != "true" {
		return auth.Identity{}, false, nil
	}
	groups, err := z.groups(s)
	if err != nil {
		return auth.Identity{}, false, nil
	}
	return auth.Identity{User: auth.User{Name: "system:bootstrap:" + id, Groups: groups}}, true, nil
}

// expired counts an unreadable expiration as expired.
func (z *Authenticator) expired(s *corev1.Secret) bool {
	text := string(s.Data["expiration"])
	if text == "" {
		return false
	}
	at, err := time.Parse(time.RFC3339, text)
	return err != nil || !z.clock.Now().Before(at)
}

func (z *Authenticator) groups(s *corev1.Secret) ([]string, error) {
	groups := sets.New("system:bootstrappers")
	if extra := string(s.Data["auth-extra-groups"]); extra != "" {
		for g := range strings.SplitSeq(extra, ",") {
			if !z.group.MatchString(g) {
				return nil, fmt.Errorf("bootstrap group %q is invalid", g)
			}
			groups.Insert(g)
		}
	}
	return sets.List(groups), nil
}

package bootstraptoken

import (
	"context"
	"errors"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestAuthenticateToken(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	secret := func(change map[string]string) *corev1.Secret {
		s := &corev1.Secret{Type: SecretType, Data: map[string][]byte{
			"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true"),
		}}
		for k, v := range change {
			s.Data[k] = []byte(v)
		}
		return s
	}
	deleted := secret(nil)
	deleted.DeletionTimestamp = &metav1.Time{Time: now}
	opaque := secret(nil)
	opaque.Type = corev1.SecretTypeOpaque
	const good = "abcdef.0123456789abcdef"
	for _, c := range []struct {
		name   string
		token  string
		secret *corev1.Secret
		groups []string // nil: not authenticated
	}{
		{"good", good, secret(nil), []string{"system:bootstrappers"}},
		{"more groups", good, secret(map[string]string{"auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token"}), []string{"system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token"}},
		{"not expired", good, secret(map[string]string{"expiration": "2026-01-01T01:00:00Z"}), []string{"system:bootstrappers"}},
		{"expired", good, secret(map[string]string{"expiration": "2025-12-31T23:59:59Z"}), nil},
		{"unreadable expiration", good, secret(map[string]string{"expiration": "soon"}), nil},
		{"wrong secret", "abcdef.0000000000000000", secret(nil), nil},
		{"empty secret on both sides", "abcdef.", secret(map[string]string{"token-secret": ""}), nil},
		{"another id inside", good, secret(map[string]string{"token-id": "fedcba"}), nil},
		{"not for authentication", good, secret(map[string]string{"usage-bootstrap-authentication": "false"}), nil},
		{"a forged group", good, secret(map[string]string{"auth-extra-groups": "system:masters"}), nil},
		{"deleted", good, deleted, nil},
		{"another type", good, opaque, nil},
		{"no such secret", good, nil, nil},
		{"not a bootstrap token", "eyJ.x.y", secret(nil), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := New(func(_ context.Context, name string) (*corev1.Secret, error) {
				if c.secret == nil || name != "bootstrap-token-abcdef" {
					return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
				}
				return c.secret, nil
			}, clocktesting.NewFakePassiveClock(now))
			id, ok, err := z.AuthenticateToken(context.Background(), c.token, nil)
			if err != nil || ok != (c.groups != nil) || !reflect.DeepEqual(id.User.Groups, c.groups) {
				t.Fatalf("got %+v %v %v", id, ok, err)
			}
			if ok && id.User.Name != "system:bootstrap:abcdef" {
				t.Error(id.User.Name)
			}
		})
	}
	z := New(func(context.Context, string) (*corev1.Secret, error) { return nil, errors.New("store down") }, nil)
	if _, ok, err := z.AuthenticateToken(context.Background(), good, nil); ok || err == nil {
		t.Error("a failing store must be an error")
	}
}

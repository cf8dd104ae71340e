package tokens_test

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/tokens"
)

func account() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "bot", UID: "bot-uid"}}
}

func secret(change func(*corev1.Secret)) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "tok", UID: "tok",
		Annotations: map[string]string{corev1.ServiceAccountNameKey: "bot"}}, Type: corev1.SecretTypeServiceAccountToken}
	if change != nil {
		change(s)
	}
	return s
}

func sign(_ context.Context, sa *corev1.ServiceAccount, s *corev1.Secret) (string, error) {
	return fmt.Sprintf("%s/%s/%s", sa.UID, s.Namespace, s.Name), nil
}

func get(w *enginetest.World) *corev1.Secret {
	s, err := w.Client.CoreV1().Secrets("ns").Get(w.T.Context(), "tok", metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return s
}

func TestFills(t *testing.T) {
	w := enginetest.New(t, account(), secret(nil))
	w.Build(tokens.New(w.Env, sign, []byte("CA"))).Settle()
	s := get(w)
	if got := fmt.Sprintf("%s %s %s %s", s.Data["token"], s.Data["ca.crt"], s.Data["namespace"], s.Annotations[corev1.ServiceAccountUIDKey]); got != "bot-uid/ns/tok CA ns bot-uid" {
		t.Error(got)
	}
	if n := len(w.Writes()); n != 1 {
		t.Errorf("%d writes", n)
	}
}

func TestCleansUp(t *testing.T) {
	for name, change := range map[string]func(*corev1.Secret){
		"account gone":     func(s *corev1.Secret) { s.Annotations[corev1.ServiceAccountNameKey] = "nobody" },
		"account replaced": func(s *corev1.Secret) { s.Annotations[corev1.ServiceAccountUIDKey] = "older" },
	} {
		t.Run(name, func(t *testing.T) {
			w := enginetest.New(t, account(), secret(change))
			w.Build(tokens.New(w.Env, sign, nil)).Settle()
			if get(w) != nil {
				t.Error("secret still there")
			}
		})
	}
}

func TestAccountDeletedLater(t *testing.T) {
	w := enginetest.New(t, account(), secret(nil))
	w.Build(tokens.New(w.Env, sign, nil)).Settle()
	w.Remove(account())
	w.Settle()
	if get(w) != nil {
		t.Error("secret outlives its account")
	}
}

func TestSecretDeletedIsUnlinked(t *testing.T) {
	sa := account()
	sa.Secrets = []corev1.ObjectReference{{Name: "tok"}, {Name: "other"}}
	w := enginetest.New(t, sa, secret(nil))
	w.Build(tokens.New(w.Env, sign, nil)).Settle()
	w.Remove(secret(nil))
	w.Settle()
	got, _ := w.Client.CoreV1().ServiceAccounts("ns").Get(t.Context(), "bot", metav1.GetOptions{})
	if len(got.Secrets) != 1 || got.Secrets[0].Name != "other" {
		t.Errorf("secrets %v", got.Secrets)
	}
}

func TestOtherSecretsAreLeftAlone(t *testing.T) {
	w := enginetest.New(t, secret(func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }))
	w.Build(tokens.New(w.Env, sign, []byte("CA"))).Settle()
	if writes := w.Writes(); len(writes) > 0 {
		t.Errorf("writes %v", writes)
	}
}

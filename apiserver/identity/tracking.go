package identity

import (
	"context"
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// trackingName is the ConfigMap that says since when uses of legacy tokens are noted.
const (
	trackingName = "kube-apiserver-legacy-service-account-token-tracking"
	sinceKey     = "since"
)

// track says since when: from the first server on, and again where what is there is no date.
func (i *Identity) track(ctx context.Context) error {
	maps := i.core.ConfigMaps(metav1.NamespaceSystem)
	today := i.Clock.Now().UTC().Format(time.DateOnly)
	have, err := maps.Get(ctx, trackingName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: trackingName, Namespace: metav1.NamespaceSystem}, Data: map[string]string{sinceKey: today},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	}
	if err != nil {
		return err
	}
	if _, err := time.Parse(time.DateOnly, have.Data[sinceKey]); err == nil {
		return nil
	}
	have = have.DeepCopy()
	if have.Data == nil {
		have.Data = map[string]string{}
	}
	have.Data[sinceKey] = today
	_, err = maps.Update(ctx, have, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // another server's
	}
	return err
}

// TokenUsed notes on the Secret of a legacy token that it was used on a day, which may fail: it is a note.
func (i *Identity) TokenUsed(ctx context.Context, secret *corev1.Secret, label, day string) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": secret.UID, "labels": map[string]string{label: day}}})
	if err == nil {
		_, err = i.core.Secrets(secret.Namespace).Patch(ctx, secret.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil {
		i.Log.Error("the use of a legacy token cannot be noted on its Secret", "secret", secret.Namespace+"/"+secret.Name, "error", err)
	}
}

package certificates

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// How long requests stay: once decided, and while somebody still has to act.
const (
	keepDone    = time.Hour
	keepWaiting = 24 * time.Hour
)

// NewCleaning returns the controller that removes requests: an hour after they were issued, denied
// or failed, a day after they were made or approved and nothing followed.
func NewCleaning(env engine.Env) (*engine.Controller, error) {
	requests := env.Informers.Certificates().V1().CertificateSigningRequests()
	return &engine.Controller{
		Name:    "certificatesigningrequest-cleaner-controller",
		Outputs: []engine.Resource{resource},
		Workers: 1,
		Sources: []engine.Source{engine.On(resource, requests.Informer(), onChange)},
		Reconcile: func(ctx context.Context, name string) error {
			r, err := requests.Lister().Get(name)
			if err != nil {
				return engine.IgnoreNotFound(err)
			}
			due := dueAt(r)
			if due.IsZero() {
				return nil
			}
			if left := due.Sub(env.Clock.Now()); left > 0 {
				return engine.Later(left)
			}
			return engine.IgnoreNotFound(env.Client.CertificatesV1().CertificateSigningRequests().Delete(ctx, name, metav1.DeleteOptions{
				Preconditions: metav1.NewUIDPreconditions(string(r.UID))}))
		},
	}, nil
}

// dueAt is when r goes; zero: not as it is now.
func dueAt(r *certificatesv1.CertificateSigningRequest) (due time.Time) {
	first := func(keep time.Duration, at time.Time) {
		if t := at.Add(keep); !at.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	if len(r.Status.Conditions) == 0 {
		first(keepWaiting, r.CreationTimestamp.Time)
	}
	for _, c := range r.Status.Conditions {
		switch {
		case c.Type != certificatesv1.CertificateApproved:
			first(keepDone, c.LastUpdateTime.Time)
		case len(r.Status.Certificate) == 0:
			first(keepWaiting, c.LastUpdateTime.Time)
		default:
			first(keepDone, c.LastUpdateTime.Time)
			first(0, expiry(r.Status.Certificate))
		}
	}
	return due
}

// expiry is when the first certificate of the PEM ends; zero where there is none.
func expiry(data []byte) time.Time {
	if block, _ := pem.Decode(data); block != nil {
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			return c.NotAfter
		}
	}
	return time.Time{}
}

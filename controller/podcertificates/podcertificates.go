// Package podcertificates removes PodCertificateRequests that nobody waits for any more.
package podcertificates

import (
	"context"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/engine"
)

// keep is how long a request stays: a signer decides in less, and the kubelet takes what was issued at once.
const keep = 15 * time.Minute

// New returns the cleaner of PodCertificateRequests. Each goes when it is 15 minutes old;
// upstream looks every 5 minutes.
func New(env engine.Env) (*engine.Controller, error) {
	requests := env.Informers.Certificates().V1().PodCertificateRequests()
	return &engine.Controller{
		Name:    "podcertificaterequest-cleaner-controller",
		Outputs: []engine.Resource{"podcertificaterequests.certificates.k8s.io"},
		Workers: 1,
		Sources: []engine.Source{engine.On("podcertificaterequests.certificates.k8s.io", requests.Informer(),
			func(q engine.Queue, old, new *certificatesv1.PodCertificateRequest) {
				if old == nil || new != nil && old.UID != new.UID {
					q.AddAfter(new.Namespace+"/"+new.Name, new.CreationTimestamp.Add(keep).Sub(env.Clock.Now()))
				}
			})},
		Reconcile: func(ctx context.Context, key string) error {
			ns, name := engine.SplitKey(key)
			r, err := requests.Lister().PodCertificateRequests(ns).Get(name)
			if err != nil {
				return engine.IgnoreNotFound(err)
			}
			if left := r.CreationTimestamp.Add(keep).Sub(env.Clock.Now()); left > 0 {
				return engine.Later(left)
			}
			return engine.IgnoreNotFound(env.Client.CertificatesV1().PodCertificateRequests(ns).Delete(ctx, name, metav1.DeleteOptions{
				Preconditions: metav1.NewUIDPreconditions(string(r.UID))}))
		},
	}, nil
}

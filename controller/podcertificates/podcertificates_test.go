package podcertificates_test

import (
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/controller/enginetest"
	"github.com/skiff-project/skiff/controller/podcertificates"
)

func TestRequestsAreRemovedAfterAQuarterOfAnHour(t *testing.T) {
	request := func(name string, age time.Duration) *certificatesv1.PodCertificateRequest {
		return &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "u",
			CreationTimestamp: metav1.NewTime(enginetest.Epoch.Add(-age))}}
	}
	w := enginetest.New(t, request("old", time.Hour), request("new", 0))
	w.Build(podcertificates.New(w.Env)).Settle()
	left := func(want string) {
		t.Helper()
		l, err := w.Client.CertificatesV1().PodCertificateRequests("ns").List(t.Context(), metav1.ListOptions{})
		got := ""
		if err == nil {
			for _, r := range l.Items {
				got += r.Name
			}
		}
		if err != nil || got != want {
			t.Fatalf("left: %q %v, want %q", got, err, want)
		}
	}
	left("new")
	w.Step(14 * time.Minute).Settle()
	left("new")
	w.Step(2 * time.Minute).Settle()
	left("")
}

package podcert

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestEveryKeyTypeHasItsProof(t *testing.T) {
	for _, kind := range []string{"RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"} {
		key, proof, err := newKey(kind)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		block, rest := pem.Decode(key)
		if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
			t.Fatalf("%s: %q", kind, key)
		}
		priv, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		req, err := x509.ParseCertificateRequest(proof)
		if err != nil || req.CheckSignature() != nil || req.Subject.String() != "" {
			t.Fatalf("%s: %v %v", kind, err, req)
		}
		if pub := priv.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }); !pub.Equal(req.PublicKey) {
			t.Errorf("%s: the proof is of another key", kind)
		}
	}
	if _, _, err := newKey("DSA"); err == nil {
		t.Error("an unknown key type was made")
	}
}

func TestIssuer(t *testing.T) {
	client := fake.NewClientset(&v1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "app", UID: "sa-1"}})
	clk := clocktesting.NewFakeClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	names, refuse, mu := 0, true, sync.Mutex{}
	client.PrependReactor("create", "podcertificaterequests", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if refuse {
			refuse = false
			return true, nil, errors.New("the API server is away")
		}
		r := a.(clienttesting.CreateAction).GetObject().(*certificatesv1.PodCertificateRequest)
		names++
		r.Name = []string{"", "req-1", "req-2"}[names]
		return false, nil, nil
	})
	var wg sync.WaitGroup
	changed, ctx := make(chan types.UID, 8), t.Context()
	i := New(ctx, Config{Client: client, NodeName: "n1", NodeUID: func() types.UID { return "node-1" }, Clock: clk,
		Log: slog.New(slog.DiscardHandler), Event: func(_ *v1.Pod, reason, _ string) { t.Errorf("event %s", reason) },
		Spawn:   func(f func()) { wg.Go(f) },
		Changed: func(uid types.UID) { changed <- uid }})
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "p"}, Spec: v1.PodSpec{ServiceAccountName: "app"}}
	spec := &v1.PodCertificateProjection{SignerName: "example.com/mtls", KeyType: "ED25519", MaxExpirationSeconds: new(int32(3600)),
		UserAnnotations: map[string]string{"example.com/a": "b"}}
	if i.run != nil {
		t.Error("something runs before a pod asks")
	}
	if _, _, err := i.Bundle(pod, "tls", 0, spec); err == nil || err.Error() != "credential bundle is not issued yet" {
		t.Fatal(err)
	}
	requests := client.CertificatesV1().PodCertificateRequests("ns")
	// request waits for the named one, moving the clock so that what failed is tried again.
	request := func(name string) *certificatesv1.PodCertificateRequest {
		t.Helper()
		for range 500 {
			if r, err := requests.Get(ctx, name, metav1.GetOptions{}); err == nil {
				return r
			}
			clk.Step(time.Second)
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("no request %s", name)
		return nil
	}
	issue := func(r *certificatesv1.PodCertificateRequest, chain string) {
		t.Helper()
		r.Status.Conditions = []metav1.Condition{{Type: "Issued", Status: "True"}}
		r.Status.BeginRefreshAt, r.Status.NotAfter = &metav1.Time{Time: clk.Now().Add(30 * time.Minute)}, &metav1.Time{Time: clk.Now().Add(time.Hour)}
		r.Status.CertificateChain = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(chain)}))
		if _, err := requests.UpdateStatus(ctx, r, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		select {
		case uid := <-changed:
			if uid != "p" {
				t.Errorf("changed: %s", uid)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nobody was told")
		}
	}
	first := request("req-1")
	proof, err := x509.ParseCertificateRequest(first.Spec.StubPKCS10Request)
	if err != nil {
		t.Fatal(err)
	}
	if s := first.Spec; s.SignerName != "example.com/mtls" || s.PodName != "web" || s.PodUID != "p" || s.ServiceAccountName != "app" ||
		s.ServiceAccountUID != "sa-1" || s.NodeName != "n1" || s.NodeUID != "node-1" || *s.MaxExpirationSeconds != 3600 ||
		s.UnverifiedUserAnnotations["example.com/a"] != "b" || first.GenerateName != "req-" || first.OwnerReferences[0].UID != "p" {
		t.Errorf("request: %+v", first)
	}
	issue(first, "one")
	key, chain, err := i.Bundle(pod, "tls", 0, spec)
	if err != nil || !strings.Contains(string(chain), "CERTIFICATE") {
		t.Fatalf("%q %v", chain, err)
	}
	block, _ := pem.Decode(key)
	priv, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil || !priv.(interface{ Public() crypto.PublicKey }).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(proof.PublicKey) {
		t.Error("the key is not that of the request")
	}
	clk.Step(36 * time.Minute) // 30 minutes and at most 5 of jitter
	issue(request("req-2"), "two")
	renewed, _, err := i.Bundle(pod, "tls", 0, spec)
	if err != nil || slices.Equal(renewed, key) {
		t.Errorf("a new certificate has a new key: %v", err)
	}
	if got := i.States(); got[SignerState{"example.com/mtls", "fresh"}] != 1 {
		t.Errorf("states: %v", got)
	}
	i.Forget("p")
	done, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	go func() { wg.Wait(); cancel() }()
	if <-done.Done(); !errors.Is(done.Err(), context.Canceled) || len(i.items) != 0 {
		t.Error("something still runs after the last pod")
	}
}

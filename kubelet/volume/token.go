package volume

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// tokenCache holds service account tokens by what they are for, so that several volumes of a pod,
// and refreshes before their time, share one.
type tokenCache struct {
	mu     sync.Mutex
	tokens map[string]token
}

type token struct {
	text    string
	issued  time.Time
	expires time.Time
}

const (
	maxTokenAge   = 24 * time.Hour
	retryToken    = time.Minute
	maxTokensHeld = 4096
)

// renewAt is when a token is replaced: at 80 % of its life, after a day at the latest.
func (t token) renewAt() time.Time {
	life := t.expires.Sub(t.issued)
	return t.issued.Add(min(life*4/5, maxTokenAge))
}

func tokenFile(ctx context.Context, c *content, src *v1.ServiceAccountTokenProjection) (map[string]File, time.Time, error) {
	f := c.private()
	t, err := c.pod.host.token(ctx, c.pod.pod, src)
	if err != nil {
		return nil, time.Time{}, err
	}
	f.Data = []byte(t.text)
	next := t.renewAt()
	if now := c.pod.host.Now(); !next.After(now) {
		next = now.Add(retryToken)
	}
	return map[string]File{src.Path: f}, next, nil
}

// private is a file for the pod's one user, or its group, and nobody else; where there is neither,
// it has the volume's mode.
func (c *content) private() File {
	f := File{Mode: c.mode, UID: singleUser(c.pod.pod)}
	if f.UID != nil || fsGroup(c.pod.pod) != nil {
		f.Mode = 0o600
	}
	return f
}

// certificateFiles are the key and the chain of the pod's certificate, in one file or two.
func certificateFiles(c *content, i int, src *v1.PodCertificateProjection) (map[string]File, error) {
	h := c.pod.host
	if h.Certificates == nil {
		return nil, errors.New("this node has no certificates for pods")
	}
	key, chain, err := h.Certificates.Bundle(c.pod.pod, filepath.Base(c.dir), i, src)
	if err != nil {
		return nil, err
	}
	files := map[string]File{}
	for _, f := range []struct {
		path string
		data []byte
	}{{src.CredentialBundlePath, slices.Concat(key, chain)}, {src.KeyPath, key}, {src.CertificateChainPath, chain}} {
		if f.path != "" {
			file := c.private()
			file.Data = f.data
			files[f.path] = file
		}
	}
	return files, nil
}

func (h *Host) token(ctx context.Context, pod *v1.Pod, src *v1.ServiceAccountTokenProjection) (token, error) {
	seconds := int64(3600)
	if src.ExpirationSeconds != nil {
		seconds = *src.ExpirationSeconds
	}
	key := fmt.Sprintf("%s/%s/%s/%s/%d", pod.UID, pod.Namespace, pod.Spec.ServiceAccountName, src.Audience, seconds)
	h.tokens.mu.Lock()
	have, ok := h.tokens.tokens[key]
	h.tokens.mu.Unlock()
	now := h.Now()
	if ok && now.Before(have.renewAt()) {
		return have, nil
	}
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{ExpirationSeconds: &seconds,
		BoundObjectRef: &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}}
	if src.Audience != "" {
		req.Spec.Audiences = []string{src.Audience}
	}
	res, err := h.Client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, req, metav1.CreateOptions{})
	if err != nil {
		if ok && now.Before(have.expires) {
			return have, nil // still good; tried again soon
		}
		return token{}, fmt.Errorf("failed to fetch token: %w", err)
	}
	t := token{text: res.Status.Token, issued: now, expires: res.Status.ExpirationTimestamp.Time}
	if t.expires.IsZero() {
		t.expires = now.Add(time.Duration(seconds) * time.Second)
	}
	h.tokens.mu.Lock()
	defer h.tokens.mu.Unlock()
	if h.tokens.tokens == nil || len(h.tokens.tokens) > maxTokensHeld {
		h.tokens.tokens = map[string]token{}
	}
	h.tokens.tokens[key] = t
	return t, nil
}

// ForgetTokens drops the tokens held for a pod.
func (h *Host) ForgetTokens(uid string) {
	h.tokens.mu.Lock()
	defer h.tokens.mu.Unlock()
	for k := range h.tokens.tokens {
		if strings.HasPrefix(k, uid+"/") {
			delete(h.tokens.tokens, k)
		}
	}
}

// trustBundle joins the certificates of the ClusterTrustBundles chosen, each once, in an order that
// carries no meaning.
func trustBundle(ctx context.Context, c *content, src *v1.ClusterTrustBundleProjection) (map[string]File, error) {
	api := c.pod.host.Client.CertificatesV1().ClusterTrustBundles()
	var texts []string
	switch {
	case src.Name != nil:
		b, err := api.Get(ctx, *src.Name, metav1.GetOptions{})
		if err != nil && !(apierrors.IsNotFound(err) && optional(src.Optional)) {
			return nil, fmt.Errorf("while getting ClusterTrustBundle: %w", err)
		}
		if err == nil {
			texts = append(texts, b.Spec.TrustBundle)
		}
	case src.SignerName != nil:
		sel := labels.Nothing() // no selector matches nothing, an empty one everything
		if src.LabelSelector != nil {
			s, err := metav1.LabelSelectorAsSelector(src.LabelSelector)
			if err != nil {
				return nil, fmt.Errorf("while parsing label selector: %w", err)
			}
			sel = s
		}
		list, err := api.List(ctx, metav1.ListOptions{FieldSelector: "spec.signerName=" + *src.SignerName})
		if err != nil {
			return nil, fmt.Errorf("while listing ClusterTrustBundles: %w", err)
		}
		for i := range list.Items {
			if b := &list.Items[i]; b.Spec.SignerName == *src.SignerName && sel.Matches(labels.Set(b.Labels)) {
				texts = append(texts, b.Spec.TrustBundle)
			}
		}
		if len(texts) == 0 && !optional(src.Optional) {
			return nil, fmt.Errorf("combination of signerName and labelSelector matched zero ClusterTrustBundles")
		}
	default:
		return nil, fmt.Errorf("ClusterTrustBundle projection requires either name or signerName to be set")
	}
	return map[string]File{src.Path: {Data: anchors(texts), Mode: c.mode}}, nil
}

func anchors(texts []string) []byte {
	type block struct {
		sum [32]byte
		pem []byte
	}
	var blocks []block
	for _, t := range texts {
		rest := []byte(t)
		for {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				break
			}
			blocks = append(blocks, block{sha256.Sum256(b.Bytes), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.Bytes})})
		}
	}
	slices.SortFunc(blocks, func(a, b block) int { return slices.Compare(a.sum[:], b.sum[:]) })
	var out []byte
	for i := range blocks {
		if i == 0 || blocks[i].sum != blocks[i-1].sum {
			out = append(out, blocks[i].pem...)
		}
	}
	return out
}

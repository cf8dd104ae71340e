package encryption

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Upstream's times: a plug-in is asked each minute, every ten seconds while it
// does not do its work, and what it last sealed is used for three minutes more.
const (
	kmsEvery   = time.Minute
	kmsRetry   = 10 * time.Second
	kmsCoast   = 3 * time.Minute
	kmsMaxID   = 1024
	kmsMaxNote = 32 * 1024
	// kmsOpened bounds the seeds kept opened; it is far above the number of
	// keys a plug-in had in its life.
	kmsOpened = 1000
)

// kms seals with keys made from a seed, which a plug-in on a unix socket seals
// in turn (KMS v2): the plug-in is asked when its key changes and when a seed
// is met for the first time, not for each object.
type kms struct {
	name    string
	timeout time.Duration
	log     *slog.Logger
	conn    *grpc.ClientConn
	sealer  atomic.Pointer[seed]
	failing atomic.Pointer[error]
	mu      sync.Mutex
	opened  map[string]transformer // by sealed seed with its key and annotations
}

// seed is what new values are sealed with.
type seed struct {
	transformer
	head  message // the seed as the plug-in sealed it
	until time.Time
}

func newKMS(c *KMS, log *slog.Logger) (*kms, error) {
	path := strings.TrimPrefix(c.Endpoint, "unix://")
	if strings.HasPrefix(path, "/@") { // Linux' abstract namespace
		path = path[1:]
	}
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithAuthority("localhost"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.ForceCodec(messages{})),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return nil, fmt.Errorf("could not configure KMSv2-Plugin's probe %q, error: %w", c.Name, err)
	}
	k := &kms{name: c.Name, timeout: c.Timeout.Duration, log: log, conn: conn, opened: map[string]transformer{}}
	not := errors.New("the plug-in has not answered yet")
	k.failing.Store(&not)
	return k, nil
}

func (k *kms) close() { k.conn.Close() }

func (k *kms) call(ctx context.Context, method string, req *message, annotationsAt int) (message, error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	resp := message{notesAt: annotationsAt}
	err := k.conn.Invoke(ctx, "/v2.KeyManagementService/"+method, req, &resp)
	return resp, err
}

// follow keeps the seed that new values are sealed with in step with the plug-in's key.
func (k *kms) follow(ctx context.Context) {
	for {
		wait := kmsEvery
		if k.health() != nil {
			wait = kmsRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			k.prime(ctx)
		}
	}
}

// prime asks the plug-in how it is, and has a new seed sealed if its key changed.
func (k *kms) prime(ctx context.Context) {
	err := k.check(ctx)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("kmsv2 Provider %s is not healthy, error: %w", k.name, err)
		k.log.Error("what is encrypted by a KMS plug-in may not be readable", "plugin", k.name, "error", err)
	}
	k.failing.Store(&err)
}

func (k *kms) health() error { return *k.failing.Load() }

func (k *kms) check(ctx context.Context) error {
	until := time.Now().Add(kmsCoast)
	status, err := k.call(ctx, "Status", &message{}, 0)
	if err != nil {
		return fmt.Errorf("failed to perform status section of the healthz check for KMS Provider %s, error: %w", k.name, err)
	}
	version, healthz, id := status.text(1), status.text(2), status.text(3)
	switch {
	case healthz != "ok":
		return fmt.Errorf("got unexpected healthz status: %s", healthz)
	case version != "v2" && version != "v2beta1":
		return fmt.Errorf("expected KMSv2 API version v2, got %s", version)
	}
	if err := validID(id); err != nil {
		return fmt.Errorf("got invalid KMSv2 KeyID: %w", err)
	}
	if now := k.sealer.Load(); now != nil && now.head.text(2) == id {
		k.sealer.Store(&seed{now.transformer, now.head, until})
		return nil
	}
	raw := random(32)
	req := message{}
	req.set(1, raw)
	req.set(2, []byte(uuid.NewUUID()))
	resp, err := k.call(ctx, "Encrypt", &req, 3)
	if err != nil {
		return fmt.Errorf("failed to encrypt DEK, error: %w", err)
	}
	if got := resp.text(2); got != id {
		return fmt.Errorf("failed to rotate DEK: the plug-in says its key is %q and seals with %q", id, got)
	}
	head := message{notesAt: 4, notes: resp.notes, number: seedHKDF}
	head.set(2, resp.field(2))
	head.set(3, resp.field(1))
	if err := validHead(&head); err != nil {
		return err
	}
	t := derived{raw}
	k.remember(&head, t)
	k.sealer.Store(&seed{t, head, until})
	return nil
}

func validID(id string) error {
	switch {
	case id == "":
		return errors.New("keyID is empty")
	case len(id) > kmsMaxID:
		return fmt.Errorf("keyID is %d bytes, which exceeds the max size of %d", len(id), kmsMaxID)
	}
	return nil
}

// validHead checks an EncryptedObject, but for its data.
func validHead(m *message) error {
	if m.number != seedHKDF && m.number != keyGCM {
		return fmt.Errorf("unknown encryptedDEKSourceType: %d", m.number)
	}
	switch n := len(m.field(3)); {
	case n == 0:
		return errors.New("failed to validate encrypted DEK source: encrypted DEK source is empty")
	case n > kmsMaxID:
		return fmt.Errorf("failed to validate encrypted DEK source: encrypted DEK source is %d bytes, which exceeds the max size of %d", n, kmsMaxID)
	}
	if err := validID(m.text(2)); err != nil {
		return fmt.Errorf("failed to validate key id: %w", err)
	}
	size := 0
	for name, v := range m.notes {
		size += len(name) + len(v)
		if errs := validation.IsFullyQualifiedDomainName(field.NewPath("annotations"), name); len(errs) > 0 {
			return fmt.Errorf("failed to validate annotations: %w", errs.ToAggregate())
		}
	}
	if size > kmsMaxNote {
		return fmt.Errorf("failed to validate annotations: total size of annotations is %d, which exceeds the max size of %d", size, kmsMaxNote)
	}
	return nil
}

// How a sealed seed becomes a key: EncryptedDEKSourceType.
const (
	keyGCM   = 0 // it is the key
	seedHKDF = 1 // keys are derived from it
)

func (k *kms) seal(plain, context []byte) ([]byte, error) {
	s := k.sealer.Load()
	if s == nil {
		return nil, fmt.Errorf("KMS plug-in %s has sealed no key yet: %w", k.name, errors.Join(k.health()))
	}
	if now := time.Now(); now.After(s.until) {
		return nil, fmt.Errorf("encryptedDEKSource with keyID hash %q expired at %s (current time is %s)",
			HashOf(s.head.field(2)), s.until.Format(time.RFC3339), now.Format(time.RFC3339))
	}
	data, err := s.transformer.seal(plain, context)
	if err != nil {
		return nil, err
	}
	m := s.head
	m.set(1, data)
	return m.marshal(), nil
}

func (k *kms) open(sealed, bound []byte) ([]byte, bool, error) {
	m := message{notesAt: 4}
	if err := m.unmarshal(sealed); err != nil {
		return nil, false, err
	}
	if len(m.field(1)) == 0 {
		return nil, false, errors.New("encrypted data is empty")
	}
	if err := validHead(&m); err != nil {
		return nil, false, err
	}
	t := k.known(&m)
	if t == nil {
		req := message{notesAt: 4, notes: m.notes}
		req.set(1, m.field(3))
		req.set(2, []byte(uuid.NewUUID()))
		req.set(3, m.field(2))
		resp, err := k.call(context.Background(), "Decrypt", &req, 0)
		if err != nil {
			return nil, false, fmt.Errorf("failed to decrypt DEK, error: %w", err)
		}
		if t, err = opener(resp.field(1), m.number); err != nil {
			return nil, false, err
		}
		k.remember(&m, t)
	}
	plain, _, err := t.open(m.field(1), bound)
	s := k.sealer.Load()
	return plain, s == nil || s.head.text(2) != m.text(2) || m.number != seedHKDF, err
}

func opener(key []byte, how uint64) (transformer, error) {
	if how == keyGCM {
		return newGCM(key)
	}
	if len(key) < 32 {
		return nil, fmt.Errorf("invalid seed length %d used for key generation", len(key))
	}
	return derived{key}, nil
}

func headKey(m *message) string {
	head := message{notesAt: 4, notes: m.notes, number: m.number}
	head.set(2, m.field(2))
	head.set(3, m.field(3))
	return string(head.marshal())
}

func (k *kms) known(m *message) transformer {
	key := headKey(m)
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.opened[key]
}

func (k *kms) remember(m *message, t transformer) {
	key := headKey(m)
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.opened) >= kmsOpened {
		clear(k.opened)
	}
	k.opened[key] = t
}

// derived seals each value with a key of its own: 32 random bytes, in front
// of the value, and the seed make it (HKDF with SHA-256, expand only).
type derived struct{ seed []byte }

const deriveSize = 32

func (d derived) key(info []byte) (transformer, error) {
	key, err := hkdf.Expand(sha256.New, d.seed, string(info), 32)
	if err != nil {
		return nil, err
	}
	return newGCM(key)
}

func (d derived) seal(plain, context []byte) ([]byte, error) {
	info := random(deriveSize)
	t, err := d.key(info)
	if err != nil {
		return nil, err
	}
	sealed, err := t.seal(plain, context)
	return append(info, sealed...), err
}

func (d derived) open(sealed, context []byte) ([]byte, bool, error) {
	if len(sealed) < deriveSize {
		return nil, false, errShort
	}
	t, err := d.key(sealed[:deriveSize])
	if err != nil {
		return nil, false, err
	}
	return t.open(sealed[deriveSize:], context)
}

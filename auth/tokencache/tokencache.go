// Package tokencache remembers for a while who tokens belong to, without
// keeping the tokens.
package tokencache

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"golang.org/x/sync/singleflight"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/utils/clock"

	"github.com/skiff-project/skiff/auth"
)

const (
	size = 32 << 10 // tokens remembered, as upstream
	// lookupTime bounds one question, which all who have the token share: none of them can cancel it.
	lookupTime = 30 * time.Second
)

// Cache implements auth.TokenAuthenticator.
type Cache struct {
	of        auth.TokenAuthenticator
	good, bad time.Duration
	known     *cache.LRUExpireCache
	secret    [sha256.Size]byte
	asking    singleflight.Group
	metrics   *Metrics
}

type answer struct {
	id auth.Identity
	ok bool
}

// New remembers what of says: that a token is somebody's for good, that it is
// nobody's for bad; 0 is not at all, and errors are never remembered. m counts that, or is nil.
func New(of auth.TokenAuthenticator, good, bad time.Duration, c clock.PassiveClock, m *Metrics) *Cache {
	z := &Cache{of: of, good: good, bad: bad, metrics: m, known: cache.NewLRUExpireCacheWithClock(size, c)}
	rand.Read(z.secret[:]) //nolint:errcheck // it never fails
	return z
}

// AuthenticateToken implements auth.TokenAuthenticator. Requests that come at
// once with the same token ask once.
func (z *Cache) AuthenticateToken(ctx context.Context, token string, audiences []string) (auth.Identity, bool, error) {
	began, key := time.Now(), z.key(token, audiences)
	if have, ok := z.known.Get(key); ok {
		a := have.(answer)
		z.metrics.asked(began, true)
		return a.id, a.ok, nil
	}
	defer z.metrics.asked(began, false)
	defer z.metrics.waiting()()
	shared := z.asking.DoChan(key, func() (any, error) { return z.ask(ctx, key, token, audiences) })
	select {
	case got := <-shared:
		if got.Err != nil {
			return auth.Identity{}, false, got.Err
		}
		a := got.Val.(answer)
		return a.id, a.ok, nil
	case <-ctx.Done():
		return auth.Identity{}, false, errors.Join(errors.New("the token is still being looked up"), ctx.Err())
	}
}

func (z *Cache) ask(ctx context.Context, key, token string, audiences []string) (a answer, err error) {
	if have, ok := z.known.Get(key); ok { // another one has just asked
		return have.(answer), nil
	}
	done := z.metrics.fetching()
	defer func() { done(err) }()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookupTime)
	defer cancel()
	defer func() { // this is no request's goroutine, where the server would catch it
		if r := recover(); r != nil {
			a, err = answer{}, fmt.Errorf("authentication failed unexpectedly: %v\n%s", r, debug.Stack())
		}
	}()
	if a.id, a.ok, err = z.of.AuthenticateToken(ctx, token, audiences); err != nil {
		return answer{}, err
	}
	life := z.bad
	if a.ok {
		life = z.good
	}
	if life > 0 {
		z.known.Add(key, a, life)
	}
	return a, nil
}

// key stands for a token and its audiences. Without the secret nobody can tell
// whose entry is whose, nor make two that collide.
func (z *Cache) key(token string, audiences []string) string {
	h := hmac.New(sha256.New, z.secret[:])
	number := func(n int) { h.Write(binary.BigEndian.AppendUint32(nil, uint32(n))) }
	number(len(token))
	h.Write([]byte(token))
	number(len(audiences))
	for _, a := range audiences {
		number(len(a))
		h.Write([]byte(a))
	}
	return string(h.Sum(nil))
}

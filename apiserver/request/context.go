package request

import (
	"context"
	"time"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/auth"
)

type infoKey struct{}

// WithInfo tells those who check a write which request it is of, and by whom.
func WithInfo(ctx context.Context, i *Info, u auth.User) context.Context {
	return context.WithValue(api.WithUser(ctx, u.Info()), infoKey{}, i)
}

// Waited notes that the request of ctx has waited so long for others, as webhooks.
func Waited(ctx context.Context, took time.Duration) {
	if i, ok := ctx.Value(infoKey{}).(*Info); ok {
		i.Wait(took)
	}
}

// Wait notes that the request has waited so long for its turn, or for others.
func (i *Info) Wait(took time.Duration) { i.waited.Add(int64(took)) }

// Waiting is how long it has waited so far.
func (i *Info) Waiting() time.Duration { return time.Duration(i.waited.Load()) }

// AttributesOf is what the authorizer was asked for the request of ctx; ok is false when ctx is of none.
func AttributesOf(ctx context.Context) (a auth.Attributes, ok bool) {
	i, ok := ctx.Value(infoKey{}).(*Info)
	u, known := api.UserFrom(ctx)
	if !ok || !known {
		return a, false
	}
	return i.Attributes(auth.UserOf(u)), true
}

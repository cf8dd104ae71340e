package request

import (
	"context"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/auth"
)

type infoKey struct{}

// WithInfo tells those who check a write which request it is of, and by whom.
func WithInfo(ctx context.Context, i *Info, u auth.User) context.Context {
	return context.WithValue(api.WithUser(ctx, u.Info()), infoKey{}, i)
}

// AttributesOf is what the authorizer was asked for the request of ctx; ok is false when ctx is of none.
func AttributesOf(ctx context.Context) (a auth.Attributes, ok bool) {
	i, ok := ctx.Value(infoKey{}).(*Info)
	u, known := api.UserFrom(ctx)
	if !ok || !known {
		return a, false
	}
	return i.Attributes(auth.UserOf(u)), true
}

package api

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
)

type userKey struct{}

// WithUser tells strategies who makes a request. The API server sets it; few
// resources ask (certificate signing requests record their author).
func WithUser(ctx context.Context, u authenticationv1.UserInfo) context.Context {
	return context.WithValue(ctx, userKey{}, u)
}

// UserFrom is who makes the request; ok is false when nobody was told.
func UserFrom(ctx context.Context) (u authenticationv1.UserInfo, ok bool) {
	u, ok = ctx.Value(userKey{}).(authenticationv1.UserInfo)
	return u, ok
}

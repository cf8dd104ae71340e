package authwebhook

import (
	"fmt"

	"github.com/skiff-project/skiff/auth"
)

// Options say who is asked besides the server itself.
type Options struct {
	Tokens *TokenConfig  // nil: nobody
	Access *AccessConfig // nil: nobody
	// Order of the authorizers: Node, RBAC and, with Access, Webhook. Default:
	// Node and RBAC.
	Order []string
}

// Chains makes what finds the user of a token (the server's own
// authenticators first), and what decides: members of system:masters may do
// everything, then the authorizers are asked in order.
func (o Options) Chains(tokens []auth.TokenAuthenticator, node, rbac auth.Authorizer) (auth.TokenAuthenticator, auth.Authorizer, error) {
	if o.Tokens != nil {
		z, err := NewTokens(*o.Tokens)
		if err != nil {
			return nil, nil, fmt.Errorf("token webhook: %w", err)
		}
		tokens = append(tokens, z)
	}
	named := map[string]auth.Authorizer{"Node": node, "RBAC": rbac}
	if o.Access != nil {
		z, err := NewAccess(*o.Access)
		if err != nil {
			return nil, nil, fmt.Errorf("authorization webhook: %w", err)
		}
		named["Webhook"] = z
	}
	order := o.Order
	if len(order) == 0 {
		order = []string{"Node", "RBAC"}
	}
	list := []auth.Authorizer{auth.Masters()}
	for _, name := range order {
		z := named[name]
		if z == nil {
			return nil, nil, fmt.Errorf("authorizer %s is not configured", name)
		}
		list = append(list, z)
	}
	return auth.Tokens(tokens...), auth.Authorizers(list...), nil
}

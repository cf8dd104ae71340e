// Package auth decides who a request comes from and whether it may be done.
// Decisions are pure: policy and request in, verdict out. The API server
// reads the policy objects and the request; this package never does I/O of
// its own.
package auth

import (
	"context"
	"errors"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/fields"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

// User is an authenticated identity.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// UserOf is the user a TokenReview tells of.
func UserOf(info authenticationv1.UserInfo) User {
	u := User{Name: info.Username, UID: info.UID, Groups: info.Groups}
	for k, v := range info.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[k] = v
	}
	return u
}

// Info is the user as API objects tell of users.
func (u User) Info() authenticationv1.UserInfo {
	out := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	for k, v := range u.Extra {
		if out.Extra == nil {
			out.Extra = map[string]authenticationv1.ExtraValue{}
		}
		out.Extra[k] = v
	}
	return out
}

// Well-known users and groups.
const (
	UserAnonymous        = "system:anonymous"
	GroupAuthenticated   = "system:authenticated"
	GroupUnauthenticated = "system:unauthenticated"
	GroupMasters         = "system:masters"
	GroupNodes           = "system:nodes"
	GroupServiceAccounts = "system:serviceaccounts"
)

// Identity is the outcome of a successful authentication.
type Identity struct {
	User User
	// Audiences is the intersection of the audiences asked for and those the
	// credential is valid for; nil when the method has no audiences.
	Audiences []string
	// Remarks on the credential; nil: none.
	Remarks *Remarks
}

// Remarks are what is said of a credential beside whose it is.
type Remarks struct {
	Warning     string            // for who sent it; "": none
	Annotations map[string]string // of the audit event
}

// Says tells whether there is an annotation; r may be nil.
func (r *Remarks) Says(annotation string) bool { return r != nil && r.Annotations[annotation] != "" }

// RemarkedError is why a credential is not good, with annotations of the audit event.
type RemarkedError struct {
	error
	Remarks Remarks
}

// NewRemarkedError annotates err.
func NewRemarkedError(err error, key, value string) error {
	return &RemarkedError{err, Remarks{Annotations: map[string]string{key: value}}}
}

// RemarksOf are those of an error, or of the first error in a list that has any; nil: none.
func RemarksOf(err error) *Remarks {
	if list, ok := err.(utilerrors.Aggregate); ok { // which errors.As does not look into
		for _, err := range list.Errors() {
			if r := RemarksOf(err); r != nil {
				return r
			}
		}
	}
	var e *RemarkedError
	if errors.As(err, &e) {
		return &e.Remarks
	}
	return nil
}

// Authenticator finds who sent a request. It returns false without an error
// when the request carries no credential of its kind, and an error when it
// carries a bad one.
type Authenticator interface {
	Authenticate(req *http.Request) (Identity, bool, error)
}

// TokenAuthenticator validates a bearer token for the given audiences; nil
// audiences means the API server's own.
type TokenAuthenticator interface {
	AuthenticateToken(ctx context.Context, token string, audiences []string) (Identity, bool, error)
}

// Attributes describes one request for authorization and admission.
type Attributes struct {
	User            User
	Verb            string // get, list, watch, create, update, patch, delete, deletecollection, connect-like verbs; or the lower-case HTTP method for non-resource paths
	Namespace       string
	APIGroup        string
	APIVersion      string
	Resource        string
	Subresource     string
	Name            string
	ResourceRequest bool
	Path            string // for non-resource requests
	// FieldSelector is the parsed field selector of a list, watch or
	// deletecollection. The Node authorizer lets a kubelet list pods only with
	// spec.nodeName=<its node>. As upstream, a selector with exactly
	// metadata.name=x also sets Name.
	FieldSelector fields.Requirements
	// LabelSelector is the label selector of one, as the client wrote it.
	LabelSelector string
}

// Decision is an authorizer's verdict.
type Decision uint8

// Decisions. NoOpinion lets the next authorizer in the chain decide; at the
// end of the chain it denies.
const (
	NoOpinion Decision = iota
	Allow
	Deny
)

// Authorizer decides whether a request may be done, with the reason a user
// should see when it is denied.
type Authorizer interface {
	Authorize(ctx context.Context, a Attributes) (d Decision, reason string, err error)
}

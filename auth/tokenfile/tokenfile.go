// Package tokenfile knows users by the tokens in a file. Whoever reads the file is all of them; there are better ways.
package tokenfile

import (
	"context"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/skiff-project/skiff/auth"
)

// Tokens implements auth.TokenAuthenticator; its tokens know of no audiences.
type Tokens map[[sha256.Size]byte]auth.User // by the token's hash, so that a look-up takes the same time for each wrong token

// Read reads lines of CSV: token, user's name, user's UID and, quoted, groups with commas between them. A later line with
// the same token counts; lines without a token do not.
func Read(r io.Reader) (Tokens, error) {
	t, lines := Tokens{}, csv.NewReader(r)
	lines.FieldsPerRecord = -1
	for {
		line, err := lines.Read()
		switch {
		case errors.Is(err, io.EOF):
			return t, nil
		case err != nil:
			return nil, err
		case len(line) < 3:
			return nil, fmt.Errorf("it must have at least 3 columns (token, user name, user uid), found %d", len(line))
		case line[0] == "":
			continue
		}
		u := auth.User{Name: line[1], UID: line[2]}
		if len(line) > 3 {
			u.Groups = strings.Split(line[3], ",")
		}
		t[sha256.Sum256([]byte(line[0]))] = u
	}
}

// AuthenticateToken implements auth.TokenAuthenticator.
func (t Tokens) AuthenticateToken(_ context.Context, token string, _ []string) (auth.Identity, bool, error) {
	u, ok := t[sha256.Sum256([]byte(token))]
	return auth.Identity{User: u}, ok, nil
}

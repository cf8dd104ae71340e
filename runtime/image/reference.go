package image

import (
	"fmt"
	"regexp"
	"strings"
)

// Reference is an image name in its full form.
type Reference struct {
	Name   string // docker.io/library/nginx
	Tag    string // latest; empty with a digest only
	Digest string // sha256:…; empty with a tag only
}

var (
	nameRE   = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?|\[[a-fA-F0-9:]+\](?::[0-9]+)?)(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)+$`)
	tagRE    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	digestRE = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
)

// Parse reads an image reference as users write it and completes it: "nginx" becomes
// docker.io/library/nginx:latest. It refuses whatever the distribution specification
// does not allow.
func Parse(s string) (Reference, error) {
	if len(s) == 0 || len(s) > 511 {
		return Reference{}, fmt.Errorf("couldn't parse image name %q: invalid reference format", s)
	}
	var r Reference
	rest := s
	if name, digest, ok := strings.Cut(rest, "@"); ok {
		rest, r.Digest = name, digest
		if !digestRE.MatchString(digest) {
			return Reference{}, fmt.Errorf("couldn't parse image name %q: invalid digest", s)
		}
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, r.Tag = rest[:i], rest[i+1:]
		if !tagRE.MatchString(r.Tag) {
			return Reference{}, fmt.Errorf("couldn't parse image name %q: invalid tag", s)
		}
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	r.Name = fullName(rest)
	if !nameRE.MatchString(r.Name) {
		return Reference{}, fmt.Errorf("couldn't parse image name %q: invalid reference format", s)
	}
	return r, nil
}

func fullName(name string) string {
	host, path, ok := strings.Cut(name, "/")
	isHost := strings.ContainsAny(host, ".:[") || host == "localhost" || host != strings.ToLower(host)
	if !ok || !isHost {
		host, path = "docker.io", name
	}
	if host == "index.docker.io" {
		host = "docker.io"
	}
	if host == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return host + "/" + path
}

// Tagged is name:tag, or empty.
func (r Reference) Tagged() string {
	if r.Tag == "" {
		return ""
	}
	return r.Name + ":" + r.Tag
}

// Digested is name@digest, or empty.
func (r Reference) Digested() string {
	if r.Digest == "" {
		return ""
	}
	return r.Name + "@" + r.Digest
}

// String is the most exact form.
func (r Reference) String() string {
	s := r.Name
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Auth is what a registry may ask for; all empty means anonymous.
type Auth struct {
	Username, Password, Basic, IdentityToken, RegistryToken string
}

func (a Auth) authenticator() (authn.Authenticator, error) {
	cfg := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Basic != "" && cfg.Username == "" {
		b, err := base64.StdEncoding.DecodeString(a.Basic)
		if err != nil {
			return nil, errors.New("registry credentials: auth is not base64")
		}
		user, pass, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
		if !ok {
			return nil, errors.New("registry credentials: auth is not user:password")
		}
		cfg.Username, cfg.Password = user, pass
	}
	if cfg == (authn.AuthConfig{}) {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(cfg), nil
}

// Pull fetches an image and returns it. Two pulls of one name at once share the work.
// Loopback registries are reached without TLS.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth) (Image, error) {
	r, err := Parse(ref)
	if err != nil {
		return Image{}, err
	}
	key := r.String()
	for {
		s.mu.Lock()
		other, busy := s.making[key]
		if !busy {
			s.making[key] = make(chan struct{})
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
		select {
		case <-other:
			if img, err := s.Resolve(key); err == nil {
				return img, nil
			}
		case <-ctx.Done():
			return Image{}, ctx.Err()
		}
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.making[key])
		delete(s.making, key)
	}()
	img, err := s.pull(ctx, r, auth)
	if err != nil {
		return Image{}, fmt.Errorf("failed to pull image %q: %w", ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, r Reference, as Auth) (Image, error) {
	auth, err := as.authenticator()
	if err != nil {
		return Image{}, err
	}
	ro := []remote.Option{remote.WithContext(ctx), remote.WithUserAgent("skiff"),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}), remote.WithJobs(s.cfg.Concurrency)}
	desc, err := s.fetch(ctx, r, ro, remote.WithAuth(auth))
	if err != nil {
		return Image{}, err
	}
	remoteImage, err := desc.Image()
	if err != nil {
		return Image{}, err
	}
	c, err := remoteCandidate(remoteImage)
	if err != nil {
		return Image{}, err
	}
	img, release, err := s.build(ctx, c)
	if release != nil {
		defer release()
	}
	if err != nil {
		return Image{}, errors.Join(err, s.afterFailure(release))
	}
	// Names come from what was asked for, never from the image (CVE-2026-53488).
	if r.Tag != "" && r.Digest == "" {
		img.Tags = []string{r.Tagged()}
	}
	img.Digests = []string{r.Name + "@" + desc.Digest.String()}
	if err := s.add(img); err != nil {
		return Image{}, err
	}
	return *img, nil
}

func remoteCandidate(img v1.Image) (candidate, error) {
	var c candidate
	var err error
	if c.manifest, err = img.RawManifest(); err != nil {
		return c, err
	}
	if c.config, err = img.RawConfigFile(); err != nil {
		return c, err
	}
	if len(c.manifest) > maxJSON || len(c.config) > maxJSON {
		return c, fmt.Errorf("manifest or configuration is larger than %d bytes", maxJSON)
	}
	layers, err := img.Layers()
	if err != nil {
		return c, err
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			return c, err
		}
		size, err := l.Size()
		if err != nil {
			return c, err
		}
		c.layers = append(c.layers, source{digest: d.String(), size: size,
			open: func(context.Context) (io.ReadCloser, error) { return l.Compressed() }})
	}
	return c, nil
}

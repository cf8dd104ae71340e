package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"sigs.k8s.io/yaml"
)

// endpoints are the servers that may stand in for a registry, in order, by a file in k3s' form:
//
//	mirrors:
//	  registry.k8s.io:
//	    endpoint: ["http://192.0.2.1:5000"]
//
// "*" is any registry. The file is read at each pull, so that a change needs no restart; without a
// file there are none.
func endpoints(file, registry string) ([]string, error) {
	data, err := os.ReadFile(file)
	if file == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the mirrors of registries: %w", err)
	}
	var f struct {
		Mirrors map[string]struct {
			Endpoint []string `json:"endpoint"`
		} `json:"mirrors"`
	}
	if err := yaml.UnmarshalStrict(data, &f); err != nil {
		return nil, fmt.Errorf("the mirrors of registries in %s: %w", file, err)
	}
	m, ok := f.Mirrors[registry]
	if !ok {
		m = f.Mirrors["*"]
	}
	return m.Endpoint, nil
}

// fetch finds what is to be pulled: on the first mirror that has it, else on the registry itself. A
// mirror never sees the credentials, which are the registry's.
func (s *Store) fetch(ctx context.Context, r Reference, ro []remote.Option, auth remote.Option) (*remote.Descriptor, error) {
	host, repository, _ := strings.Cut(r.Name, "/")
	version := ":" + r.Tag
	if r.Digest != "" {
		version = "@" + r.Digest
	}
	mirrors, err := endpoints(s.cfg.Mirrors, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, m := range mirrors {
		u, err := url.Parse(m)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("the mirror %q of %s in %s: want http://HOST or https://HOST", m, host, s.cfg.Mirrors)
		}
		var opts []name.Option
		if u.Scheme == "http" {
			opts = append(opts, name.Insecure)
		}
		desc, err := get(path.Join(u.Host, strings.TrimPrefix(u.Path+"/", "/v2/"), repository)+version, opts, ro)
		if err == nil {
			return desc, nil
		}
		errs = append(errs, fmt.Errorf("mirror %s: %w", m, err))
	}
	desc, err := get(r.Name+version, nil, append(ro[:len(ro):len(ro)], auth))
	if err != nil {
		return nil, errors.Join(append(errs, err)...)
	}
	return desc, nil
}

func get(ref string, opts []name.Option, ro []remote.Option) (*remote.Descriptor, error) {
	r, err := name.ParseReference(ref, opts...)
	if err != nil {
		return nil, err
	}
	return remote.Get(r, ro...)
}

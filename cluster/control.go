package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/cluster/rotation"
)

// Status is what `skiff status` shows.
type Status struct {
	Version    string            `json:"version"`
	Kubernetes string            `json:"kubernetes"`
	PID        int               `json:"pid"`
	Since      time.Time         `json:"since"`
	Options    Options           `json:"options"`
	Components []ComponentStatus `json:"components"`
	// CertificateExpiry is when the first of the cluster's certificates ends.
	CertificateExpiry time.Time `json:"certificateExpiry"`
}

// ComponentStatus is one component's health.
type ComponentStatus struct {
	Name   string `json:"name"`
	Health string `json:"health"` // "ok", or what is wrong
	Detail string `json:"detail,omitempty"`
}

// Image is one local image.
type Image struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	Bytes uint64   `json:"bytes"`
}

// imageStore is what image commands need of the runtime.
type imageStore interface {
	ListImages(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error)
	PullImage(ctx context.Context, image *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error)
	RemoveImage(ctx context.Context, image *runtimeapi.ImageSpec) error
	// LoadReader stores the images of an OCI or Docker archive and returns
	// their names; on an error nothing of it stays.
	LoadReader(ctx context.Context, archive io.Reader) ([]string, error)
}

// control answers skiff's own commands on a socket only root can open.
type control struct {
	status func() Status
	images imageStore
	// rotate makes a new key for Secrets; nil: not this process's business.
	rotate func(context.Context, func(rotation.Step)) error
}

// serveControl listens on the control socket until ctx ends. The folder is
// 0700 and the socket 0600: who can connect is who owns the cluster.
func serveControl(ctx context.Context, path string, c control) (func() error, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	srv := &http.Server{
		Handler: c.handler(), ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	return func() error {
		context.AfterFunc(ctx, func() { srv.Close() })
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}, nil
}

func (c control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, c.status(), nil) })
	mux.HandleFunc("GET /images", func(w http.ResponseWriter, r *http.Request) {
		list, err := c.images.ListImages(r.Context(), nil)
		reply(w, describe(list), err)
	})
	mux.HandleFunc("POST /images", func(w http.ResponseWriter, r *http.Request) {
		names, err := c.images.LoadReader(r.Context(), r.Body)
		if err == nil { // an answer before the end would look like a broken connection
			_, err = io.Copy(io.Discard, r.Body)
		}
		reply(w, names, err)
	})
	mux.HandleFunc("POST /images/pull", func(w http.ResponseWriter, r *http.Request) {
		id, err := c.images.PullImage(r.Context(), &runtimeapi.ImageSpec{Image: r.FormValue("name")}, nil, nil)
		reply(w, id, err)
	})
	mux.HandleFunc("DELETE /images", func(w http.ResponseWriter, r *http.Request) {
		err := c.images.RemoveImage(r.Context(), &runtimeapi.ImageSpec{Image: r.FormValue("name")})
		reply(w, nil, err)
	})
	if c.rotate != nil {
		mux.HandleFunc("POST /secrets/rotate", c.rotateSecrets)
	}
	return mux
}

// rotateSecrets answers with a line for each step; the last may have an error.
func (c control) rotateSecrets(w http.ResponseWriter, r *http.Request) {
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	step := func(s rotation.Step) {
		_ = out.Encode(s) // the rotation goes on without a reader
		_ = flush.Flush()
	}
	if err := c.rotate(context.WithoutCancel(r.Context()), step); err != nil {
		step(rotation.Step{Error: err.Error()})
	}
}

func describe(list []*runtimeapi.Image) []Image {
	out := make([]Image, 0, len(list))
	for _, i := range list {
		out = append(out, Image{ID: i.Id, Names: append(i.RepoTags, i.RepoDigests...), Bytes: i.Size})
	}
	return out
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the reader has gone: nobody to tell
}

// Client speaks to the live processes of a data folder: the first node's, and
// for images those of the further nodes too.
type Client struct{ nodes []nodeClient }

// nodeClient speaks to one process.
type nodeClient struct{ http *http.Client }

// NewClient connects to the control sockets of a data folder when first used.
func NewClient(dataDir string) *Client {
	o := Options{DataDir: dataDir}
	sockets, _ := filepath.Glob(o.path("nodes", "[^.]*", filepath.Base(o.ControlSocket()))) // it fails on a bad pattern only
	c := &Client{}
	for _, path := range append([]string{o.ControlSocket()}, sockets...) {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, Problem{
					What: "no cluster is running in " + filepath.Dir(path),
					Fix:  "start one with 'sudo skiff up -d', or name its folder with --data-dir",
				}
			}
			return conn, nil
		}
		c.nodes = append(c.nodes, nodeClient{&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}})
	}
	return c
}

// each asks every node at once.
func (c *Client) each(ask func(i int, n nodeClient) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(c.nodes))
	for i, n := range c.nodes {
		wg.Go(func() { errs[i] = ask(i, n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Status asks for the cluster's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.nodes[0].call(ctx, http.MethodGet, "/status", nil, &s)
}

// Images lists the first node's images.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var list []Image
	return list, c.nodes[0].call(ctx, http.MethodGet, "/images", nil, &list)
}

// LoadImages sends an archive to every node and returns the names loaded.
func (c *Client) LoadImages(ctx context.Context, archive io.Reader) ([]string, error) {
	names := make([][]string, len(c.nodes))
	readers, writers := make([]*io.PipeReader, len(c.nodes)), make([]io.Writer, len(c.nodes))
	for i := range c.nodes {
		readers[i], writers[i] = io.Pipe()
	}
	go func() {
		_, err := io.Copy(io.MultiWriter(writers...), archive)
		for _, w := range writers {
			w.(*io.PipeWriter).CloseWithError(err)
		}
	}()
	err := c.each(func(i int, n nodeClient) error {
		defer readers[i].CloseWithError(errors.New("another node took it no further"))
		return n.call(ctx, http.MethodPost, "/images", readers[i], &names[i])
	})
	return names[0], err
}

// PullImage pulls an image from its registry to every node.
func (c *Client) PullImage(ctx context.Context, name string) (id string, err error) {
	ids := make([]string, len(c.nodes))
	err = c.each(func(i int, n nodeClient) error {
		return n.call(ctx, http.MethodPost, "/images/pull?name="+url.QueryEscape(name), nil, &ids[i])
	})
	return ids[0], err
}

// RemoveImage removes an image by name or ID from every node.
func (c *Client) RemoveImage(ctx context.Context, name string) error {
	return c.each(func(_ int, n nodeClient) error {
		return n.call(ctx, http.MethodDelete, "/images?name="+url.QueryEscape(name), nil, nil)
	})
}

// RotateSecrets makes a new key for Secrets, has them stored under it, and
// tells of each step.
func (c *Client) RotateSecrets(ctx context.Context, progress func(rotation.Step)) error {
	return c.nodes[0].answer(ctx, http.MethodPost, "/secrets/rotate", nil, func(body io.Reader) error {
		for lines := json.NewDecoder(body); ; {
			var s rotation.Step
			switch err := lines.Decode(&s); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return err
			case s.Error != "":
				return errors.New(s.Error)
			}
			progress(s)
		}
	})
}

func (c nodeClient) call(ctx context.Context, method, path string, body io.Reader, out any) error {
	return c.answer(ctx, method, path, body, func(body io.Reader) error {
		if out == nil {
			return nil
		}
		return json.NewDecoder(body).Decode(out)
	})
}

// answer hands read the body of a good answer.
func (c nodeClient) answer(ctx context.Context, method, path string, body io.Reader, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://skiff"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var p Problem
		if errors.As(err, &p) {
			return p
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var e struct{ Error string }
		if json.NewDecoder(resp.Body).Decode(&e) == nil && e.Error != "" {
			return errors.New(e.Error)
		}
		return errors.New("skiff answered " + resp.Status)
	}
	return read(resp.Body)
}

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/skiff-project/skiff/test/reference"
)

// pair is the two servers and what came of comparing them.
type pair struct {
	focus *regexp.Regexp // what to report
	only  *regexp.Regexp // what to ask about
	trace bool
	known []exception
	out   io.Writer

	servers     [2]server // upstream's, then Skiff's
	requests    int
	differences int         // that nothing explains
	used        map[int]int // how many differences each known one explained
	answers     map[int]int // requests by upstream's status
}

type server struct {
	cluster *reference.Cluster
	url     string
	client  *http.Client // the administrator's
	bare    *http.Client // without a certificate
}

// start runs both API servers, without controllers: nothing but the requests
// changes what is stored.
func (p *pair) start(ctx context.Context, skiff string, upstream reference.Binaries) error {
	skiff, err := filepath.Abs(skiff)
	if err != nil {
		return err
	}
	p.answers = map[int]int{}
	for i, o := range []reference.Options{
		{Etcd: upstream.Program("etcd"), APIServer: upstream.Program("kube-apiserver")},
		{Etcd: reference.Skiff(skiff, "etcd"), APIServer: reference.Skiff(skiff, "kube-apiserver")},
	} {
		if p.servers[i], err = startServer(ctx, o); err != nil {
			return fmt.Errorf("start %s: %w", [2]string{"upstream", "Skiff"}[i], err)
		}
	}
	return nil
}

func startServer(ctx context.Context, o reference.Options) (server, error) {
	c, err := reference.Start(ctx, o)
	if err != nil {
		return server{}, err
	}
	s := server{cluster: c}
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return s, err
	}
	conf, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return s, err
	}
	s.url = cfg.Host
	s.client, s.bare = client(conf), client(&tls.Config{RootCAs: conf.RootCAs})
	return s, nil
}

func client(conf *tls.Config) *http.Client {
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: false, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}},
		Timeout:       70 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (p *pair) stop() error {
	var errs []error
	for _, s := range p.servers {
		if s.cluster != nil {
			errs = append(errs, s.cluster.Stop())
		}
	}
	return errors.Join(errs...)
}

// request is what both are asked.
type request struct {
	name         string // for people, and for known.txt
	method, path string
	accept       string // default JSON
	contentType  string // default JSON
	headers      [][2]string
	tokens       [2]string // who asks upstream's server and Skiff's; default the administrator
	body         []byte
	// live changes what GET of the path (without its query) answers into the
	// body; each server gets its own object back. It is asked once for each
	// path until the next request that may change it (see forget).
	live func(object any) any
	from string // where live reads, if not at path
	// shown is the part of the body to compare, if not all.
	shown func(body any) any
}

// answer is one server's.
type answer struct {
	code     int
	header   http.Header
	body     []byte
	err      error
	warnings []string
}

func (s *server) do(ctx context.Context, r request, body []byte) answer {
	req, err := http.NewRequestWithContext(ctx, r.method, s.url+r.path, bytes.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Header.Set("Accept", or(r.accept, "application/json"))
	if len(body) > 0 {
		req.Header.Set("Content-Type", or(r.contentType, "application/json"))
	}
	for _, h := range r.headers {
		req.Header.Add(h[0], h[1])
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{code: resp.StatusCode, header: resp.Header, warnings: resp.Header.Values("Warning")}
	a.body, a.err = io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	return a
}

// object asks one server for an object.
func (s *server) object(ctx context.Context, path string) (map[string]any, error) {
	a := s.do(ctx, request{method: "GET", path: path}, nil)
	if a.err != nil {
		return nil, a.err
	}
	if a.code != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %d %s", path, a.code, firstLine(string(a.body)))
	}
	var o map[string]any
	return o, json.Unmarshal(a.body, &o)
}

// send asks both and reports how their answers differ. It returns upstream's status.
func (p *pair) send(ctx context.Context, r request) int {
	bodies := [2][]byte{r.body, r.body}
	if r.live != nil {
		for i := range p.servers {
			object, err := p.servers[i].object(ctx, or(r.from, strings.SplitN(r.path, "?", 2)[0]))
			if err != nil {
				p.report(r.name, []string{fmt.Sprintf("server %d lacks the object: %v", i, err)})
				return 0
			}
			if bodies[i], err = json.Marshal(r.live(object)); err != nil {
				p.report(r.name, []string{err.Error()})
				return 0
			}
		}
	}
	return p.exchange(ctx, r, bodies)
}

func (p *pair) exchange(ctx context.Context, r request, bodies [2][]byte) int {
	var answers [2]answer
	var wg sync.WaitGroup
	for i := range p.servers {
		r, s := r, p.servers[i]
		if r.tokens[i] != "" {
			s.client = s.bare
			r.headers = append(r.headers[:len(r.headers):len(r.headers)], [2]string{"Authorization", "Bearer " + r.tokens[i]})
		}
		wg.Go(func() { answers[i] = s.do(ctx, r, bodies[i]) })
	}
	wg.Wait()
	p.requests++
	p.answers[answers[0].code]++
	if p.trace {
		fmt.Fprintf(p.out, "%s\n\t= %d %s\n", r.name, answers[0].code, brief(answers[0].body))
	}
	p.report(r.name, compare(answers[0], answers[1], r.shown))
	return answers[0].code
}

// report prints the differences that are not known.
func (p *pair) report(name string, differences []string) {
	for _, d := range differences {
		if i := slices.IndexFunc(p.known, func(e exception) bool { return e.request.MatchString(name) && e.difference.MatchString(d) }); i >= 0 {
			p.used[i]++
			continue
		}
		if !p.focus.MatchString(name) {
			continue
		}
		p.differences++
		fmt.Fprintf(p.out, "%s\n\t%s\n", name, d)
	}
}

// verdict sums up; it is an error unless every difference is known and every
// known one was met, but for those that come at times.
func (p *pair) verdict() error {
	codes := []string{}
	for code, n := range p.answers {
		codes = append(codes, fmt.Sprintf("%d: %d", code, n))
	}
	slices.Sort(codes)
	explained := 0
	for _, n := range p.used {
		explained += n
	}
	fmt.Fprintf(p.out, "%d requests (upstream's answers %s), %d known differences, %d unknown\n", p.requests, strings.Join(codes, ", "), explained, p.differences)
	var errs []error
	if p.differences > 0 {
		errs = append(errs, fmt.Errorf("%d differences that known.txt does not explain", p.differences))
	}
	for i, e := range p.known {
		if p.used[i] == 0 && p.only.String() == "" && !strings.HasPrefix(e.reason, "At times") {
			errs = append(errs, fmt.Errorf("known.txt explains what does not differ: %s", e.text))
		}
	}
	return errors.Join(errs...)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

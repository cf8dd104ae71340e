package etcdctl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// v2 is the etcdctl of the v2 API, small, on plain HTTP. Commands, options and
// output are those of etcd 3.4's.
type v2 struct {
	in       io.Reader
	out      io.Writer
	endpoint []string
	client   *http.Client

	endpoints, certFile, keyFile, caFile, user, format string
	timeout, totalTimeout                              time.Duration
	noSync, debug                                      bool
}

// exitError ends the command with a status of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }

// RunV2 runs a command of the v2 API and returns its exit status: 1 for bad arguments, 4
// when the server refuses.
func RunV2(args []string, env func(string) string, in io.Reader, out, errOut io.Writer) int {
	c := &v2{in: in, out: out}
	root := c.commands(env)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.Execute()
	if err == nil {
		return 0
	}
	code := 1
	if exit := (*exitError)(nil); errors.As(err, &exit) {
		code = exit.code
	}
	fmt.Fprintln(errOut, "Error: ", err)
	return code
}

func (c *v2) commands(env func(string) string) *cobra.Command {
	root := &cobra.Command{Use: "etcdctl", Short: "A simple command line client for etcd (v2 API).", SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return c.connect() }}
	root.CompletionOptions.DisableDefaultCmd = true
	or := func(name, def string) string {
		if v := env("ETCDCTL_" + name); v != "" {
			return v
		}
		return def
	}
	f := root.PersistentFlags()
	f.StringVar(&c.endpoints, "endpoints", or("ENDPOINTS", or("ENDPOINT", or("PEERS", "http://127.0.0.1:2379,http://127.0.0.1:4001"))), "comma-separated list of servers")
	f.StringVarP(&c.endpoints, "peers", "C", c.endpoints, "old name of --endpoints")
	f.StringVar(&c.endpoints, "endpoint", c.endpoints, "old name of --endpoints")
	f.StringVar(&c.certFile, "cert-file", or("CERT_FILE", ""), "client certificate")
	f.StringVar(&c.keyFile, "key-file", or("KEY_FILE", ""), "key of the client certificate")
	f.StringVar(&c.caFile, "ca-file", or("CA_FILE", ""), "CA of the servers' certificates")
	f.StringVarP(&c.user, "username", "u", or("USERNAME", ""), "username[:password]")
	f.StringVarP(&c.format, "output", "o", "simple", "simple, extended or json")
	f.DurationVar(&c.timeout, "timeout", 2*time.Second, "time a connection may take")
	f.DurationVar(&c.totalTimeout, "total-timeout", 5*time.Second, "time a command may take")
	f.BoolVar(&c.noSync, "no-sync", false, "do not ask the servers for their addresses")
	f.BoolVar(&c.debug, "debug", false, "show requests as curl commands")
	root.AddCommand(c.writers()...)
	root.AddCommand(c.readers()...)
	root.AddCommand(c.watchers()...)
	root.AddCommand(c.memberCommands(), c.health())
	return root
}

// connect makes the HTTP client and finds the servers.
func (c *v2) connect() error {
	conf := &tls.Config{}
	if c.caFile != "" {
		data, err := os.ReadFile(c.caFile)
		if err != nil {
			return err
		}
		conf.RootCAs = x509.NewCertPool()
		conf.RootCAs.AppendCertsFromPEM(data)
	}
	if c.certFile != "" {
		cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
		if err != nil {
			return err
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	c.client = &http.Client{Transport: &http.Transport{TLSClientConfig: conf, TLSHandshakeTimeout: c.timeout, ForceAttemptHTTP2: true}}
	c.endpoint = nil
	for e := range strings.SplitSeq(c.endpoints, ",") {
		if !strings.Contains(e, "://") {
			e = "http://" + e
		}
		c.endpoint = append(c.endpoint, strings.TrimSuffix(e, "/"))
	}
	return nil
}

// send asks one server after the other until one answers.
func (c *v2) send(ctx context.Context, method, path string, form url.Values) (*http.Response, error) {
	var errs []string
	for _, e := range c.endpoint {
		target, body := e+path, io.Reader(http.NoBody)
		if method == http.MethodPut || method == http.MethodPost {
			body = strings.NewReader(form.Encode())
		} else if len(form) > 0 {
			target += "?" + form.Encode()
		}
		req, err := http.NewRequestWithContext(ctx, method, target, body)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if name, password, ok := strings.Cut(c.user, ":"); ok {
			req.SetBasicAuth(name, password)
		}
		if c.debug {
			fmt.Fprintf(os.Stderr, "Curl-Example: curl -X %s %s\n", method, target)
		}
		resp, err := c.client.Do(req)
		if err == nil {
			return resp, nil
		}
		errs = append(errs, fmt.Sprintf("error #%d: %v", len(errs), errors.Unwrap(err)))
	}
	return nil, &exitError{4, fmt.Errorf("client: etcd cluster is unavailable or misconfigured; %s", strings.Join(errs, "; "))}
}

// node and response are what the server tells.
type node struct {
	Key           string  `json:"key"`
	Dir           bool    `json:"dir,omitempty"`
	Value         string  `json:"value"`
	Nodes         []*node `json:"nodes"`
	CreatedIndex  uint64  `json:"createdIndex"`
	ModifiedIndex uint64  `json:"modifiedIndex"`
	Expiration    string  `json:"expiration,omitempty"`
	TTL           int64   `json:"ttl,omitempty"`
}

type response struct {
	Action   string `json:"action"`
	Node     *node  `json:"node"`
	PrevNode *node  `json:"prevNode"`
	index    string
}

// decode reads one answer.
func decode(resp *http.Response, from *json.Decoder) (*response, error) {
	if resp.StatusCode >= 300 {
		return nil, &exitError{4, refusal(resp.StatusCode, from)}
	}
	r := &response{index: resp.Header.Get("X-Etcd-Index")}
	if err := from.Decode(r); err != nil {
		return nil, &exitError{4, fmt.Errorf("the server's answer does not decode: %w", err)}
	}
	return r, nil
}

func refusal(status int, from *json.Decoder) error {
	var e struct {
		Code    int    `json:"errorCode"`
		Message string `json:"message"`
		Cause   string `json:"cause"`
		Index   uint64 `json:"index"`
	}
	if from.Decode(&e) != nil || e.Message == "" {
		return fmt.Errorf("the server answers %d: is the v2 API enabled?", status)
	}
	if e.Code == 0 {
		return errors.New(e.Message)
	}
	return fmt.Errorf("%d: %s (%s) [%d]", e.Code, e.Message, e.Cause, e.Index)
}

// call sends one request on a key and reads its answer.
func (c *v2) call(method, key string, form url.Values) (*response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), c.totalTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, keyPath(key), form)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return decode(resp, json.NewDecoder(resp.Body))
}

func keyPath(key string) string {
	return (&url.URL{Path: "/v2/keys/" + strings.TrimPrefix(key, "/")}).EscapedPath()
}

// show prints an answer in the format asked for.
func (c *v2) show(r *response) {
	switch c.format {
	case "json":
		body, _ := json.Marshal(r)
		fmt.Fprintln(c.out, string(body))
	case "extended":
		fmt.Fprintf(c.out, "Key: %s\nCreated-Index: %d\nModified-Index: %d\n", r.Node.Key, r.Node.CreatedIndex, r.Node.ModifiedIndex)
		if r.PrevNode != nil {
			fmt.Fprintln(c.out, "PrevNode.Value:", r.PrevNode.Value)
		}
		fmt.Fprintf(c.out, "TTL: %d\nIndex: %s\n", r.Node.TTL, r.index)
		if r.Action != "delete" {
			fmt.Fprintf(c.out, "\n%s\n", r.Node.Value)
		}
	default:
		if r.Action == "delete" && r.PrevNode != nil && !r.PrevNode.Dir {
			fmt.Fprintln(c.out, "PrevNode.Value:", r.PrevNode.Value)
		} else if !r.Node.Dir {
			fmt.Fprintln(c.out, r.Node.Value)
		}
	}
}

// valueOf is the value on the command line, or standard input.
func (c *v2) valueOf(args []string) (string, error) {
	if len(args) > 1 {
		return args[1], nil
	}
	data, err := io.ReadAll(c.in)
	if len(data) == 0 && err == nil {
		err = errors.New("value required")
	}
	return string(data), err
}

func (c *v2) watchers() []*cobra.Command {
	var forever, recursive bool
	var after uint64
	flags := func(cmd *cobra.Command) *cobra.Command {
		cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "watch all below the key")
		cmd.Flags().Uint64Var(&after, "after-index", 0, "watch what comes after an index")
		return cmd
	}
	watch := flags(&cobra.Command{Use: "watch <key>", Short: "watch a key for changes", Args: needKey,
		RunE: func(_ *cobra.Command, args []string) error {
			return c.watch(args[0], recursive, forever, after, func(r *response) error {
				if recursive && c.format == "simple" {
					fmt.Fprintf(c.out, "[%s] %s\n", r.Action, r.Node.Key)
				}
				c.show(r)
				return nil
			})
		}})
	watch.Flags().BoolVarP(&forever, "forever", "f", false, "watch until interrupted")
	run := flags(&cobra.Command{Use: "exec-watch <key> -- <command>", Short: "watch a key and run a command at each change", Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.watch(args[0], recursive, true, after, func(r *response) error {
				cmd := exec.Command(args[1], args[2:]...)
				cmd.Stdout, cmd.Stderr = c.out, os.Stderr
				cmd.Env = append(os.Environ(), "ETCD_WATCH_ACTION="+r.Action, "ETCD_WATCH_KEY="+r.Node.Key, "ETCD_WATCH_VALUE="+r.Node.Value,
					fmt.Sprintf("ETCD_WATCH_MODIFIED_INDEX=%d", r.Node.ModifiedIndex))
				return cmd.Run()
			})
		}})
	return []*cobra.Command{watch, run}
}

// watch hands events to got, one or all of them.
func (c *v2) watch(key string, recursive, forever bool, after uint64, got func(*response) error) error {
	for {
		form := url.Values{"wait": {"true"}}
		if recursive {
			form.Set("recursive", "true")
		}
		if after > 0 {
			form.Set("waitIndex", fmt.Sprint(after+1))
		}
		resp, err := c.send(context.Background(), http.MethodGet, keyPath(key), form)
		if err != nil {
			return err
		}
		r, err := decode(resp, json.NewDecoder(resp.Body))
		resp.Body.Close()
		if err != nil {
			return err
		}
		if err := got(r); err != nil || !forever {
			return err
		}
		after = r.Node.ModifiedIndex
	}
}

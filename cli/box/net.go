package box

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// wget fetches with GET. Statuses are GNU's: 4 for a network failure, 8 for
// an error the server answered, 3 for a file, 2 for the command line.
func wget(c *call) int {
	insecure, spider := false, false
	post := ""
	args := slices.DeleteFunc(slices.Clone(c.args), func(a string) bool {
		if v, ok := strings.CutPrefix(a, "--post-data="); ok {
			post = v
			return true
		}
		insecure = insecure || a == "--no-check-certificate"
		spider = spider || a == "--spider"
		return a == "--no-check-certificate" || a == "--spider" || a == "--quiet"
	})
	for i, a := range args {
		for long, short := range map[string]string{"--timeout=": "-T", "--tries=": "-t", "--output-document=": "-O", "--header=": "-H"} {
			if v, ok := strings.CutPrefix(a, long); ok {
				args[i] = short + v
			}
		}
	}
	headers := http.Header{}
	args, err := takeHeaders(args, headers)
	if err != nil {
		return c.usage("%v", err)
	}
	quiet := !slices.Equal(args, c.args) && slices.Contains(c.args, "--quiet")
	c.args = args
	opts, urls, err := c.flags("qSO:T:t:")
	if err != nil {
		return c.usage("%v", err)
	}
	if len(urls) != 1 {
		return c.usage("give one URL")
	}
	target := urls[0]
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	timeout := 900 * time.Second
	if v, ok := opts['T']; ok {
		if timeout, err = interval(v); err != nil {
			return c.usage("%v", err)
		}
	}
	f := fetch{c: c, url: target, headers: headers, post: post, out: opts['O'], quiet: quiet || opts['q'] != "", show: opts['S'] != "", spider: spider}
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: insecure}, //nolint:gosec // asked for by name
	}}
	return f.run(client)
}

// takeHeaders removes -H options, whose values may repeat.
func takeHeaders(args []string, into http.Header) (rest []string, err error) {
	for _, a := range args {
		v, ok := strings.CutPrefix(a, "-H")
		if !ok {
			rest = append(rest, a)
			continue
		}
		name, value, ok := strings.Cut(v, ":")
		if !ok {
			return nil, fmt.Errorf("header '%s' has no colon", v)
		}
		into.Add(name, strings.TrimSpace(value))
	}
	return rest, nil
}

type fetch struct {
	c                   *call
	url, post, out      string
	headers             http.Header
	quiet, show, spider bool
}

func (f fetch) run(client *http.Client) int {
	method, body := http.MethodGet, io.Reader(nil)
	if f.spider {
		method = http.MethodHead
	}
	if f.post != "" {
		method, body = http.MethodPost, strings.NewReader(f.post)
	}
	req, err := http.NewRequestWithContext(f.c.ctx, method, f.url, body)
	if err != nil {
		return f.c.usage("%v", err)
	}
	req.Header.Set("User-Agent", "Wget")
	for k, v := range f.headers {
		req.Header[k] = v
	}
	if h := f.headers.Get("Host"); h != "" {
		req.Host = h
	}
	if !f.quiet {
		fmt.Fprintf(f.c.err, "Connecting to %s\n", req.URL.Host)
	}
	resp, err := client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		f.c.fail("", err)
		return 4
	}
	defer resp.Body.Close()
	if f.show {
		fmt.Fprintf(f.c.err, "  %s %s\n", resp.Proto, resp.Status)
		_ = resp.Header.Write(f.c.err)
	}
	if resp.StatusCode >= 400 {
		fmt.Fprintf(f.c.err, "wget: server returned error: %s %s\n", resp.Proto, resp.Status)
		return 8
	}
	if f.spider {
		return 0
	}
	return f.save(resp)
}

func (f fetch) save(resp *http.Response) int {
	out := f.c.out
	name := f.out
	if name == "" {
		if name = path.Base(resp.Request.URL.Path); name == "." || name == "/" {
			name = "index.html"
		}
	}
	if name != "-" {
		file, err := os.Create(f.c.path(name))
		if err != nil {
			f.c.fail(name, err)
			return 3
		}
		defer file.Close()
		out = file
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		f.c.fail("", err)
		return 4
	}
	return 0
}

// nslookup asks the server of resolv.conf, with its search domains, or the
// server given.
func nslookup(c *call) int {
	kind := ""
	args := slices.DeleteFunc(slices.Clone(c.args), func(a string) bool {
		for _, p := range []string{"-type=", "-query=", "-q="} {
			if v, ok := strings.CutPrefix(a, p); ok {
				kind = strings.ToLower(v)
				return true
			}
		}
		return false
	})
	if len(args) < 1 || len(args) > 2 || strings.HasPrefix(args[0], "-") {
		return c.usage("usage: nslookup [-type=a|aaaa|srv|ptr|txt|cname|mx|ns] name [server]")
	}
	server := systemServer()
	if len(args) == 2 {
		server = args[1]
	}
	if _, _, err := net.SplitHostPort(server); err != nil {
		server = net.JoinHostPort(server, "53")
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
	host, _, _ := net.SplitHostPort(server)
	fmt.Fprintf(c.out, "Server:\t\t%s\nAddress:\t%s\n\n", host, server)
	lines, err := lookup(c.ctx, r, kind, args[0])
	if err != nil {
		var de *net.DNSError
		if errors.As(err, &de) && de.IsNotFound {
			fmt.Fprintf(c.out, "** server can't find %s: NXDOMAIN\n", args[0])
			return 1
		}
		return c.fail("", err)
	}
	for _, l := range lines {
		fmt.Fprintln(c.out, l)
	}
	return 0
}

func systemServer() string {
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		return "127.0.0.1"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 1 && w[0] == "nameserver" {
			return w[1]
		}
	}
	return "127.0.0.1"
}

func lookup(ctx context.Context, r *net.Resolver, kind, name string) (lines []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if kind == "" && net.ParseIP(name) != nil {
		kind = "ptr"
	}
	switch kind {
	case "", "a", "aaaa", "any":
		network := map[string]string{"a": "ip4", "aaaa": "ip6"}[kind]
		if network == "" {
			network = "ip"
		}
		ips, err := r.LookupIP(ctx, network, name)
		for _, ip := range ips {
			lines = append(lines, "Name:\t"+name, "Address: "+ip.String())
		}
		return lines, err
	case "ptr":
		names, err := r.LookupAddr(ctx, name)
		for _, n := range names {
			lines = append(lines, name+"\tname = "+n)
		}
		return lines, err
	case "srv":
		_, srvs, err := r.LookupSRV(ctx, "", "", name)
		for _, s := range srvs {
			lines = append(lines, fmt.Sprintf("%s\tservice = %d %d %d %s", name, s.Priority, s.Weight, s.Port, s.Target))
		}
		return lines, err
	case "txt":
		texts, err := r.LookupTXT(ctx, name)
		for _, t := range texts {
			lines = append(lines, fmt.Sprintf("%s\ttext = %q", name, t))
		}
		return lines, err
	case "cname":
		n, err := r.LookupCNAME(ctx, name)
		return []string{name + "\tcanonical name = " + n}, err
	case "mx":
		mxs, err := r.LookupMX(ctx, name)
		for _, m := range mxs {
			lines = append(lines, fmt.Sprintf("%s\tmail exchanger = %d %s", name, m.Pref, m.Host))
		}
		return lines, err
	case "ns":
		nss, err := r.LookupNS(ctx, name)
		for _, n := range nss {
			lines = append(lines, name+"\tnameserver = "+n.Host)
		}
		return lines, err
	}
	return nil, fmt.Errorf("records of type %q are not supported", kind)
}

// nc connects: with -z only to see whether the port is open, else to copy
// standard input there and what comes back to standard output. With -l it
// waits for one connection.
func nc(c *call) int {
	opts, args, err := c.flags("zvulw:p:n")
	if err != nil {
		return c.usage("%v", err)
	}
	network := "tcp"
	if opts['u'] != "" {
		network = "udp"
	}
	var timeout time.Duration
	if v, ok := opts['w']; ok {
		if timeout, err = interval(v); err != nil {
			return c.usage("%v", err)
		}
	}
	if opts['l'] != "" {
		return c.ncListen(network, append(args, opts['p']))
	}
	if len(args) != 2 {
		return c.usage("give a host and a port")
	}
	ports, err := portRange(args[1])
	if err != nil {
		return c.usage("%v", err)
	}
	status := 1
	for _, port := range ports {
		d := net.Dialer{Timeout: timeout}
		conn, err := d.DialContext(c.ctx, network, net.JoinHostPort(args[0], port))
		if err != nil {
			if opts['v'] != "" || opts['z'] == "" {
				c.fail("", err)
			}
			continue
		}
		status = 0
		if opts['v'] != "" {
			fmt.Fprintf(c.err, "%s (%s) open\n", net.JoinHostPort(args[0], port), conn.RemoteAddr())
		}
		if opts['z'] == "" {
			status = c.pipe(conn, timeout)
		}
		conn.Close()
	}
	return status
}

func portRange(text string) ([]string, error) {
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	a, err1 := strconv.ParseUint(from, 10, 16)
	b, err2 := strconv.ParseUint(to, 10, 16)
	if err := errors.Join(err1, err2); err != nil || a > b {
		return nil, fmt.Errorf("invalid port '%s'", text)
	}
	var ports []string
	for p := a; p <= b; p++ {
		ports = append(ports, strconv.FormatUint(p, 10))
	}
	return ports, nil
}

func (c *call) ncListen(network string, args []string) int {
	args = slices.DeleteFunc(args, func(a string) bool { return a == "" })
	if network != "tcp" || len(args) != 1 {
		return c.usage("-l needs one TCP port")
	}
	l, err := net.Listen(network, ":"+args[0])
	if err != nil {
		return c.fail("", err)
	}
	conn, err := l.Accept()
	l.Close()
	if err != nil {
		return c.fail("", err)
	}
	defer conn.Close()
	return c.pipe(conn, 0)
}

// pipe copies both ways until the other side closes, or has been silent for
// the given time after the input's end.
func (c *call) pipe(conn net.Conn, idle time.Duration) int {
	go func() {
		_, _ = io.Copy(conn, c.in)
		if half, ok := conn.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		if idle > 0 {
			_ = conn.SetReadDeadline(time.Now().Add(idle))
		}
	}()
	if _, err := io.Copy(c.out, conn); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return c.fail("", err)
	}
	return 0
}

// web is the demo server: it says which pod answered, and how often.
func web(c *call) int {
	port := "8080"
	for i := 0; i < len(c.args); i++ {
		v, ok := strings.CutPrefix(c.args[i], "--port=")
		switch {
		case ok:
			port = v
		case (c.args[i] == "--port" || c.args[i] == "-p") && i+1 < len(c.args):
			i++
			port = c.args[i]
		default:
			return c.usage("unrecognized option '%s'", c.args[i])
		}
	}
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return c.fail("", err)
	}
	s := &http.Server{Handler: c.webHandler(), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintf(c.out, "listening on port %s\n", port)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return c.fail("", err)
	case <-c.ctx.Done():
	}
	// Requests under way are answered; a Service may still send new ones for
	// a moment after the pod was told to stop.
	time.Sleep(200 * time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		return c.fail("", err)
	}
	return 0
}

func (c *call) webHandler() http.Handler {
	pod := c.env("POD_NAME")
	if pod == "" {
		pod, _ = os.Hostname()
	}
	counts := make(chan int, 1) // holds the number of requests so far
	counts <- 0
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n := <-counts + 1
		counts <- n
		var body bytes.Buffer
		fmt.Fprintf(&body, "Hello from pod %s\n", pod)
		for _, line := range []struct{ label, value string }{
			{"node", c.env("NODE_NAME")}, {"namespace", c.env("POD_NAMESPACE")}, {"address", c.env("POD_IP")},
		} {
			if line.value != "" {
				fmt.Fprintf(&body, "%s: %s\n", line.label, line.value)
			}
		}
		fmt.Fprintf(&body, "requests: %d\n", n)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(body.Bytes())
		fmt.Fprintf(c.out, "%s %s %s from %s\n", time.Now().UTC().Format(time.RFC3339), r.Method, r.URL.Path, r.RemoteAddr)
	})
	return mux
}

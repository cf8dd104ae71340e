package h2_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSameAsNetHTTP sends the same requests to the same handlers behind ours
// and the standard library's server: clients are not to see a difference.
func TestSameAsNetHTTP(t *testing.T) {
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) } //nolint:errcheck // the client sees
	}
	set := func(pairs ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(pairs); i += 2 {
				w.Header().Add(pairs[i], pairs[i+1])
			}
			io.WriteString(w, "body") //nolint:errcheck // the client sees
		}
	}
	status := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, err := io.WriteString(w, text)
			w.Header().Set("Late", "header")
			if err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
				panic(err)
			}
		}
	}
	big := strings.Repeat("0123456789abcdef", 200_000)
	for _, test := range []struct {
		name    string
		request string // method, path, further header fields as name=value
		body    string
		trailer string // the client's
		handler http.HandlerFunc
	}{
		{"echo", "PUT /a%2fb/../c?q=1&q=2 X-One=1 X-Two=2 x-one=3 Cookie=a=b Cookie=c=d", "some text", "", echo},
		{"echo without body", "GET /", "", "", echo},
		{"echo of much", "POST /", big, "", echo},
		{"echo of trailers", "POST /", "some text", "checksum", echo},
		{"asterisk", "OPTIONS *", "", "", echo},
		{"expect", "POST / Expect=100-continue", "some text", "", echo},
		{"expect, unread", "POST / Expect=100-continue", "some text", "", say("no")},
		{"body unread", "POST /", big, "", say("no")},
		{"nothing", "GET /", "", "", func(http.ResponseWriter, *http.Request) {}},
		{"much", "GET /", "", "", say(big)},
		{"head", "HEAD /", "", "", say("text")},
		{"head of much", "HEAD /", "", "", say(big)},
		{"head, nothing written", "HEAD /", "", "", func(http.ResponseWriter, *http.Request) {}},
		{"head with length", "HEAD /", "", "", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "4000") }},
		{"sniffed", "GET /", "", "", say("<html><body>")},
		{"encoded", "GET /", "", "", set("Content-Encoding", "gzip")},
		{"length", "GET /", "", "", set("Content-Length", "4")},
		{"length too long", "GET /", "", "", set("Content-Length", "5")},
		{"length is no number", "GET /", "", "", set("Content-Length", "four")},
		{"own date", "GET /", "", "", set("Date", "today")},
		{"of HTTP/1.1", "GET /", "", "", set("Connection", "keep-alive", "Transfer-Encoding", "chunked")},
		{"last of its connection", "GET /", "", "", set("Connection", "close")},
		{"invalid fields", "GET /", "", "", set("Bad Name", "x", "Bad-Value", "a\nb", "Good", "\tx\xff")},
		{"several values", "GET /", "", "", set("Warning", "one", "Warning", "two")},
		{"long field", "GET /", "", "", set("Long", strings.Repeat("x", 20_000))},
		{"announced trailer", "GET /", "", "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "Sum, Other")
			io.WriteString(w, "body") //nolint:errcheck // the client sees
			w.Header().Set("Sum", "1")
		}},
		{"marked trailer", "GET /", "", "", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "body") //nolint:errcheck // the client sees
			w.Header().Set(http.TrailerPrefix+"Sum", "1")
		}},
		{"trailer without body", "GET /", "", "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		}},
		{"404", "GET /", "", "", status(404, "not here")},
		{"204", "GET /", "", "", status(204, "ignored")},
		{"304", "GET /", "", "", status(304, "ignored")},
		{"599", "GET /", "", "", status(599, "")},
		{"early hints", "GET /", "", "", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</x>")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Set("Link", "</y>")
			io.WriteString(w, "body") //nolint:errcheck // the client sees
		}},
		{"pieces", "GET /", "", "", func(w http.ResponseWriter, _ *http.Request) {
			for i := range 2000 {
				fmt.Fprintf(w, "piece %d;", i)
				if i%100 == 0 {
					w.(http.Flusher).Flush()
				}
			}
		}},
		{"flushed and nothing more", "GET /", "", "", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() }},
		{"panic", "GET /", "", "", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"panic half way", "GET /", "", "", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, big) //nolint:errcheck // the client sees
			panic(http.ErrAbortHandler)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var answers []string
			servers(t, func(_ string, start func(http.Handler) string) {
				answers = append(answers, ask(t, start(test.handler), test.request, test.body, test.trailer))
			})
			if answers[0] != answers[1] {
				t.Errorf("ours:\n%.2000s\nnet/http's:\n%.2000s", answers[0], answers[1])
			}
		})
	}
}

// echo tells all that a handler sees of a request.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %q %q %s %s length %d, TLS %v, body %d %v\n",
		r.Method, r.URL.String(), r.RequestURI, r.Proto, strings.Split(r.Host, ":")[0], r.ContentLength, r.TLS != nil, len(body), err)
	for _, header := range []http.Header{r.Header, r.Trailer} {
		for _, k := range slices.Sorted(maps.Keys(header)) {
			fmt.Fprintf(w, "%s: %q\n", k, header[k])
		}
	}
	w.Write(body) //nolint:errcheck // the client sees
}

// ask describes the answer to a request.
func ask(t *testing.T, addr, request, body, trailer string) string {
	t.Helper()
	words := strings.Split(request, " ")
	var from io.Reader
	if body != "" {
		from = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), words[0], "https://"+addr+strings.TrimPrefix(words[1], "*"), from)
	if err != nil {
		t.Fatal(err)
	}
	if words[1] == "*" {
		req.URL.Opaque = "*"
	}
	for _, pair := range words[2:] {
		name, value, _ := strings.Cut(pair, "=")
		req.Header.Add(name, value)
	}
	if trailer != "" {
		req.ContentLength = -1
		req.Trailer = http.Header{textproto.CanonicalMIMEHeaderKey(trailer): {"value"}}
	}
	var out bytes.Buffer
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			fmt.Fprintln(&out, code, header)
			return nil
		},
	}))
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, ExpectContinueTimeout: 200 * time.Millisecond,
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Sprintf("%sno response: %v", out.String(), err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if date := resp.Header.Get("Date"); date != "today" {
		if _, err := time.Parse(http.TimeFormat, date); err != nil {
			t.Errorf("Date: %v", err)
		}
		resp.Header.Set("Date", "now")
	}
	fmt.Fprintln(&out, resp.Status, resp.Proto, "length", resp.ContentLength)
	for _, header := range []http.Header{resp.Header, resp.Trailer} {
		for _, k := range slices.Sorted(maps.Keys(header)) {
			fmt.Fprintf(&out, "%s: %q\n", k, header[k])
		}
	}
	if err != nil { // how much had come before is chance
		fmt.Fprintf(&out, "body: %v\n", err)
		return out.String()
	}
	fmt.Fprintf(&out, "%s\n", got)
	return out.String()
}

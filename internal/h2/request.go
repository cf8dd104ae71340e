package h2

import (
	"context"
	"errors"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// request is what the handler gets of a stream's header fields. An error is
// the client's fault (RFC 9113, section 8).
func (c *conn) request(st *stream, f *http2.MetaHeadersFrame) (*http.Request, error) {
	fields := f.RegularFields()
	header := make(http.Header, len(fields))
	values := make([]string, len(fields)) // one array for those that come once
	host, connection := f.PseudoValue("authority"), ""
	for i, field := range fields {
		switch field.Name {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
			connection = field.Name
		case "te":
			if field.Value != "trailers" {
				connection = field.Name
			}
		}
		key := c.canonicalKey(field.Name)
		if have, ok := header[key]; ok {
			header[key] = append(have, field.Value)
			continue
		}
		values[i] = field.Value
		header[key] = values[i : i+1 : i+1]
	}
	if connection != "" {
		return nil, errors.New("header field " + connection + " is of HTTP/1.1")
	}
	if host == "" {
		host = header.Get("Host")
	}
	delete(header, "Host")
	if cookies := header["Cookie"]; len(cookies) > 1 {
		header.Set("Cookie", strings.Join(cookies, "; "))
	}
	target, uri, err := requestTarget(f)
	if err != nil {
		return nil, err
	}
	if !httpguts.ValidHostHeader(host) {
		return nil, errors.New("invalid authority")
	}
	ctx, cancel := context.WithCancel(c.ctx)
	st.cancel = cancel
	req := (&http.Request{
		Method: f.PseudoValue("method"), URL: target, RequestURI: uri, Host: host,
		Proto: "HTTP/2.0", ProtoMajor: 2, Header: header,
		RemoteAddr: c.remote, TLS: c.tls, Body: http.NoBody,
	}).WithContext(ctx)
	if err := st.expectBody(req, f.StreamEnded()); err != nil {
		cancel()
		return nil, err
	}
	return req, nil
}

// expectBody reads what the header fields say of the body.
func (st *stream) expectBody(req *http.Request, none bool) error {
	if lengths := req.Header["Content-Length"]; len(lengths) > 0 {
		n, err := strconv.ParseInt(lengths[0], 10, 64)
		if err != nil || n < 0 || len(lengths) > 1 || none && n > 0 {
			return errors.New("invalid content-length")
		}
		st.declared, req.ContentLength = n, n
	} else if !none {
		req.ContentLength = -1
	}
	if none {
		return nil
	}
	for _, names := range req.Header["Trailer"] {
		for name := range strings.SplitSeq(names, ",") {
			if key := textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); httpguts.ValidTrailerHeader(key) {
				if req.Trailer == nil {
					req.Trailer = http.Header{}
				}
				req.Trailer[key] = nil
			}
		}
	}
	delete(req.Header, "Trailer")
	st.invite = httpguts.HeaderValuesContainsToken(req.Header["Expect"], "100-continue")
	delete(req.Header, "Expect")
	req.Body = body{st, req}
	return nil
}

// requestTarget is the URL, and how the client wrote it.
func requestTarget(f *http2.MetaHeadersFrame) (*url.URL, string, error) {
	method, path, scheme, authority := f.PseudoValue("method"), f.PseudoValue("path"), f.PseudoValue("scheme"), f.PseudoValue("authority")
	switch {
	case f.PseudoValue("protocol") != "":
		return nil, "", errors.New("extended CONNECT is not offered")
	case method == http.MethodConnect:
		if path != "" || scheme != "" || authority == "" {
			return nil, "", errors.New("CONNECT has an authority only")
		}
		return &url.URL{Host: authority}, authority, nil
	case method == "" || path == "" || scheme != "https" && scheme != "http":
		return nil, "", errors.New("a pseudo header field is missing")
	}
	target, err := url.ParseRequestURI(path)
	return target, path, err
}

// canonicalKey is a field's name as http.Header has it. The reader's only.
func (c *conn) canonicalKey(name string) string {
	key, ok := c.canonical[name]
	if !ok {
		key = http.CanonicalHeaderKey(name)
		if len(c.canonical) < maxCanonical {
			c.canonical[name] = key
		}
	}
	return key
}

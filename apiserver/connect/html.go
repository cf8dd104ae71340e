package connect

import (
	"compress/flate"
	"compress/gzip"
	"io"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// links are the attributes that hold URLs, by element.
var links = map[atom.Atom][]string{
	atom.A: {"href"}, atom.Applet: {"codebase"}, atom.Area: {"href"}, atom.Audio: {"src"}, atom.Base: {"href"},
	atom.Blockquote: {"cite"}, atom.Body: {"background"}, atom.Button: {"formaction"}, atom.Command: {"icon"}, atom.Del: {"cite"},
	atom.Embed: {"src"}, atom.Form: {"action"}, atom.Frame: {"longdesc", "src"}, atom.Head: {"profile"}, atom.Html: {"manifest"},
	atom.Iframe: {"longdesc", "src"}, atom.Img: {"longdesc", "src", "usemap"}, atom.Input: {"src", "usemap", "formaction"},
	atom.Ins: {"cite"}, atom.Link: {"href"}, atom.Object: {"classid", "codebase", "data", "usemap"}, atom.Q: {"cite"},
	atom.Script: {"src"}, atom.Source: {"src"}, atom.Video: {"poster", "src"},
}

// mount is where a proxied server appears at the API server.
type mount struct {
	base  string   // the path its root has here
	hosts []string // what it is called: its address, and the name the client used
}

// through returns u so that it leads through the proxy, if it is about the
// proxied server and has an absolute path.
func (m mount) through(u *url.URL) string {
	if u.Host != "" && !slices.Contains(m.hosts, u.Host) || !strings.HasPrefix(u.Path, "/") {
		return u.String()
	}
	u.Scheme, u.Host = "", ""
	if base := strings.TrimSuffix(m.base, "/"); u.Path != base && !strings.HasPrefix(u.Path, base+"/") {
		slash := strings.HasSuffix(u.Path, "/")
		if u.Path = path.Join(base, u.Path); slash {
			u.Path += "/"
		}
	}
	return u.String()
}

// rewrite makes redirects and the links of a page lead through the proxy.
func (m mount) rewrite(resp *http.Response) error {
	if loc := resp.Header.Get("Location"); loc != "" {
		if u, err := url.Parse(loc); err == nil {
			resp.Header.Set("Location", m.through(u))
		}
		return nil
	}
	if media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || media != "text/html" || resp.Request.Method == http.MethodHead {
		return nil //nolint:nilerr // what is no page is passed on as it is
	}
	plain, err := decompressed(resp)
	if err != nil || plain == nil {
		return err
	}
	r, w := io.Pipe()
	body := resp.Body
	go func() {
		w.CloseWithError(m.page(plain, w))
		body.Close()
	}()
	resp.Body = r
	resp.ContentLength = -1
	resp.Header.Del("Content-Length")
	return nil
}

// decompressed returns the body as text, or nil when its encoding is not known.
func decompressed(resp *http.Response) (io.Reader, error) {
	var plain io.Reader
	switch resp.Header.Get("Content-Encoding") {
	case "":
		return resp.Body, nil
	case "gzip":
		gz, err := gzip.NewReader(resp.Body)
		if err != nil {
			return nil, err
		}
		plain = gz
	case "deflate":
		plain = flate.NewReader(resp.Body)
	default:
		return nil, nil
	}
	resp.Header.Del("Content-Encoding")
	return plain, nil
}

// page copies a page, links rewritten; it ends with io.EOF when all is well.
func (m mount) page(r io.Reader, w io.Writer) error {
	tokens := html.NewTokenizer(r)
	for {
		switch tokens.Next() {
		case html.ErrorToken:
			return tokens.Err()
		case html.StartTagToken, html.SelfClosingTagToken:
			raw := slices.Clone(tokens.Raw()) // what has no links stays byte for byte what it was
			if t := tokens.Token(); m.tag(&t) {
				raw = []byte(t.String())
			}
			if _, err := w.Write(raw); err != nil {
				return err
			}
		default:
			if _, err := w.Write(tokens.Raw()); err != nil {
				return err
			}
		}
	}
}

// tag rewrites the links of one tag and reports whether it did.
func (m mount) tag(t *html.Token) (changed bool) {
	names := links[t.DataAtom]
	for i := range t.Attr {
		a := &t.Attr[i]
		if !slices.Contains(names, a.Key) {
			continue
		}
		if u, err := url.Parse(a.Val); err == nil {
			if to := m.through(u); to != a.Val {
				a.Val, changed = to, true
			}
		}
	}
	return changed
}

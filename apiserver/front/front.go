// Package front is what browsers, balancers and names of hosts ask of a server before the API does: cross-origin requests,
// strict transport security, an end of connections now and then, and a certificate for each name.
package front

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
)

// Options are upstream's; the zero value asks for nothing.
type Options struct {
	Origins   []*regexp.Regexp // whose pages may send requests; see ParseOrigins
	Transport []string         // directives of Strict-Transport-Security; see CheckTransport
	GoAway    float64          // chance of an HTTP/2 request to end its connection, so that clients spread over servers
}

// ParseOrigins compiles expressions of origins, each of which must say where a host begins and ends.
func ParseOrigins(list []string) ([]*regexp.Regexp, error) {
	var out []*regexp.Regexp
	for _, text := range list {
		re, err := regexp.Compile(text)
		if err != nil {
			return nil, err
		}
		if !strings.Contains(text, "^") && !strings.Contains(text, "//") || !strings.Contains(text, "$") && !strings.Contains(text, ":") {
			return nil, fmt.Errorf("regular expression does not pin to start/end of host in the origin header: %q", text)
		}
		out = append(out, re)
	}
	return out, nil
}

// CheckTransport takes max-age=seconds, includeSubDomains and preload.
func CheckTransport(list []string) error {
	for _, d := range list {
		if age, ok := strings.CutPrefix(d, "max-age="); (!ok || strings.Contains(age, "=")) && d != "includeSubDomains" && d != "preload" {
			return errors.New("--strict-transport-security-directives invalid, allowed values: max-age=expireTime, includeSubDomains, preload. " +
				"see https://tools.ietf.org/html/rfc6797#section-6.1 for more information")
		}
	}
	return nil
}

// Wrap puts what o asks for before h: h itself if that is nothing.
func (o Options) Wrap(h http.Handler) http.Handler {
	if len(o.Origins) == 0 && len(o.Transport) == 0 && o.GoAway == 0 {
		return h
	}
	transport := strings.Join(o.Transport, "; ")
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if transport != "" {
			w.Header().Set("Strict-Transport-Security", transport)
		}
		if req.ProtoMajor == 2 && rand.Float64() < o.GoAway {
			w.Header().Set("Connection", "close") // in HTTP/2: GOAWAY
		}
		if origin := req.Header.Get("Origin"); origin != "" && o.allows(origin) {
			for name, value := range map[string]string{
				"Origin": origin, "Methods": "POST, GET, OPTIONS, PUT, DELETE, PATCH",
				"Headers":     "Content-Type, Content-Length, Accept-Encoding, X-CSRF-Token, Authorization, X-Requested-With, If-Modified-Since",
				"Credentials": "true",
			} {
				w.Header().Set("Access-Control-Allow-"+name, value)
			}
			w.Header().Set("Access-Control-Expose-Headers", "Date")
			if req.Method == http.MethodOptions { // a browser asks before it sends
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		h.ServeHTTP(w, req)
	})
}

func (o Options) allows(origin string) bool {
	for _, re := range o.Origins {
		if re.MatchString(origin) {
			return true
		}
	}
	return false
}

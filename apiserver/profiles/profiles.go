// Package profiles serves what Go tells of a running process: where its time
// and memory go, as `go tool pprof` reads it.
package profiles

import (
	"net/http"
	"net/http/pprof"
	"strings"
)

// Serve answers a request for /debug/pprof and what is below it; other
// requests it leaves alone, and returns false. Who may ask is the caller's
// business: a profile tells a lot, and taking one costs time.
func Serve(w http.ResponseWriter, req *http.Request) bool {
	name, ok := strings.CutPrefix(req.URL.Path, "/debug/pprof")
	if !ok || name != "" && name[0] != '/' {
		return false
	}
	switch name {
	case "":
		http.Redirect(w, req, "/debug/pprof/", http.StatusMovedPermanently)
	case "/cmdline":
		pprof.Cmdline(w, req)
	case "/profile":
		pprof.Profile(w, req)
	case "/symbol":
		pprof.Symbol(w, req)
	case "/trace":
		pprof.Trace(w, req)
	default:
		pprof.Index(w, req)
	}
	return true
}

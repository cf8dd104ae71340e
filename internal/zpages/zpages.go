// Package zpages answers /statusz and /flagz, upstream's pages about what a
// component is and how it was started: for people as text, for programs as
// objects of config.k8s.io.
package zpages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/munnerz/goautoneg"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Pages are those of one component.
type Pages struct {
	component, version string
	flags              map[string]string
	paths              []string
	started            time.Time
}

// New returns the pages of a component that starts now. version is its
// GitVersion; flags are its command line's, with their values, and none (nil)
// is no /flagz; paths are the other ones it serves.
func New(component, version string, flags map[string]string, paths ...string) *Pages {
	p := &Pages{component: component, flags: flags, paths: append(paths, "/statusz"), started: time.Now()}
	p.version, _, _ = strings.Cut(strings.TrimPrefix(version, "v"), "+")
	if flags != nil {
		p.paths = append(p.paths, "/flagz")
	}
	slices.Sort(p.paths)
	return p
}

// Mount has mux serve the pages.
func (p *Pages) Mount(mux *http.ServeMux) {
	mux.Handle("/statusz", p)
	if p.flags != nil {
		mux.Handle("/flagz", p)
	}
}

// Serves tells whether a path is one of the pages'.
func (p *Pages) Serves(path string) bool {
	return path == "/statusz" || path == "/flagz" && p.flags != nil
}

// ServeHTTP answers a request for a path that the pages serve.
func (p *Pages) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := strings.TrimPrefix(req.URL.Path, "/")
	kind := strings.ToUpper(name[:1]) + name[1:]
	form, ok := negotiate(req.Header.Get("Accept"), kind)
	switch {
	case !ok:
		reply(w, "application/json", "application/json", http.StatusNotAcceptable, true, &metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
			Reason: metav1.StatusReasonNotAcceptable, Code: http.StatusNotAcceptable,
			Message: "only the following media types are accepted: application/json, application/yaml, text/plain",
		})
	case form.media == text:
		w.Header().Set("Content-Type", text+"; charset=utf-8")
		p.write(w, name)
	default:
		if form.version == "v1alpha1" {
			w.Header().Set("Warning", `299 - "This version of the `+name+` endpoint is deprecated. Please use a newer version."`)
		}
		media := fmt.Sprintf("%s;g=%s;v=%s;as=%s", form.media, group, form.version, kind)
		reply(w, media, form.media, http.StatusOK, form.pretty || pretty(req), p.object(kind, form.version))
	}
}

const (
	group = "config.k8s.io"
	text  = "text/plain"
)

// form is what a client wants to have.
type form struct {
	media, version string
	pretty         bool
}

// negotiate picks the first form of the Accept header that there is. Only
// objects have a kind and a version, and they must be asked for by both.
func negotiate(header, kind string) (form, bool) {
	if strings.TrimSpace(header) == "" {
		return form{media: text}, true
	}
	if len(header) > 4096 {
		return form{}, false
	}
	for _, clause := range goautoneg.ParseAccept(header) {
		as, g, v := clause.Params["as"], clause.Params["g"], clause.Params["v"]
		object := as == kind && g == group && (v == "v1alpha1" || v == "v1beta1")
		if clause.Params["stream"] != "" || clause.Params["sv"] != "" || as+g+v != "" && !object {
			continue
		}
		for _, media := range []string{"application/json", "application/yaml", text} {
			typ, sub, _ := strings.Cut(media, "/")
			if clause.Type != "*" && clause.Type != typ || clause.SubType != "*" && clause.SubType != sub {
				continue
			}
			if object != (media == text) {
				return form{media, v, clause.Params["pretty"] == "1"}, true
			}
		}
	}
	return form{}, false
}

// pretty guesses a human from the user agent, unless the query says.
func pretty(req *http.Request) bool {
	if q := req.URL.Query(); q.Has("pretty") {
		want, _ := strconv.ParseBool(q.Get("pretty"))
		return want
	}
	agent := req.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

func reply(w http.ResponseWriter, contentType, media string, code int, pretty bool, obj any) {
	data, err := json.Marshal(obj)
	switch {
	case err != nil:
	case media == "application/yaml":
		data, err = yaml.JSONToYAML(data)
	case pretty:
		var out bytes.Buffer
		err = json.Indent(&out, data, "", "  ")
		data = out.Bytes()
	default:
		data = append(data, '\n')
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	w.Write(data) //nolint:errcheck // the client went away
}

// page is Statusz or Flagz.
type page struct {
	metav1.TypeMeta
	Metadata metav1.ObjectMeta `json:"metadata"`
	*status
	Flags map[string]string `json:"flags,omitempty"`
}

type status struct {
	Started   metav1.Time `json:"startTime"`
	Uptime    int64       `json:"uptimeSeconds"`
	Go        string      `json:"goVersion"`
	Binary    string      `json:"binaryVersion"`
	Emulation string      `json:"emulationVersion"`
	Paths     []string    `json:"paths"`
}

func (p *Pages) object(kind, version string) *page {
	out := &page{TypeMeta: metav1.TypeMeta{Kind: kind, APIVersion: group + "/" + version}, Metadata: metav1.ObjectMeta{Name: p.component}}
	if kind == "Flagz" {
		out.Flags = p.flags
	} else {
		out.status = p.status()
	}
	return out
}

func (p *Pages) status() *status {
	parts := strings.SplitN(p.version, ".", 3)
	return &status{metav1.NewTime(p.started.Truncate(time.Second)), int64(time.Since(p.started).Seconds()), runtime.Version(),
		p.version, strings.Join(parts[:min(len(parts), 2)], "."), p.paths}
}

// write makes the page for people. What stands between a name and its value
// changes from time to time, as upstream's, so that nobody gets used to it.
func (p *Pages) write(w io.Writer, name string) {
	between := []string{":", ": ", "=", " "}[rand.IntN(4)]
	var out bytes.Buffer
	fmt.Fprintf(&out, "\n%s %s\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n",
		p.component, name)
	if name == "flagz" {
		for _, flag := range slices.Sorted(maps.Keys(p.flags)) {
			fmt.Fprintf(&out, "%s%s%s\n", flag, between, p.flags[flag])
		}
	} else {
		s := p.status()
		up := fmt.Sprintf("%d hr %02d min %02d sec", s.Uptime/3600, s.Uptime/60%60, s.Uptime%60)
		out.WriteByte('\n')
		for _, line := range [][2]string{{"Started", s.Started.Format(time.UnixDate)}, {"Up", up}, {"Go version", s.Go},
			{"Binary version", s.Binary}, {"Emulation version", s.Emulation}, {"Paths", strings.Join(s.Paths, " ")}} {
			fmt.Fprintf(&out, "%s%s %s\n", line[0], between, line[1])
		}
	}
	w.Write(out.Bytes()) //nolint:errcheck // the client went away
}

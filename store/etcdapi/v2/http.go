package v2

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// stats counts what /v2/stats/store tells.
type stats struct {
	ok, failed [len(statNames)]atomic.Int64
	watchers   atomic.Int64
}

var statNames = [...]string{"gets", "sets", "delete", "update", "create", "compareAndSwap", "compareAndDelete"}

func (s *stats) count(action string, err error) {
	if action == "get" || action == "set" {
		action += "s"
	}
	for i, name := range statNames {
		if name == action && err == nil {
			s.ok[i].Add(1)
		} else if name == action {
			s.failed[i].Add(1)
		}
	}
}

// Register adds the v2 endpoints to mux.
func (k *Keys) Register(mux *http.ServeMux) {
	mux.HandleFunc("/v2/keys", k.serveKeys)
	mux.HandleFunc("/v2/keys/", k.serveKeys)
	mux.HandleFunc("GET /v2/members", k.serveMembers)
	mux.HandleFunc("GET /v2/members/leader", k.serveLeader)
	for _, pattern := range []string{"POST /v2/members", "PUT /v2/members/{id}", "DELETE /v2/members/{id}"} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			k.reply(w, http.StatusConflict, map[string]string{"message": "this server is a cluster of one: members can neither be added, changed nor removed"})
		})
	}
	mux.HandleFunc("GET /v2/machines", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Join(k.cfg.Member.ClientURLs(), ", "))
	})
	mux.HandleFunc("GET /v2/stats/self", k.serveSelf)
	mux.HandleFunc("GET /v2/stats/leader", func(w http.ResponseWriter, r *http.Request) {
		k.reply(w, http.StatusOK, map[string]any{"leader": k.id(), "followers": map[string]any{}})
	})
	mux.HandleFunc("GET /v2/stats/store", k.serveStats)
}

func (k *Keys) id() string { return strconv.FormatUint(k.cfg.Member.ID, 16) }

func (k *Keys) reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Etcd-Cluster-Id", strconv.FormatUint(k.cfg.Member.ClusterID, 16))
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

type memberBody struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
}

func (k *Keys) member() memberBody {
	m := k.cfg.Member
	return memberBody{ID: k.id(), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs()}
}

func (k *Keys) serveMembers(w http.ResponseWriter, r *http.Request) {
	k.reply(w, http.StatusOK, map[string][]memberBody{"members": {k.member()}})
}

func (k *Keys) serveLeader(w http.ResponseWriter, r *http.Request) {
	k.reply(w, http.StatusOK, k.member())
}

func (k *Keys) serveSelf(w http.ResponseWriter, r *http.Request) {
	k.reply(w, http.StatusOK, map[string]any{
		"name": k.cfg.Member.Name, "id": k.id(), "state": "StateLeader", "startTime": k.started,
		"leaderInfo":           map[string]any{"leader": k.id(), "uptime": k.cfg.Clock.Since(k.started).String(), "startTime": k.started},
		"recvAppendRequestCnt": 0, "sendAppendRequestCnt": 0,
	})
}

func (k *Keys) serveStats(w http.ResponseWriter, r *http.Request) {
	body := map[string]int64{"watchers": k.stats.watchers.Load()}
	for i, name := range statNames {
		body[name+"Success"], body[name+"Fail"] = k.stats.ok[i].Load(), k.stats.failed[i].Load()
	}
	k.reply(w, http.StatusOK, body)
}

func (k *Keys) serveKeys(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, k.cfg.MaxRequestBytes)
	ev, err := k.handle(w, r)
	switch {
	case err != nil:
		k.replyError(w, err)
	case ev != nil:
		k.setIndex(w, ev.index)
		status := http.StatusOK
		if ev.created() {
			status = http.StatusCreated
		}
		k.reply(w, status, ev)
	}
}

func (k *Keys) setIndex(w http.ResponseWriter, index int64) {
	n := strconv.FormatInt(index, 10)
	w.Header().Set("X-Etcd-Index", n)
	w.Header().Set("X-Raft-Index", n)
	w.Header().Set("X-Raft-Term", "1")
}

func (k *Keys) replyError(w http.ResponseWriter, err error) {
	e := (*Error)(nil)
	if !errors.As(err, &e) {
		e = fail(codeRaftInternal, err.Error(), k.index())
	}
	k.setIndex(w, e.Index)
	status := statuses[e.Code]
	if status == 0 {
		status = http.StatusBadRequest
	}
	k.reply(w, status, e)
}

// handle runs a request on a key. A wait writes its own answer.
func (k *Keys) handle(w http.ResponseWriter, r *http.Request) (*Event, error) {
	f, err := k.parse(r)
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if f.wait {
			return nil, k.serveWait(w, r, f)
		}
		ev, err := k.get(r.Context(), f.path, f.recursive)
		k.stats.count("get", err)
		return ev, err
	case http.MethodPut, http.MethodPost, http.MethodDelete:
		action, do := f.operation(r.Method)
		ev, err := k.apply(r.Context(), do)
		k.stats.count(action, err)
		if err == nil && f.noValue {
			ev.Node.Value, ev.PrevNode = nil, nil
		}
		return ev, err
	}
	w.Header().Set("Allow", "HEAD,GET,PUT,POST,DELETE")
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return nil, nil
}

// form is a parsed request.
type form struct {
	change
	wait, stream bool
	waitIndex    int64
	noValue      bool
	prevExist    *bool
}

// operation picks what a change does and what it is called in the statistics.
func (f *form) operation(method string) (string, func(e *edit) error) {
	c := &f.change
	compares := c.prevIndex != 0 || c.prevValue != ""
	switch {
	case method == http.MethodPost:
		return "create", func(e *edit) error { return e.createUnique(c) }
	case method == http.MethodDelete && compares:
		return "compareAndDelete", func(e *edit) error { return e.compareAndDelete(c) }
	case method == http.MethodDelete:
		return "delete", func(e *edit) error { return e.delete(c) }
	case f.prevExist != nil && !*f.prevExist:
		return "create", func(e *edit) error { return e.create("create", c) }
	case compares:
		return "compareAndSwap", func(e *edit) error { return e.compareAndSwap(c) }
	case f.prevExist != nil:
		return "update", func(e *edit) error { return e.update(c) }
	}
	return "set", func(e *edit) error { return e.create("set", c) }
}

// parse reads the query and the form of a request.
func (k *Keys) parse(r *http.Request) (*form, error) {
	bad := func(code int, cause string) error { return fail(code, cause, 0) }
	if err := r.ParseForm(); err != nil {
		return nil, bad(codeInvalidForm, err.Error())
	}
	f := &form{change: change{path: clean(strings.TrimPrefix(r.URL.Path, "/v2/keys"))}}
	p := parser{values: r.Form}
	f.prevIndex = p.number("prevIndex", codeIndexNaN)
	f.waitIndex = p.number("waitIndex", codeIndexNaN)
	f.recursive = p.flag("recursive")
	p.flag("sorted") // always
	p.flag("quorum") // always
	f.wait, f.dir, f.stream = p.flag("wait"), p.flag("dir"), p.flag("stream")
	f.refresh, f.noValue = p.flag("refresh"), p.flag("noValueOnSuccess")
	if r.Form.Has("ttl") && r.FormValue("ttl") != "" {
		ttl := p.number("ttl", codeTTLNaN)
		f.ttl = &ttl
	}
	if r.Form.Has("prevExist") {
		exist := p.flag("prevExist")
		f.prevExist = &exist
	}
	f.value, f.hasValue = r.FormValue("value"), r.Form.Has("value")
	f.prevValue = r.FormValue("prevValue")
	switch {
	case p.code != 0:
		return nil, bad(p.code, p.cause)
	case r.Form.Has("prevValue") && f.prevValue == "":
		return nil, bad(codePrevValue, `"prevValue" cannot be empty`)
	case f.wait && r.Method != http.MethodGet:
		return nil, bad(codeInvalidField, `"wait" can only be used with GET requests`)
	case f.refresh && f.hasValue:
		return nil, bad(codeRefreshValue, "A value was provided on a refresh")
	case f.refresh && f.ttl == nil:
		return nil, bad(codeRefreshTTL, "No TTL value set")
	}
	return f, nil
}

// parser reads fields; the first that does not parse sticks.
type parser struct {
	values url.Values
	code   int
	cause  string
}

func (p *parser) reject(name string, code int) {
	if p.code == 0 {
		p.code, p.cause = code, fmt.Sprintf("invalid value for %q", name)
		if name == "prevExist" {
			p.cause = "invalid value for prevExist"
		}
	}
}

func (p *parser) number(name string, code int) int64 {
	s := p.values.Get(name)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || name == "ttl" && n > int64(100*365*24*time.Hour/time.Second) {
		p.reject(name, code)
		return 0
	}
	return n
}

func (p *parser) flag(name string) bool {
	if !p.values.Has(name) {
		return false
	}
	v, err := strconv.ParseBool(p.values.Get(name))
	if err != nil {
		p.reject(name, codeInvalidField)
	}
	return v
}

package robustness

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	keys   = 6 // the key space: /r/0 to /r/5
	leases = 4
)

func keyName(i int) string { return fmt.Sprintf("/r/%d", i) }

// kind is what a request does.
type kind int

const (
	kindTxn kind = iota // also a plain put, get, range or delete: no compare, one operation
	kindGrant
	kindRevoke
)

// request is one request to the server.
type request struct {
	kind  kind
	lease int // of grant and revoke

	compares  bool // that the mod revision of key is mod
	key       int
	mod       int64
	then, els []op
}

// op is an operation of a transaction.
type op struct {
	do    byte // 'p'ut, 'g'et, 'd'elete, 'r'ange over all keys
	key   int
	value string
	lease int // 1 to leases; 0 is none
}

// response is what came of it. Unknown: it may have been done or not, once.
type response struct {
	unknown bool
	failed  string // etcd's error, which changes nothing
	rev     int64
	ok      bool
	results []string
}

// version is a key's newest version; value "" is none.
type version struct {
	value            string
	create, mod, ver int64
	lease            int
}

func (v version) String() string {
	if v.ver == 0 {
		return "-"
	}
	return fmt.Sprintf("%s %d/%d/%d lease %d", v.value, v.create, v.mod, v.ver, v.lease)
}

// state is the whole store. Comparable.
type state struct {
	rev    int64
	kvs    [keys]version
	leases [leases + 1]bool
}

const errLease = "lease not found"

// step applies a request.
func (s state) step(r request) (state, response) {
	switch r.kind {
	case kindGrant:
		if s.leases[r.lease] {
			return s, response{failed: "lease exists"}
		}
		s.leases[r.lease] = true
		return s, response{}
	case kindRevoke:
		if !s.leases[r.lease] {
			return s, response{failed: errLease}
		}
		s.leases[r.lease] = false
		gone := false
		for k := range s.kvs {
			if s.kvs[k].ver > 0 && s.kvs[k].lease == r.lease {
				s.kvs[k], gone = version{}, true
			}
		}
		if gone {
			s.rev++
		}
		return s, response{}
	}
	out := response{ok: !r.compares || s.kvs[r.key].mod == r.mod}
	ops := r.els
	if out.ok {
		ops = r.then
	}
	for _, o := range ops {
		if o.do == 'p' && o.lease != 0 && !s.leases[o.lease] {
			return s, response{failed: errLease}
		}
	}
	next := s
	changed := false
	for _, o := range ops {
		result, change := next.run(o, s.rev+1)
		out.results = append(out.results, result)
		changed = changed || change
	}
	if changed {
		next.rev++
	}
	out.rev = next.rev
	return next, out
}

func (s *state) run(o op, rev int64) (result string, changed bool) {
	kv := &s.kvs[o.key]
	switch o.do {
	case 'p':
		if kv.ver == 0 {
			kv.create = rev
		}
		kv.value, kv.mod, kv.lease = o.value, rev, o.lease
		kv.ver++
		return "", true
	case 'd':
		if kv.ver == 0 {
			return "0", false
		}
		*kv = version{}
		return "1", true
	case 'g':
		return kv.String(), false
	}
	return s.all(), false
}

// all shows every key there is.
func (s *state) all() string {
	var out []string
	for k, kv := range s.kvs {
		if kv.ver > 0 {
			out = append(out, fmt.Sprintf("%d: %s", k, kv))
		}
	}
	return strings.Join(out, ", ")
}

func (r response) equal(o response) bool {
	return r.failed == o.failed && r.rev == o.rev && r.ok == o.ok && slices.Equal(r.results, o.results)
}

// model judges histories. A fresh store is at revision 1 with no keys.
var model = porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{rev: 1}} },
	Step: func(s, in, out any) []any {
		want := out.(response)
		next, got := s.(state).step(in.(request))
		if want.unknown {
			return []any{s, next}
		}
		if !got.equal(want) {
			return nil
		}
		return []any{next}
	},
}

// linearizable checks a history. Unknown outcomes may take effect at any time
// after the call.
func linearizable(history []porcupine.Operation) error {
	result, info := porcupine.CheckOperationsVerbose(model.ToModel(), history, 5*time.Minute)
	if result == porcupine.Ok {
		return nil
	}
	// The longest part that does fit tells where it breaks.
	longest := []int{}
	for _, parts := range info.PartialLinearizations() {
		for _, p := range parts {
			if len(p) > len(longest) {
				longest = p
			}
		}
	}
	at := "the first"
	if n := len(longest); n > 0 {
		at = fmt.Sprintf("%+v → %+v", history[longest[n-1]].Input, history[longest[n-1]].Output)
	}
	return fmt.Errorf("%d operations: %s; %d of them can be ordered, up to %s", len(history), result, len(longest), at)
}

const never = math.MaxInt64

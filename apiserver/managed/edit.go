package managed

import (
	"strconv"
	"strings"
)

// op is what becomes of one path in the sets of owned fields.
type op uint8

const (
	keep op = iota // it may be on the way to others
	put            // the updater owns it now, and nobody else
	drop           // nobody owns it
)

// edit is what becomes of a path and of those below it, which are in the order of a set.
type edit struct {
	name  string // quoted, as in the set
	op    op
	inner []edit
}

// setEditor edits a set in its JSON form. It wants the very form the library
// writes, and no path that an object of the type cannot have.
type setEditor struct {
	in     string
	at     int
	out    setWriter
	own    bool // it is the updater's
	failed bool
}

// edited returns a set with edits, "{}" if nothing is left of it; ok is false
// for a set that is better left to the library.
func edited(set []byte, p *plan, edits []edit, own bool) (_ []byte, ok bool) {
	w := setEditor{in: string(set), own: own}
	w.out.buf = make([]byte, 0, len(set)+64)
	if !w.next('{') {
		return nil, false
	}
	w.out.buf = append(w.out.buf, '{')
	w.members(p, edits)
	w.out.buf = append(w.out.buf, '}')
	return w.out.buf, !w.failed && !w.out.failed && w.at == len(set)
}

// next consumes one byte, if it is c.
func (w *setEditor) next(c byte) bool {
	if w.at < len(w.in) && w.in[w.at] == c {
		w.at++
		return true
	}
	return false
}

// members copies what is in an object from behind its brace, with edits, and consumes its end.
func (w *setEditor) members(p *plan, edits []edit) {
	last, fields := "", p.fields
	for more := !w.next('}'); more && !w.failed; {
		name := w.name()
		if w.failed || name[1] != 'f' && w.less(name, name) || last != "" && !w.less(last, name) {
			w.failed = true // the first of these asks only whether the name is of the form
			return
		}
		last = name
		for len(edits) > 0 && edits[0].name != name && w.less(edits[0].name, name) {
			w.fresh(edits[:1])
			edits = edits[1:]
		}
		var e edit
		if len(edits) > 0 && edits[0].name == name {
			e, edits = edits[0], edits[1:]
		}
		var below *plan
		below, fields = p.below(name, fields)
		w.member(name, below, e)
		more = w.next(',')
		w.failed = w.failed || !more && !w.next('}')
	}
	w.fresh(edits)
}

// below is the plan of what a name in a set of p stands for, nil if it cannot
// stand there. Of a structure's fields it looks at those not yet passed.
func (p *plan) below(name string, fields []planField) (*plan, []planField) {
	kind := name[1]
	switch {
	case p.shape == structure:
		for i := range fields {
			if fields[i].name == name {
				return fields[i].plan, fields[i+1:]
			}
		}
	case p.shape == mapping && kind == 'f', p.shape == keyedList && kind == 'k', p.shape == setList && kind == 'v':
		return p.elem, nil
	}
	return nil, nil
}

// member copies the object under a name, with what an edit makes of it.
func (w *setEditor) member(name string, p *plan, e edit) {
	if p == nil || !w.next('{') {
		w.failed = true
		return
	}
	start := len(w.out.buf)
	w.out.open(name)
	inner := len(w.out.buf)
	const dot = `".":{},"`
	self := w.next('}')
	leaf := self
	if !leaf && strings.HasPrefix(w.in[w.at:], dot) {
		self = true
		w.at += len(dot) - 1
	}
	if self = e.op == keep && self || e.op == put && w.own; self {
		w.out.member(`"."`)
	}
	if leaf {
		w.fresh(e.inner)
	} else {
		w.members(p, e.inner)
	}
	w.close(start, inner, self)
}

// fresh writes what the updater comes to own under names that its set did not have.
func (w *setEditor) fresh(edits []edit) {
	for i := 0; i < len(edits) && w.own; i++ {
		e := &edits[i]
		start := len(w.out.buf)
		w.out.open(e.name)
		inner := len(w.out.buf)
		if e.op == put {
			w.out.member(`"."`)
		}
		w.fresh(e.inner)
		w.close(start, inner, e.op == put)
	}
}

// close ends what was opened at start: a path without others below it has no
// mark that it is a member, and one that is none and has none is not written.
func (w *setEditor) close(start, inner int, self bool) {
	mark := inner
	if self {
		mark += len(`".":{}`)
	}
	switch {
	case len(w.out.buf) > mark:
	case self:
		w.out.buf = w.out.buf[:inner]
	default:
		w.out.buf = w.out.buf[:start]
		return
	}
	w.out.buf = append(w.out.buf, '}')
}

// name consumes a name and the colon behind it, and returns it with its quotes.
func (w *setEditor) name() string {
	start := w.at
	if w.next('"') {
		for w.at < len(w.in) {
			c := w.in[w.at]
			w.at++
			if c == '"' {
				name := w.in[start:w.at]
				w.failed = w.failed || len(name) < len(`"f:"`) || name[2] != ':' || !w.next(':')
				return name
			}
			if c == '\\' && (w.in[start+1] == 'f' || !w.next('"')) || c < ' ' || c > '~' {
				break
			}
		}
	}
	w.failed = true
	return ""
}

// less is the order of names in a set.
func (w *setEditor) less(a, b string) bool {
	c, ok := compareNames(a, b)
	w.failed = w.failed || !ok
	return c < 0
}

// compareNames is the order of path elements, each as a JSON string without
// other escapes than quotes. It reports false when it does not know.
func compareNames(a, b string) (int, bool) {
	if len(a) < len(`"f:"`) || len(b) < len(`"f:"`) || a[1] != b[1] {
		return 0, false
	}
	kind := a[1]
	a, b = a[3:len(a)-1], b[3:len(b)-1]
	switch kind {
	case 'f':
		return strings.Compare(a, b), true
	case 'v':
		c, restA, restB, ok := compareScalars(a, b)
		return c, ok && len(restA)+len(restB) == 0
	case 'k':
		return compareKeys(a, b)
	}
	return 0, false
}

// compareKeys compares {\"a\":\"x\",\"b\":1} with another of its kind: names and values in turn.
func compareKeys(a, b string) (c int, ok bool) {
	last, name := "", ""
	for open := byte('{'); ; open = ',' {
		endA, endB := a == "}", b == "}"
		switch {
		case open == ',' && endA && endB:
			return 0, true
		case open == ',' && endA:
			return -1, true
		case open == ',' && endB:
			return 1, true
		case len(a) == 0 || len(b) == 0 || a[0] != open || b[0] != open:
			return 0, false
		}
		name = a
		if c, a, b, ok = compareScalars(a[1:], b[1:]); !ok || c != 0 {
			return c, ok
		}
		name = name[1 : len(name)-len(a)]
		if len(a) == 0 || len(b) == 0 || a[0] != ':' || b[0] != ':' || strings.Compare(last, name) >= 0 {
			return 0, false
		}
		last = name
		if c, a, b, ok = compareScalars(a[1:], b[1:]); !ok || c != 0 {
			return c, ok
		}
	}
}

// compareScalars compares two texts or two whole numbers at the beginnings of
// a and b and returns what is behind them.
func compareScalars(a, b string) (c int, restA, restB string, ok bool) {
	if text, restA, ok := cutText(a); ok {
		other, restB, ok := cutText(b)
		return strings.Compare(text, other), restA, restB, ok
	}
	x, restA, ok := cutInt(a)
	y, restB, too := cutInt(b)
	switch {
	case x < y:
		c = -1
	case x > y:
		c = 1
	}
	return c, restA, restB, ok && too
}

// cutText splits \"text\" off.
func cutText(in string) (text, rest string, ok bool) {
	in, ok = strings.CutPrefix(in, `\"`)
	if !ok {
		return "", "", false
	}
	return strings.Cut(in, `\"`)
}

func cutInt(in string) (n int64, rest string, ok bool) {
	end := strings.IndexFunc(in, func(r rune) bool { return r != '-' && (r < '0' || r > '9') })
	if end < 0 {
		end = len(in)
	}
	n, err := strconv.ParseInt(in[:end], 10, 64)
	return n, in[end:], err == nil && strconv.FormatInt(n, 10) == in[:end]
}

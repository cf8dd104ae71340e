// Package nft holds nftables tables as plain values: chains, rules, sets and elements that
// can be compared, printed in nft's syntax and applied to the kernel in one transaction.
//
// The values know nothing of netlink; Conn applies Changes, and Diff finds them. Rules are
// compared by their text, so a rule's text must say everything its expressions do.
package nft

import (
	"fmt"
	"slices"
	"strings"
)

// Table is one table as it should be.
type Table struct {
	Family Family
	Name   string
	Sets   []Set
	Chains []Chain
}

// Hook says where a base chain is attached.
type Hook string

// The hooks in use.
const (
	Prerouting  Hook = "prerouting"
	Input       Hook = "input"
	Forward     Hook = "forward"
	Output      Hook = "output"
	Postrouting Hook = "postrouting"
)

// Chain is a chain with all its rules. Hook, Type ("nat" or "filter") and Priority are set
// on base chains only.
type Chain struct {
	Name     string
	Hook     Hook
	Type     string
	Priority int32
	Rules    []Rule
}

// Set is a set or map and its elements.
type Set struct {
	Name    string
	Key     []Type
	Data    []Type // a map's data fields; empty in sets and verdict maps
	Verdict bool   // a verdict map: an element's Val is "goto <chain>" or "drop"
	// Interval sets hold ranges: every element has KeyEnd.
	Interval bool
	// Dynamic sets are filled by rules, with timeouts; they have no elements here.
	Dynamic bool
	// Size bounds a dynamic set; 0 means unbounded.
	Size  uint32
	Elems []Elem
}

// Elem is one element. Key, KeyEnd and Val are packed fields (see Key), except that a
// verdict map's Val is the verdict in nft's words.
type Elem struct{ Key, KeyEnd, Val string }

// SetElems are elements of one set.
type SetElems struct {
	Set   *Set
	Elems []Elem
}

// Changes is what leads from one state of a table to another.
type Changes struct {
	Family Family
	Name   string
	// Reset makes the table anew, whatever the kernel holds under that name.
	Reset bool
	// Delete removes the table; nothing else is then looked at.
	Delete     bool
	NewSets    []Set
	NewChains  []Chain
	Rewrite    []Chain // chains whose rules are replaced
	DelElems   []SetElems
	AddElems   []SetElems
	GoneChains []Chain
	GoneSets   []Set
}

// Empty reports whether there is nothing to do.
func (c *Changes) Empty() bool {
	return !c.Reset && !c.Delete && len(c.NewSets)+len(c.NewChains)+len(c.Rewrite)+
		len(c.DelElems)+len(c.AddElems)+len(c.GoneChains)+len(c.GoneSets) == 0
}

// Diff finds what turns old into want. With old nil the table is made anew.
func Diff(old, want *Table) Changes {
	c := Changes{Family: want.Family, Name: want.Name, Reset: old == nil}
	if old == nil {
		old = &Table{}
	}
	oldSets, oldChains := map[string]*Set{}, map[string]*Chain{}
	for i := range old.Sets {
		oldSets[old.Sets[i].Name] = &old.Sets[i]
	}
	for i := range old.Chains {
		oldChains[old.Chains[i].Name] = &old.Chains[i]
	}
	for i := range want.Sets {
		s := &want.Sets[i]
		was := oldSets[s.Name]
		if was == nil {
			c.NewSets = append(c.NewSets, *s)
			was = &Set{}
		}
		c.addElemDiff(was, s)
		delete(oldSets, s.Name)
	}
	for i := range want.Chains {
		ch := want.Chains[i]
		was := oldChains[ch.Name]
		if was == nil {
			c.NewChains = append(c.NewChains, ch)
		} else if !sameRules(was.Rules, ch.Rules) {
			c.Rewrite = append(c.Rewrite, ch)
		}
		delete(oldChains, ch.Name)
	}
	for i := range old.Chains {
		if oldChains[old.Chains[i].Name] != nil {
			c.GoneChains = append(c.GoneChains, old.Chains[i])
		}
	}
	for i := range old.Sets {
		if oldSets[old.Sets[i].Name] != nil {
			c.GoneSets = append(c.GoneSets, old.Sets[i])
		}
	}
	return c
}

func (c *Changes) addElemDiff(was, want *Set) {
	have := make(map[Elem]bool, len(was.Elems))
	for _, e := range was.Elems {
		have[e] = true
	}
	var add, del []Elem
	for _, e := range want.Elems {
		if !have[e] {
			add = append(add, e)
		}
		delete(have, e)
	}
	for _, e := range was.Elems {
		if have[e] {
			del = append(del, e)
		}
	}
	if len(del) > 0 {
		c.DelElems = append(c.DelElems, SetElems{want, del})
	}
	if len(add) > 0 {
		c.AddElems = append(c.AddElems, SetElems{want, add})
	}
}

func sameRules(a, b []Rule) bool {
	return slices.EqualFunc(a, b, func(x, y Rule) bool { return x.Text == y.Text })
}

// String prints the changes, a line each, + for what comes and - for what goes.
func (c *Changes) String() string {
	var b strings.Builder
	p := func(sign, format string, args ...any) {
		fmt.Fprintf(&b, "%s %s\n", sign, fmt.Sprintf(format, args...))
	}
	at := fmt.Sprintf("%s %s", c.Family, c.Name)
	if c.Delete {
		p("-", "table %s", at)
		return b.String()
	}
	if c.Reset {
		p("+", "table %s", at)
	}
	for i := range c.NewSets {
		p("+", "%s", c.NewSets[i].head())
	}
	for _, ch := range c.NewChains {
		p("+", "%s", ch.head())
		for _, r := range ch.Rules {
			p("+", "  %s", r.Text)
		}
	}
	for _, ch := range c.Rewrite {
		p("~", "%s", ch.head())
		for _, r := range ch.Rules {
			p("+", "  %s", r.Text)
		}
	}
	for _, d := range c.DelElems {
		for _, line := range d.lines() {
			p("-", "element %s { %s }", d.Set.Name, line)
		}
	}
	for _, a := range c.AddElems {
		for _, line := range a.lines() {
			p("+", "element %s { %s }", a.Set.Name, line)
		}
	}
	for _, ch := range c.GoneChains {
		p("-", "chain %s", ch.Name)
	}
	for i := range c.GoneSets {
		p("-", "set %s", c.GoneSets[i].Name)
	}
	return b.String()
}

func (ch Chain) head() string {
	if ch.Hook == "" {
		return "chain " + ch.Name
	}
	return fmt.Sprintf("chain %s type %s hook %s priority %d", ch.Name, ch.Type, ch.Hook, ch.Priority)
}

func (s *Set) head() string {
	kind, typ := "set", typesText(s.Key)
	switch {
	case s.Verdict:
		kind, typ = "map", typ+" : verdict"
	case len(s.Data) > 0:
		kind, typ = "map", typ+" : "+typesText(s.Data)
	}
	flags := ""
	if s.Interval {
		flags = " flags interval"
	}
	if s.Dynamic {
		flags = fmt.Sprintf(" flags dynamic,timeout size %d", s.Size)
	}
	return fmt.Sprintf("%s %s type %s%s", kind, s.Name, typ, flags)
}

func typesText(types []Type) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.String()
	}
	return strings.Join(names, " . ")
}

// lines prints the elements in a settled order: numerically by key.
func (s SetElems) lines() []string {
	elems := slices.Clone(s.Elems)
	slices.SortFunc(elems, func(a, b Elem) int {
		return strings.Compare(a.Key+a.KeyEnd, b.Key+b.KeyEnd)
	})
	lines := make([]string, len(elems))
	for i, e := range elems {
		lines[i] = fieldsText(e.Key, s.Set.Key)
		if e.KeyEnd != "" {
			lines[i] += " to " + fieldsText(e.KeyEnd, s.Set.Key)
		}
		switch {
		case s.Set.Verdict:
			lines[i] += " : " + e.Val
		case e.Val != "":
			lines[i] += " : " + fieldsText(e.Val, s.Set.Data)
		}
	}
	return lines
}

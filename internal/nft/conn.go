package nft

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// elemChunk is how many elements one netlink message carries. The list is one nested
	// attribute of at most 64 KiB; an IPv6 element with a verdict is below 120 bytes.
	elemChunk = 400
	// bufferBytes is the socket's buffer each way: a whole transaction is one send, and
	// every message is answered before the first answer is read.
	bufferBytes = 64 << 20
	// replyTimeout bounds the wait for the kernel's answers.
	replyTimeout = 60 * time.Second
)

// Conn applies changes in one network namespace. It holds no socket between calls, so a
// failed call leaves nothing behind that could confuse the next.
type Conn struct {
	netns string
}

// NewConn returns a Conn for the network namespace at path; "" is the caller's own.
func NewConn(netnsPath string) *Conn { return &Conn{netns: netnsPath} }

func (c *Conn) open() (*nftables.Conn, func(), error) {
	opts := []nftables.ConnOption{nftables.WithSockOptions(func(nl *netlink.Conn) error {
		return errors.Join(nl.SetReadBuffer(bufferBytes), nl.SetWriteBuffer(bufferBytes),
			nl.SetDeadline(time.Now().Add(replyTimeout)))
	})}
	done := func() {}
	if c.netns != "" {
		f, err := os.Open(c.netns)
		if err != nil {
			return nil, nil, fmt.Errorf("open network namespace %s: %w", c.netns, err)
		}
		done = func() { _ = f.Close() }
		opts = append(opts, nftables.WithNetNSFd(int(f.Fd())))
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, done, nil
}

// Apply makes all changes in one kernel transaction: all of them hold afterwards, or, on
// an error, none.
func (c *Conn) Apply(changes ...Changes) error {
	conn, done, err := c.open()
	if err != nil {
		return err
	}
	defer done()
	for i := range changes {
		if err := send(conn, &changes[i]); err != nil {
			return fmt.Errorf("encode nftables table %s %s: %w", changes[i].Family, changes[i].Name, err)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("apply nftables changes: %w", err)
	}
	return nil
}

// Exists reports whether the kernel has a table of that name and family.
func (c *Conn) Exists(f Family, name string) (bool, error) {
	conn, done, err := c.open()
	if err != nil {
		return false, err
	}
	defer done()
	tables, err := conn.ListTablesOfFamily(f.kernel())
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == name {
			return true, nil
		}
	}
	return false, nil
}

// Purge removes the named table in both families; one that does not exist is no error.
func (c *Conn) Purge(name string) error {
	for _, f := range []Family{IPv4, IPv6} {
		there, err := c.Exists(f, name)
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		if err := c.Apply(Changes{Family: f, Name: name, Delete: true}); err != nil {
			return err
		}
	}
	return nil
}

// send queues one table's changes in the order the kernel needs: what is referred to
// before what refers to it, and the other way round for what goes.
func send(conn *nftables.Conn, c *Changes) error {
	t := &nftables.Table{Family: c.Family.kernel(), Name: c.Name}
	if c.Reset {
		// Adding first makes the deletion valid whether or not the table exists.
		conn.AddTable(t)
		conn.DelTable(t)
		conn.AddTable(t)
	}
	if c.Delete {
		conn.DelTable(t)
		return nil
	}
	for i := range c.NewSets {
		if err := conn.AddSet(c.NewSets[i].kernel(t), nil); err != nil {
			return err
		}
	}
	for _, ch := range c.NewChains {
		conn.AddChain(ch.kernel(t))
	}
	for _, d := range c.DelElems {
		if err := eachChunk(d, t, conn.SetDeleteElements); err != nil {
			return err
		}
	}
	for _, ch := range c.Rewrite {
		conn.FlushChain(ch.kernel(t))
	}
	for _, chains := range [][]Chain{c.NewChains, c.Rewrite} {
		for _, ch := range chains {
			for _, r := range ch.Rules {
				conn.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: ch.Name, Table: t}, Exprs: r.Exprs})
			}
		}
	}
	for _, a := range c.AddElems {
		if err := eachChunk(a, t, conn.SetAddElements); err != nil {
			return err
		}
	}
	for _, ch := range c.GoneChains {
		conn.FlushChain(ch.kernel(t))
	}
	for _, ch := range c.GoneChains {
		conn.DelChain(ch.kernel(t))
	}
	for i := range c.GoneSets {
		conn.DelSet(c.GoneSets[i].kernel(t))
	}
	return nil
}

func eachChunk(s SetElems, t *nftables.Table, do func(*nftables.Set, []nftables.SetElement) error) error {
	set := s.Set.kernel(t)
	for elems := s.Elems; len(elems) > 0; {
		n := min(len(elems), elemChunk)
		out := make([]nftables.SetElement, n)
		for i, e := range elems[:n] {
			out[i] = nftables.SetElement{Key: []byte(e.Key)}
			if e.KeyEnd != "" {
				out[i].KeyEnd = []byte(e.KeyEnd)
			}
			if s.Set.Verdict {
				v, err := parseVerdict(e.Val)
				if err != nil {
					return err
				}
				out[i].VerdictData = v
			} else if e.Val != "" {
				out[i].Val = []byte(e.Val)
			}
		}
		if err := do(set, out); err != nil {
			return err
		}
		elems = elems[n:]
	}
	return nil
}

func parseVerdict(s string) (*expr.Verdict, error) {
	if s == "drop" {
		return &expr.Verdict{Kind: expr.VerdictDrop}, nil
	}
	if chain, ok := strings.CutPrefix(s, "goto "); ok {
		return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}, nil
	}
	return nil, fmt.Errorf("verdict %q: want drop or goto <chain>", s)
}

func (s *Set) kernel(t *nftables.Table) *nftables.Set {
	out := &nftables.Set{
		Table: t, Name: s.Name, IsMap: s.Verdict || len(s.Data) > 0,
		KeyType: concatType(s.Key), Concatenation: len(s.Key) > 1,
		Interval: s.Interval, Dynamic: s.Dynamic, HasTimeout: s.Dynamic, Size: s.Size,
		KeyByteOrder: binaryutil.BigEndian,
	}
	switch {
	case s.Verdict:
		out.DataType = nftables.TypeVerdict
	case len(s.Data) > 0:
		out.DataType = concatType(s.Data)
	}
	return out
}

func concatType(types []Type) nftables.SetDatatype {
	if len(types) == 1 {
		return types[0].kernel()
	}
	all := make([]nftables.SetDatatype, len(types))
	for i, t := range types {
		all[i] = t.kernel()
	}
	// At most five fields are ever joined, so the limit the error speaks of is not met;
	// nft's own encoding of the name has room for no more, the kernel does not mind.
	joined, err := nftables.ConcatSetType(all...)
	if err != nil {
		return nftables.TypeInvalid
	}
	return joined
}

func (ch Chain) kernel(t *nftables.Table) *nftables.Chain {
	out := &nftables.Chain{Name: ch.Name, Table: t}
	if ch.Hook == "" {
		return out
	}
	hooks := map[Hook]uint32{Prerouting: unix.NF_INET_PRE_ROUTING, Input: unix.NF_INET_LOCAL_IN,
		Forward: unix.NF_INET_FORWARD, Output: unix.NF_INET_LOCAL_OUT, Postrouting: unix.NF_INET_POST_ROUTING}
	out.Hooknum = nftables.ChainHookRef(nftables.ChainHook(hooks[ch.Hook]))
	out.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(ch.Priority))
	out.Type = nftables.ChainType(ch.Type)
	accept := nftables.ChainPolicyAccept
	out.Policy = &accept
	return out
}

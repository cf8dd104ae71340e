package etcdctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

func needKey(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("key required")
	}
	return nil
}

// write is one of the commands that change a node.
type write struct {
	use, short, method string
	fixed              url.Values
	value              bool // takes a value
	quiet              bool // prints nothing
}

func (c *v2) writers() []*cobra.Command {
	dir := func(more ...string) url.Values {
		v := url.Values{"dir": {"true"}}
		for _, m := range more {
			v.Set("prevExist", m)
		}
		return v
	}
	var cmds []*cobra.Command
	for _, w := range []write{
		{"set <key> <value>", "set the value of a key", http.MethodPut, nil, true, false},
		{"mk <key> <value>", "make a new key with a given value", http.MethodPut, url.Values{"prevExist": {"false"}}, true, false},
		{"update <key> <value>", "update an existing key with a given value", http.MethodPut, url.Values{"prevExist": {"true"}}, true, false},
		{"mkdir <key>", "make a new directory", http.MethodPut, dir("false"), false, true},
		{"setdir <key>", "make a directory, or change the time of one", http.MethodPut, dir(), false, true},
		{"updatedir <key>", "update an existing directory", http.MethodPut, dir("true"), false, true},
		{"rm <key>", "remove a key or a directory", http.MethodDelete, nil, false, false},
		{"rmdir <key>", "remove an empty directory", http.MethodDelete, dir(), false, false},
	} {
		cmds = append(cmds, c.writer(w))
	}
	return cmds
}

func (c *v2) writer(w write) *cobra.Command {
	var ttl time.Duration
	var seconds, withIndex uint64
	var withValue string
	var recursive, isDir, inOrder bool
	cmd := &cobra.Command{Use: w.use, Short: w.short, Args: needKey}
	f := cmd.Flags()
	compare := func(prefix string) {
		f.StringVar(&withValue, prefix+"with-value", "", "previous value")
		f.Uint64Var(&withIndex, prefix+"with-index", 0, "previous index")
	}
	switch {
	case w.method == http.MethodPut:
		f.Uint64Var(&seconds, "ttl", 0, "seconds to live")
	case cmd.Name() == "rm":
		f.BoolVarP(&recursive, "recursive", "r", false, "remove a directory with all below it")
		f.BoolVar(&isDir, "dir", false, "remove a key or an empty directory")
		compare("")
	}
	switch cmd.Name() {
	case "set":
		compare("swap-")
	case "mk":
		f.BoolVar(&inOrder, "in-order", false, "make a key with the next name under the given one")
	}
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		form, method := url.Values{}, w.method
		for key, v := range w.fixed {
			form[key] = v
		}
		if w.value {
			value, err := c.valueOf(args)
			if err != nil {
				return err
			}
			form.Set("value", value)
		}
		ttl = time.Duration(seconds) * time.Second
		setIf(form, "ttl", fmt.Sprint(seconds), ttl > 0)
		setIf(form, "prevValue", withValue, withValue != "")
		setIf(form, "prevIndex", fmt.Sprint(withIndex), withIndex > 0)
		setIf(form, "recursive", "true", recursive)
		setIf(form, "dir", "true", isDir)
		if inOrder {
			method = http.MethodPost
			form.Del("prevExist")
		}
		r, err := c.call(method, args[0], form)
		if err != nil {
			return err
		}
		if !w.quiet || c.format != "simple" {
			c.show(r)
		}
		return nil
	}
	return cmd
}

func setIf(form url.Values, key, value string, ok bool) {
	if ok {
		form.Set(key, value)
	}
}

func (c *v2) readers() []*cobra.Command {
	var sorted, quorum, recursive, slash bool
	get := &cobra.Command{Use: "get <key>", Short: "retrieve the value of a key", Args: needKey,
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := c.call(http.MethodGet, args[0], url.Values{})
			if err != nil {
				return err
			}
			if r.Node.Dir {
				return fmt.Errorf("%s: is a directory", r.Node.Key)
			}
			c.show(r)
			return nil
		}}
	ls := &cobra.Command{Use: "ls [key]", Short: "retrieve a directory",
		RunE: func(_ *cobra.Command, args []string) error {
			form := url.Values{}
			setIf(form, "recursive", "true", recursive)
			r, err := c.call(http.MethodGet, append(args, "/")[0], form)
			if err != nil {
				return err
			}
			if c.format == "json" {
				c.show(r)
				return nil
			}
			if !r.Node.Dir {
				fmt.Fprintln(c.out, r.Node.Key)
			}
			c.list(r.Node, slash)
			return nil
		}}
	for _, cmd := range []*cobra.Command{get, ls} {
		cmd.Flags().BoolVar(&sorted, "sort", false, "answers are always sorted")
		cmd.Flags().BoolVarP(&quorum, "quorum", "q", false, "answers are always the newest")
	}
	ls.Flags().BoolVarP(&recursive, "recursive", "r", false, "with all below")
	ls.Flags().BoolVarP(&slash, "p", "p", false, "end directories in a slash")
	return []*cobra.Command{get, ls}
}

func (c *v2) list(n *node, slash bool) {
	for _, child := range n.Nodes {
		name := child.Key
		if child.Dir && slash {
			name += "/"
		}
		fmt.Fprintln(c.out, name)
		c.list(child, slash)
	}
}

type v2member struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"`
}

// fetch reads an answer that is no node.
func (c *v2) fetch(method, path string, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.totalTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return &exitError{4, refusal(resp.StatusCode, json.NewDecoder(resp.Body))}
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

func (c *v2) memberCommands() *cobra.Command {
	member := &cobra.Command{Use: "member", Short: "member list, add, remove and update"}
	list := &cobra.Command{Use: "list", Short: "list the members",
		RunE: func(*cobra.Command, []string) error {
			var all struct{ Members []v2member }
			var leader v2member
			if err := c.fetch(http.MethodGet, "/v2/members", &all); err != nil {
				return err
			}
			if err := c.fetch(http.MethodGet, "/v2/members/leader", &leader); err != nil {
				return err
			}
			for _, m := range all.Members {
				fmt.Fprintf(c.out, "%s: name=%s peerURLs=%s clientURLs=%s isLeader=%v\n", m.ID, m.Name, join(m.PeerURLs), join(m.ClientURLs), m.ID == leader.ID)
			}
			return nil
		}}
	change := func(use, method string) *cobra.Command {
		return &cobra.Command{Use: use, Args: cobra.MinimumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			path := "/v2/members"
			if method != http.MethodPost {
				path += "/" + url.PathEscape(args[0])
			}
			return c.fetch(method, path, &struct{}{})
		}}
	}
	member.AddCommand(list, change("add <name> <peerURL>", http.MethodPost), change("remove <id>", http.MethodDelete), change("update <id> <peerURLs>", http.MethodPut))
	return member
}

func join(urls []string) string {
	s := ""
	for i, u := range urls {
		if i > 0 {
			s += ","
		}
		s += u
	}
	return s
}

func (c *v2) health() *cobra.Command {
	return &cobra.Command{Use: "cluster-health", Short: "check the health of the cluster",
		RunE: func(*cobra.Command, []string) error {
			var all struct{ Members []v2member }
			if err := c.fetch(http.MethodGet, "/v2/members", &all); err != nil {
				fmt.Fprintln(c.out, "cluster may be unhealthy: failed to list members")
				return err
			}
			for _, m := range all.Members {
				var h struct{ Health string }
				if err := c.fetch(http.MethodGet, "/health", &h); err != nil || h.Health != "true" {
					fmt.Fprintf(c.out, "member %s is unhealthy: got unhealthy result from %s\n", m.ID, join(m.ClientURLs))
					return &exitError{5, errors.New("cluster is unhealthy")}
				}
				fmt.Fprintf(c.out, "member %s is healthy: got healthy result from %s\n", m.ID, join(m.ClientURLs))
			}
			fmt.Fprintln(c.out, "cluster is healthy")
			return nil
		}}
}

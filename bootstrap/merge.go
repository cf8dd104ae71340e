package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	yaml "go.yaml.in/yaml/v3"

	"github.com/skiff-project/skiff/internal/atomicfile"
)

// lockWait is how long another program may hold a kubeconfig's lock.
const lockWait = 2 * time.Second

// MergeKubeconfig puts the current context of the kubeconfig admin, with its
// cluster and user, into the user's kubeconfig at path under the given name,
// and makes it the current context. Everything else in the file stays as it
// is, comments and order included. The file is made when missing; one that
// cannot be understood is an error and is not touched.
func MergeKubeconfig(path, admin, context string) error {
	src, err := loadDocument(admin)
	if err != nil {
		return err
	}
	if src == nil {
		return fmt.Errorf("kubeconfig %s does not exist: start the cluster first", admin)
	}
	ctx := entry(src, "contexts", scalar(src, "current-context"))
	cluster := entry(src, "clusters", scalar(field(ctx, "context"), "cluster"))
	user := entry(src, "users", scalar(field(ctx, "context"), "user"))
	if cluster == nil || user == nil {
		return fmt.Errorf("kubeconfig %s has no current context with a cluster and a user", admin)
	}
	return edit(path, func(root *yaml.Node) error {
		setDefault(root, "kind", "Config") // each goes first, so apiVersion ends up there
		setDefault(root, "apiVersion", "v1")
		for _, e := range []struct {
			list, key string
			value     *yaml.Node
		}{
			{"clusters", "cluster", field(cluster, "cluster")},
			{"contexts", "context", mapping("cluster", context, "user", context)},
			{"users", "user", field(user, "user")},
		} {
			if err := put(root, e.list, context, e.key, e.value); err != nil {
				return err
			}
		}
		set(root, "current-context", text(context))
		return nil
	})
}

// RemoveContext takes the context of that name, and the cluster and user of
// the same name, out of the kubeconfig at path. What is not there is fine.
func RemoveContext(path, context string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return edit(path, func(root *yaml.Node) error {
		for _, list := range []string{"clusters", "contexts", "users"} {
			remove(root, list, context)
		}
		if scalar(root, "current-context") == context {
			set(root, "current-context", text(""))
		}
		return nil
	})
}

// edit changes the kubeconfig at path under the lock kubectl takes too. A
// symbolic link is followed; owner and permissions are kept.
func edit(path string, change func(root *yaml.Node) error) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	unlock, err := lock(path + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	root, err := loadDocument(path)
	if err != nil {
		return err
	}
	if root == nil {
		root = mapping()
	}
	if err := change(root); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	perm, owner := os.FileMode(0o600), filepath.Dir(path)
	if fi, err := os.Stat(path); err == nil {
		perm, owner = fi.Mode().Perm(), path
	}
	uid, gid := -1, -1
	if fi, err := os.Stat(owner); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(st.Uid), int(st.Gid)
		}
	}
	if err := atomicfile.Write(path, out.Bytes(), perm); err != nil {
		return err
	}
	if os.Geteuid() == 0 { // under sudo the file belongs to someone else
		return os.Lchown(path, uid, gid)
	}
	return nil
}

func lock(path string) (unlock func(), err error) {
	for deadline := time.Now().Add(lockWait); ; {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0)
		if err == nil {
			f.Close()
			return func() { os.Remove(path) }, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("another program is changing the kubeconfig (if none is, remove %s)", path)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// loadDocument returns the mapping a YAML (or JSON) file holds, nil when the
// file is missing or empty.
func loadDocument(path string) (*yaml.Node, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	if len(doc.Content) == 0 || (doc.Content[0].Kind == yaml.ScalarNode && doc.Content[0].Tag == "!!null") {
		return nil, nil
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("kubeconfig %s: not a kubeconfig", path)
	}
	return doc.Content[0], nil
}

func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	if s == "" {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func mapping(pairs ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, p := range pairs {
		n.Content = append(n.Content, text(p))
	}
	return n
}

// field returns the value of key in a mapping, nil when there is none.
func field(m *yaml.Node, key string) *yaml.Node {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

func scalar(m *yaml.Node, key string) string {
	if v := field(m, key); v != nil && v.Kind == yaml.ScalarNode {
		return v.Value
	}
	return ""
}

func set(m *yaml.Node, key string, value *yaml.Node) {
	if v := field(m, key); v != nil {
		value.LineComment = v.LineComment
		*v = *value
		return
	}
	m.Content = append(m.Content, text(key), value)
}

func setDefault(m *yaml.Node, key, value string) {
	if field(m, key) == nil {
		m.Content = append([]*yaml.Node{text(key), text(value)}, m.Content...)
	}
}

// entry returns the member of a list that has this name.
func entry(root *yaml.Node, list, name string) *yaml.Node {
	l := field(root, list)
	if l == nil {
		return nil
	}
	for _, e := range l.Content {
		if scalar(e, "name") == name {
			return e
		}
	}
	return nil
}

// put sets key of the member of a list that has this name, adding it.
func put(root *yaml.Node, list, name, key string, value *yaml.Node) error {
	l := field(root, list)
	switch {
	case l == nil:
		l = &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		root.Content = append(root.Content, text(list), l)
	case l.Kind == yaml.ScalarNode && l.Tag == "!!null":
		*l = yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	case l.Kind != yaml.SequenceNode:
		return fmt.Errorf("%s is not a list", list)
	}
	if len(l.Content) == 0 {
		l.Style = 0 // an empty list is written [], and would stay on one line
	}
	if e := entry(root, list, name); e != nil {
		set(e, key, value)
		return nil
	}
	e := mapping()
	set(e, key, value)
	set(e, "name", text(name))
	l.Content = append(l.Content, e)
	return nil
}

func remove(root *yaml.Node, list, name string) {
	l := field(root, list)
	if l == nil || l.Kind != yaml.SequenceNode {
		return
	}
	var kept []*yaml.Node
	for _, e := range l.Content {
		if scalar(e, "name") != name {
			kept = append(kept, e)
		}
	}
	l.Content = kept
}

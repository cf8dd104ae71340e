package bootstrap

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

const mine = `# my clusters
apiVersion: v1
kind: Config
preferences: {}
clusters:
- name: work # the office
  cluster:
    server: https://work:6443
contexts:
- name: work
  context: {cluster: work, user: me, namespace: dev}
current-context: work
users:
- name: me
  user:
    token: secret
custom-field: kept
`

func TestMergeAndRemoveContext(t *testing.T) {
	admin := ensure(t, options(t.TempDir(), start)).AdminConf
	for _, c := range []struct {
		name, before string
		keep         []string
	}{
		{"no file", "", nil},
		{"empty lists", "apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers: null\ncurrent-context: \"\"\n", nil},
		{"a file with comments", mine, []string{"# my clusters", "# the office", "custom-field: kept", "token: secret", "{cluster: work, user: me, namespace: dev}"}},
		{"JSON", `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"work","cluster":{"server":"https://work"}}],"contexts":null,"users":[]}`, []string{`"https://work"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "sub", "config")
			if c.before != "" {
				_ = os.Mkdir(filepath.Dir(path), 0o700)
				if err := os.WriteFile(path, []byte(c.before), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := MergeKubeconfig(path, admin, "skiff"); err != nil {
					t.Fatal(err)
				}
			}
			data, _ := os.ReadFile(path)
			config, err := clientcmd.Load(data)
			if err != nil {
				t.Fatalf("%v\n%s", err, data)
			}
			if config.CurrentContext != "skiff" || config.Contexts["skiff"].Cluster != "skiff" || config.Clusters["skiff"].Server != "https://127.0.0.1:6443" || len(config.AuthInfos["skiff"].ClientKeyData) == 0 {
				t.Errorf("%s", data)
			}
			for _, k := range c.keep {
				if !strings.Contains(string(data), k) {
					t.Errorf("lost %q in\n%s", k, data)
				}
			}
			if fi, _ := os.Stat(path); c.before != "" && fi.Mode().Perm() != 0o640 || c.before == "" && fi.Mode().Perm() != 0o600 {
				t.Errorf("permissions %v", fi.Mode().Perm())
			}
			if err := RemoveContext(path, "skiff"); err != nil {
				t.Fatal(err)
			}
			data, _ = os.ReadFile(path)
			if config, err = clientcmd.Load(data); err != nil || strings.Contains(string(data), "skiff") || config.CurrentContext != "" {
				t.Errorf("%v\n%s", err, data)
			}
			for _, k := range c.keep {
				if !strings.Contains(string(data), k) {
					t.Errorf("lost %q in\n%s", k, data)
				}
			}
			if _, err := os.Stat(path + ".lock"); err == nil {
				t.Error("the lock is left behind")
			}
		})
	}
}

func TestMergeLeavesWhatItDoesNotUnderstand(t *testing.T) {
	admin := ensure(t, options(t.TempDir(), start)).AdminConf
	for name, data := range map[string]string{"not YAML": "a: [", "a list": "- a\n", "a text": "hello\n", "clusters a text": "clusters: x\n"} {
		path := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		err := MergeKubeconfig(path, admin, "skiff")
		after, _ := os.ReadFile(path)
		if err == nil || !strings.Contains(err.Error(), path) || string(after) != data {
			t.Errorf("%s: %v, file now %q", name, err, after)
		}
	}
	if err := MergeKubeconfig(filepath.Join(t.TempDir(), "c"), "/nonexistent/admin.conf", "skiff"); err == nil {
		t.Error("merging from nothing")
	}
	if err := RemoveContext("/nonexistent/config", "skiff"); err != nil {
		t.Error(err)
	}
}

func TestMergeFollowsLinksAndWaitsForTheLock(t *testing.T) {
	admin := ensure(t, options(t.TempDir(), start)).AdminConf
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := os.WriteFile(real, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if err := MergeKubeconfig(link, admin, "skiff"); err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Lstat(link); fi.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced by a file")
	}
	if err := os.WriteFile(real+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := RemoveContext(link, "skiff")
	if err == nil || !strings.Contains(err.Error(), real+".lock") {
		t.Errorf("with another's lock: %v", err)
	}
}

package kubectl

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/skiff-project/skiff/cli/kubectl/english"
)

// Fails when something asked for kubectl's translations before the loader was
// replaced: every start of skiff would unpack them again.
func TestTranslationsAreNotLoadedByOthers(t *testing.T) {
	if english.Installed != nil {
		t.Fatal(english.Installed)
	}
}

func TestFallback(t *testing.T) {
	dir := t.TempDir()
	file := func(name, data string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	admin := file("admin.conf", "")
	knows := file("knows", "apiVersion: v1\nkind: Config\ncontexts: [{name: skiff, context: {cluster: skiff, user: skiff}}]\n")
	other := file("other", "apiVersion: v1\nkind: Config\ncontexts: [{name: work, context: {cluster: work}}]\n")
	missing := filepath.Join(dir, "missing")
	for _, c := range []struct{ name, env, home, admin, want string }{
		{"the user says which", "/x", missing, admin, ""},
		{"the user's knows the cluster", "", knows, admin, ""},
		{"the user's does not", "", other, admin, admin},
		{"the user has none", "", missing, admin, admin},
		{"no cluster here", "", missing, missing, ""},
	} {
		if got := fallback(c.env, c.home, c.admin); got != c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

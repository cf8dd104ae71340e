package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/cluster/rotation"
)

// A rotation stores every Secret under a new key, and the old key is gone from
// the file; one that cannot complete keeps it.
func TestRotateSecrets(t *testing.T) {
	t.Parallel()
	opts := TestOptions{}
	if err := opts.setDefaults(); err != nil {
		t.Fatal(err)
	}
	c := newCluster(nil)
	c.log = slog.New(slog.DiscardHandler)
	c.logs = &logs{all: c.log}
	c.tuning.ShutdownGrace, c.encryptionFile = testGrace, filepath.Join(t.TempDir(), "encryption.yaml")
	if err := os.WriteFile(c.encryptionFile, encryption.Generate("key1"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	ctx, abort := context.WithCancelCause(t.Context())
	c.abort = abort
	if err := c.openInMemory(opts); err != nil {
		t.Fatal(err)
	}
	if _, err := c.startAPI(ctx); err != nil {
		t.Fatal(err)
	}
	secrets := c.client.CoreV1().Secrets("default")
	const n = 1100 // three pages
	for i := range n {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%d", i)}, Data: map[string][]byte{"k": []byte("v")}}
		if _, err := secrets.Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var last rotation.Step
	for _, key := range []string{"key2", "key3"} {
		if err := c.keys.Rotate(ctx, c.InProcessConfig(), c.store, func(s rotation.Step) { last = s }); err != nil {
			t.Fatal(err)
		}
		if last.Key != key || last.Done < n || last.Done != last.Total {
			t.Errorf("the last step is %+v", last)
		}
		snap, err := c.store.Snapshot(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		for kv := range snap.Range("/registry/secrets/", "/registry/secrets0") {
			if want := "k8s:enc:aesgcm:v1:" + key + ":"; !strings.HasPrefix(string(kv.Value), want) {
				t.Fatalf("%s is stored as %.40q, want %s", kv.Key, kv.Value, want)
			}
		}
		text, err := os.ReadFile(c.encryptionFile)
		if err != nil || strings.Count(string(text), "name: ") != 1 || !strings.Contains(string(text), "name: "+key) {
			t.Errorf("the file is %s, %v", text, err)
		}
		if info, err := os.Stat(c.encryptionFile); err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info.Mode(), err)
		}
	}
	if _, err := secrets.Get(ctx, "s7", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

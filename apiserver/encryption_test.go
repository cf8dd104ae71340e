package apiserver_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/store"
)

func rawSecret(t *testing.T, st store.Store, name string) *store.KV {
	t.Helper()
	snap, err := st.Snapshot(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return snap.Get("/registry/secrets/default/" + name)
}

func encryptionOf(t *testing.T, providers string) []byte {
	t.Helper()
	return []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [" + providers + "]\n")
}

func aesgcm(names ...string) string {
	var keys []string
	for _, n := range names { // each name is a key of its own
		keys = append(keys, fmt.Sprintf("{name: %s, secret: %s}", n, base64.StdEncoding.EncodeToString([]byte(strings.Repeat(n, 32)))))
	}
	return "{aesgcm: {keys: [" + strings.Join(keys, ", ") + "]}}"
}

// A Secret is ciphertext in the store, and to every reader of the API what it was.
func TestSecretsAreEncryptedAtRest(t *testing.T) {
	enc, err := encryption.New(encryptionOf(t, "{identity: {}}"), encryption.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var st store.Store
	s := newServer(t, func(c *apiserver.Config) { c.Encryption, st = enc, c.Store })
	secrets := typed(t, s).CoreV1().Secrets("default")
	make := func(name string) {
		t.Helper()
		o := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Data: map[string][]byte{"k": []byte("hush-hush")}}
		got, err := secrets.Create(t.Context(), o, metav1.CreateOptions{})
		if err != nil || string(got.Data["k"]) != "hush-hush" {
			t.Fatal(got, err)
		}
	}
	inStore := func(name, prefix string) {
		t.Helper()
		v := string(rawSecret(t, st, name).Value)
		if !strings.HasPrefix(v, prefix) || strings.HasPrefix(prefix, encryption.Prefix) == strings.Contains(v, "hush-hush") {
			t.Errorf("%s is stored as %.40q, want the prefix %q", name, v, prefix)
		}
	}
	replace := func(providers string) {
		t.Helper()
		if err := enc.Replace(encryptionOf(t, providers)); err != nil {
			t.Fatal(err)
		}
	}

	make("old") // from before encryption
	inStore("old", "k8s\x00")
	replace(aesgcm("a") + ", {identity: {}}")
	w, err := secrets.Watch(t.Context(), metav1.ListOptions{LabelSelector: "name=new"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	make("new")
	inStore("new", "k8s:enc:aesgcm:v1:a:")
	if ev := <-w.ResultChan(); string(ev.Object.(*corev1.Secret).Data["k"]) != "hush-hush" {
		t.Errorf("the watch shows %v", ev)
	}
	list, err := secrets.List(t.Context(), metav1.ListOptions{LabelSelector: "name in (old,new)"})
	if err != nil || len(list.Items) != 2 || string(list.Items[0].Data["k"]) != "hush-hush" {
		t.Fatal(list, err)
	}

	// An update that changes nothing stores again what is stored as of old.
	nothing := func(name string) string {
		t.Helper()
		o, err := secrets.Patch(t.Context(), name, types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return o.ResourceVersion
	}
	nothing("old")
	inStore("old", "k8s:enc:aesgcm:v1:a:")
	if a, b := nothing("old"), nothing("old"); a != b {
		t.Errorf("an update that changes nothing makes version %s of %s", b, a)
	}

	// With a new key both read; then the old one goes.
	replace(aesgcm("b", "a"))
	nothing("old")
	inStore("old", "k8s:enc:aesgcm:v1:b:")
	replace(aesgcm("b"))
	if _, err := secrets.Get(t.Context(), "old", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	c := newRaw(s)
	for path, want := range map[string]string{
		"/new": `"Internal error occurred: no matching key was found for the provided AES transformer"`,
		"":     `"Internal error occurred: unable to transform key \"/registry/secrets/default/new\": no matching key was found for the provided AES transformer"`,
	} {
		if code, body := c.do(t, "GET", "/api/v1/namespaces/default/secrets"+path, "", nil); code != 500 || !strings.Contains(body, want) {
			t.Errorf("without the key: %d %s, want %s", code, body, want)
		}
	}
	replace(aesgcm("b", "a"))
	if err := secrets.Delete(t.Context(), "new", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if rawSecret(t, st, "new") != nil {
		t.Error("a deleted Secret is still there")
	}
}

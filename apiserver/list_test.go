package apiserver_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver"
	"github.com/skiff-project/skiff/store"
)

const largeList = 600 // ConfigMaps of 2 KB: more than one piece

func fillMaps(t *testing.T, s *apiserver.Server) {
	maps := typed(t, s).CoreV1().ConfigMaps("default")
	for i := range largeList {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("map-%03d", i)}, Data: map[string]string{"text": strings.Repeat("<x>", 700)}}
		if _, err := maps.Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLargeListsComeWhole: lists beyond a piece hold each object once, in
// order, in every form, compressed or not, over the network and in process.
func TestLargeListsComeWhole(t *testing.T) {
	s, cfg := newTLSServer(t, nil)
	fillMaps(t, s)
	for _, content := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		for _, plain := range []bool{true, false} {
			cfg := rest.CopyConfig(cfg)
			cfg.ContentType, cfg.DisableCompression = content, plain
			clients := []*kubernetes.Clientset{kubernetes.NewForConfigOrDie(cfg)}
			if plain {
				local := rest.CopyConfig(s.InProcess(admin))
				local.ContentType = content
				clients = append(clients, kubernetes.NewForConfigOrDie(local))
			}
			for _, client := range clients {
				list, err := client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
				if err != nil || len(list.Items) != largeList {
					t.Fatalf("%s, plain %t: %d maps, %v", content, plain, len(list.Items), err)
				}
				for i, m := range list.Items {
					if want := fmt.Sprintf("map-%03d", i); m.Name != want || len(m.Data["text"]) != 2100 || m.ResourceVersion == "" {
						t.Fatalf("%s, plain %t: item %d is %s with %d bytes at %q", content, plain, i, m.Name, len(m.Data["text"]), m.ResourceVersion)
					}
				}
			}
		}
	}
}

// TestAnObjectThatCannotBeReadEndsAList: with an error as long as nothing was
// sent, else with a broken connection, never as if it were whole.
func TestAnObjectThatCannotBeReadEndsAList(t *testing.T) {
	var st store.Store
	s, cfg := newTLSServer(t, func(c *apiserver.Config) { st = c.Store })
	fillMaps(t, s)
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []struct{ name, answer string }{{"map-599", "cut"}, {"map-000", "500"}} {
		put := store.Op{Kind: store.OpPut, Key: "/registry/configmaps/default/" + broken.name, Value: []byte("k8s\x00\xff\xff")}
		if _, err := st.Txn(t.Context(), store.Txn{Then: []store.Op{put}}); err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", cfg.Host+"/api/v1/namespaces/default/configmaps", http.NoBody)
		req.Header.Set("Accept", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		got := fmt.Sprint(resp.StatusCode)
		if err != nil {
			got = "cut"
		}
		if got != broken.answer {
			t.Errorf("%s is broken: %s, %d bytes, %v", broken.name, got, len(data), err)
		}
	}
}

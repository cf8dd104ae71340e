package etcdapi

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestGateway(t *testing.T) {
	srv := serve(t, Config{})
	post := func(path, body string) string {
		resp, err := http.Post(srv.url+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.Status[:3] + " " + strings.ReplaceAll(string(text), `, "`, `,"`)
	}
	for _, tt := range []struct{ path, body, want string }{
		{"/v3/kv/put", `{"key":"Zm9v","value":"YmFy"}`, `"revision":"2"`},
		{"/v3/kv/range", `{"key":"Zm9v"}`, `"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"2","version":"1","value":"YmFy"}]`},
		{"/v3/kv/range", `{"key":""}`, `400 {"code":3,"message":"etcdserver: key is not provided"}`},
		{"/v3/kv/range", `{`, `400 `},
		{"/v3/kv/txn", `{"compare":[{"key":"Zm9v","target":"VERSION","version":"1"}],"success":[{"request_range":{"key":"Zm9v"}}]}`, `"succeeded":true`},
		{"/v3/lease/grant", `{"TTL":"60","ID":"7"}`, `"ID":"7"`},
		{"/v3/maintenance/status", ``, `"version":"` + Version},
		{"/v3/lock/lock", `{"name":"bg==","lease":"7"}`, `"key":"bi83"`},
		{"/v3/cluster/member/list", `{}`, `"name":"default"`},
	} {
		got := strings.ReplaceAll(post(tt.path, tt.body), `": `, `":`)
		if !strings.Contains(got, tt.want) {
			t.Errorf("%s %s: %s, want %s", tt.path, tt.body, got, tt.want)
		}
	}
	r, w := io.Pipe()
	defer w.Close()
	go io.WriteString(w, `{"create_request":{"key":"Zm9v","start_revision":"2"}}`)
	resp, err := http.Post(srv.url+"/v3/watch", "application/json", r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	var text string
	for range 2 {
		lines.Scan()
		text += lines.Text()
	}
	if !strings.Contains(text, `{"result":`) || !strings.Contains(text, `YmFy`) {
		t.Errorf("watch: %s", text)
	}
}

func TestMetrics(t *testing.T) {
	c, srv, ctx := connect(t)
	must(c.Put(ctx, "a", "1"))
	must(c.Get(ctx, "a"))
	l := must(c.Grant(ctx, 100))
	must(c.KeepAliveOnce(ctx, l.ID))
	<-c.Watch(clientv3.WithRequireLeader(ctx), "a", clientv3.WithCreatedNotify())
	if resp, err := http.Get(srv.url + "/health"); err == nil {
		resp.Body.Close()
	}
	resp, err := http.Get(srv.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for _, want := range []string{
		"etcd_server_has_leader 1", "etcd_debugging_mvcc_keys_total 1", "etcd_debugging_mvcc_current_revision 2", "etcd_mvcc_put_total 1",
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		"process_open_fds", "os_fd_used ", "etcd_server_health_success 1", "etcd_server_health_failures 0", "etcd_server_proposals_failed_total 0",
		"etcd_debugging_lease_granted_total 1", "etcd_debugging_lease_renewed_total 1", "etcd_debugging_mvcc_watcher_total 1", "etcd_debugging_mvcc_watch_stream_total 1",
		`grpc_server_msg_received_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		`grpc_server_msg_sent_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 1`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
}

package etcdstore

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stockEtcd is the etcd to test against: $SKIFF_ETCD, the one `make` unpacks,
// or the one on the PATH.
func stockEtcd(t testing.TB) string {
	t.Helper()
	unpacked, _ := filepath.Abs("../../bin/etcd/usr/bin/etcd")
	for _, name := range []string{os.Getenv("SKIFF_ETCD"), unpacked, "etcd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("no etcd: `make bin/etcd/usr/bin/etcd` unpacks Debian's")
	}
	t.Skip("no etcd: `make bin/etcd/usr/bin/etcd` unpacks Debian's, or set SKIFF_ETCD to a binary")
	return ""
}

// member is a running etcd.
type member struct {
	name, client, peer string // host:port
	args               []string
	dir                string
	cmd                *exec.Cmd
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startCluster runs n members on loopback, which end with the test.
func startCluster(t testing.TB, n int, args ...string) []*member {
	t.Helper()
	binary := stockEtcd(t)
	members := make([]*member, n)
	var initial []string
	for i := range members {
		m := &member{name: fmt.Sprint("m", i), client: freePort(t), peer: freePort(t), dir: t.TempDir()}
		members[i] = m
		initial = append(initial, m.name+"=http://"+m.peer)
	}
	for _, m := range members {
		m.args = append([]string{binary, "--name=" + m.name, "--data-dir=" + m.dir, "--initial-cluster=" + strings.Join(initial, ","),
			"--listen-client-urls=http://" + m.client, "--advertise-client-urls=http://" + m.client,
			"--listen-peer-urls=http://" + m.peer, "--initial-advertise-peer-urls=http://" + m.peer,
			"--unsafe-no-fsync", "--logger=zap"}, args...)
		m.start(t)
	}
	return members
}

func (m *member) start(t testing.TB) {
	t.Helper()
	log, err := os.Create(filepath.Join(m.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(m.args[0], m.args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.cmd = cmd
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

// url is where clients reach the member.
func (m *member) url() string { return "http://" + m.client }

func urls(members []*member) []string {
	var all []string
	for _, m := range members {
		all = append(all, m.url())
	}
	return all
}

// quick makes elections, and so starts, fast.
var quick = []string{"--heartbeat-interval=10", "--election-timeout=100"}

func openStore(t testing.TB, opt Options) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Open(ctx, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

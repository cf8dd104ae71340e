package etcd

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/skiff-project/skiff/cli/etcdutl"
)

// filled is what a server is given before its snapshot is taken.
const filled = `
> Lease.LeaseGrant ID:7 TTL:5000
> KV.Put key:"gone" value:"before the compaction"
> KV.Put key:"a" value:"1"
> KV.Txn success:{request_put:{key:"b" value:"1"}} success:{request_put:{key:"c" value:"1" lease:7}} success:{request_delete_range:{key:"a"}}
> KV.DeleteRange key:"gone"
> KV.Compact revision:4 physical:true
> KV.Put key:"a" value:"2" lease:7
> KV.Txn success:{request_put:{key:"b" value:"2"}} success:{request_delete_range:{key:"c"}} success:{request_put:{key:"d" value:"\000\377"}}
> KV.Put key:"large" value:"x*100000"
`

// asked is what the server made of the snapshot must answer in the same way.
const asked = `
> KV.Range key:"\000" range_end:"\000"
> KV.Range key:"\000" range_end:"\000" revision:5
> KV.Range key:"\000" range_end:"\000" revision:4
> Maintenance.HashKV
> Maintenance.HashKV revision:6
> Lease.LeaseLeases
> KV.Put key:"next" value:"1" lease:7
> KV.Range key:"next"
> Lease.LeaseRevoke ID:7
> KV.Range key:"\000" range_end:"\000" keys_only:true
`

// A snapshot of Skiff restores into stock etcd with the same keys, history,
// revisions and leases, and the other way round.
func TestSnapshotsMoveBothWays(t *testing.T) {
	v34 := debian(t)
	kinds := []kind{{"skiff", "", nil}, {"etcd 3.4", v34 + "/etcd", []string{v34 + "/etcdctl"}}}
	if *stock != "" {
		kinds = append(kinds, kind{"etcd 3.7", *stock, []string{filepath.Join(filepath.Dir(*stock), "etcdutl")}})
	}
	for _, from := range kinds {
		for _, to := range kinds {
			if from.bin != "" && to.bin != "" {
				continue // not ours to prove
			}
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				p := newPlayer(t, from.bin, "")
				p.play(filled)
				file := filepath.Join(t.TempDir(), "snapshot")
				p.save(file)
				want := p.play(asked)
				q := preparePlayer(t, to.bin, "")
				to.restore(t, file, q.flags[1])
				q.begin()
				got := q.play(asked)
				if to.bin+from.bin == v34+"/etcd" { // which has no such field
					field := regexp.MustCompile(` hash_revision:\d+`)
					want, got = field.ReplaceAllString(want, ""), field.ReplaceAllString(got, "")
				}
				compareTranscripts(t, from.name+" → "+to.name, want, got)
			})
		}
	}
}

// kind is a server and what restores snapshots for it; Skiff's run in process.
type kind struct {
	name, bin string
	restorer  []string
}

func (k kind) restore(t *testing.T, file, dir string) {
	args := []string{"snapshot", "restore", file, "--data-dir", dir}
	os.Remove(dir)
	if k.bin == "" {
		if code := etcdutl.Main(args); code != 0 {
			t.Fatalf("restore ends with %d", code)
		}
		return
	}
	cmd := exec.Command(k.restorer[0], args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// save takes a snapshot.
func (p *player) save(name string) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{p.url}})
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	from, err := c.Snapshot(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	defer from.Close()
	f, err := os.Create(name)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.Copy(f, from); err != nil {
		p.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		p.t.Fatal(err)
	}
}

// debian is the folder of Debian's etcd and etcdctl, 3.4, downloaded once.
func debian(t *testing.T) string {
	dir := filepath.Join(os.TempDir(), "skiff-etcd-debs")
	bin := filepath.Join(dir, "root", "usr", "bin")
	if _, err := os.Stat(filepath.Join(bin, "etcd")); err == nil {
		return bin
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `apt-get download -q -o APT::Sandbox::User=root etcd-client etcd-server && for deb in *.deb; do dpkg-deb -x $deb new || exit 1; done && mv new root`)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("Debian's etcd cannot be had: %v\n%s", err, out)
	} else if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

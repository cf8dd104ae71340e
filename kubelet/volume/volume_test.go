package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/skiff-project/skiff/kubelet/env"
)

// bench is a volume host on real folders; nothing of it is left after the test.
type bench struct {
	t       *testing.T
	host    *Host
	pod     *v1.Pod
	vols    *Pod
	cm      map[string]string
	now     time.Time
	tokens  int
	failing bool
}

func newBench(t *testing.T, change func(*v1.Pod)) *bench {
	t.Helper()
	b := &bench{t: t, cm: map[string]string{"a": "1", "b": "2"}, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	client := fake.NewClientset()
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if b.failing {
			return true, nil, errors.New("API server is away")
		}
		b.tokens++
		return true, &authv1.TokenRequest{Status: authv1.TokenRequestStatus{Token: "token-" + string(rune('0'+b.tokens)),
			ExpirationTimestamp: metav1.NewTime(b.now.Add(time.Hour))}}, nil
	})
	b.host = &Host{PodsDir: filepath.Join(t.TempDir(), "pods"), Client: client, Node: func() env.Node { return env.Node{} }, Now: func() time.Time { return b.now },
		ConfigMap: func(ns, name string) (*v1.ConfigMap, error) {
			if name != "cm" {
				return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmap"}, name)
			}
			return &v1.ConfigMap{Data: b.cm}, nil
		},
		Secret: func(ns, name string) (*v1.Secret, error) {
			if name != "sec" {
				return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secret"}, name)
			}
			return &v1.Secret{Data: map[string][]byte{"key": []byte("secret")}}, nil
		}}
	b.pod = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "uid-1", Labels: map[string]string{"l": "v"}},
		Spec: v1.PodSpec{ServiceAccountName: "default", Containers: []v1.Container{{Name: "c"}}}}
	if change != nil {
		change(b.pod)
	}
	t.Cleanup(func() {
		if err := b.host.RemoveDir("uid-1"); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return b
}

func (b *bench) mount() error {
	var err error
	b.vols, err = b.host.Mount(context.Background(), b.vols, b.pod, []string{"10.0.0.7"})
	return err
}

func (b *bench) mustMount() Volume {
	b.t.Helper()
	if err := b.mount(); err != nil {
		b.t.Fatal(err)
	}
	v, ok := b.vols.Get("v")
	if !ok {
		b.t.Fatal("volume v is not there")
	}
	return v
}

func (b *bench) read(v Volume, name string) string {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(v.Path(), name))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

func with(src v1.VolumeSource) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: src}} }
}

func configMap(items ...v1.KeyToPath) *v1.ConfigMapVolumeSource {
	return &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}, Items: items}
}

// TestSuite is what every kind of volume must do.
func TestSuite(t *testing.T) {
	host := t.TempDir()
	kinds := map[string]v1.VolumeSource{
		"emptyDir": {EmptyDir: &v1.EmptyDirVolumeSource{}}, "memory": {EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}},
		"hostPath": {HostPath: &v1.HostPathVolumeSource{Path: host}}, "configMap": {ConfigMap: configMap()},
		"secret": {Secret: &v1.SecretVolumeSource{SecretName: "sec"}}, "downwardAPI": {DownwardAPI: &v1.DownwardAPIVolumeSource{}},
		"projected": {Projected: &v1.ProjectedVolumeSource{}},
	}
	for name, src := range kinds {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, with(src))
			v := b.mustMount()
			if fi, err := os.Stat(v.Path()); err != nil || !fi.IsDir() {
				t.Fatalf("its path is not a folder: %v", err)
			}
			if !v.ReadOnly() {
				if err := os.WriteFile(filepath.Join(v.Path(), "kept"), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b.vols = nil // a new process sets it up again
			v = b.mustMount()
			if !v.ReadOnly() && b.read(v, "kept") != "x" {
				t.Error("a second SetUp lost content")
			}
			if err := b.host.Remove("uid-1"); err != nil {
				t.Fatal(err)
			}
			if left, _ := mountsBelow(b.host.PodsDir); len(left) > 0 {
				t.Errorf("mounts are left: %v", left)
			}
			if _, err := os.Stat(host); err != nil {
				t.Errorf("removal reached the node's own files: %v", err)
			}
		})
	}
}

func TestContentFollowsChanges(t *testing.T) {
	b := newBench(t, with(v1.VolumeSource{ConfigMap: configMap()}))
	v := b.mustMount()
	if got := b.read(v, "a"); got != "1" {
		t.Fatalf("a = %q", got)
	}
	open, err := os.Open(filepath.Join(v.Path(), dataLink))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	b.cm = map[string]string{"a": "changed", "c": "3"}
	if err := b.vols.Renew(context.Background(), b.pod, nil); err != nil {
		t.Fatal(err)
	}
	if b.read(v, "a") != "changed" || b.read(v, "c") != "3" {
		t.Error("new content does not show")
	}
	if _, err := os.Lstat(filepath.Join(v.Path(), "b")); !os.IsNotExist(err) {
		t.Error("a removed key still shows")
	}
	entries, _ := os.ReadDir(v.Path())
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..2026") && !strings.HasPrefix(e.Name(), "..20") {
			names = append(names, e.Name())
		}
	}
	if got := strings.Join(names, " "); got != "..data a c" {
		t.Errorf("the folder shows %q", got)
	}
}

func TestModesItemsAndOptional(t *testing.T) {
	mode := int32(0o400)
	b := newBench(t, with(v1.VolumeSource{ConfigMap: configMap(v1.KeyToPath{Key: "a", Path: "dir/file", Mode: &mode})}))
	v := b.mustMount()
	fi, err := os.Stat(filepath.Join(v.Path(), "dir/file"))
	if err != nil || fi.Mode().Perm() != 0o400 {
		t.Fatalf("dir/file: %v %v", fi, err)
	}
	b = newBench(t, with(v1.VolumeSource{ConfigMap: configMap(v1.KeyToPath{Key: "zzz", Path: "x"})}))
	if err := b.mount(); err == nil || err.Error() != `MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: zzz` {
		t.Errorf("missing key: %v", err)
	}
	yes := true
	b = newBench(t, with(v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "none", Optional: &yes}}))
	if err := b.mount(); err != nil {
		t.Errorf("optional secret: %v", err)
	}
	b = newBench(t, with(v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "none"}}))
	if err := b.mount(); err == nil || err.Error() != `MountVolume.SetUp failed for volume "v" : secret "none" not found` {
		t.Errorf("missing secret: %v", err)
	}
}

func TestContentNamesStayInside(t *testing.T) {
	for _, name := range []string{"../x", "/x", "a/../../x", "..data", ""} {
		b := newBench(t, with(v1.VolumeSource{ConfigMap: configMap(v1.KeyToPath{Key: "a", Path: name})}))
		if err := b.mount(); err == nil {
			t.Errorf("path %q was accepted", name)
		}
	}
}

func TestFSGroupOwnsContent(t *testing.T) {
	group := int64(4711)
	b := newBench(t, func(p *v1.Pod) {
		with(v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}})(p)
		p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &group}
	})
	fi, err := os.Stat(b.mustMount().Path())
	if err != nil {
		t.Fatal(err)
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Gid != 4711 || fi.Mode()&os.ModeSetgid == 0 || fi.Mode().Perm() != 0o777 {
		t.Errorf("gid %d mode %v", st.Gid, fi.Mode())
	}
}

func TestTokenIsRenewedInTime(t *testing.T) {
	b := newBench(t, with(v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}},
		{DownwardAPI: &v1.DownwardAPIProjection{Items: []v1.DownwardAPIVolumeFile{{Path: "ip", FieldRef: &v1.ObjectFieldSelector{FieldPath: "status.podIP"}},
			{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}},
	}}}))
	v := b.mustMount()
	if b.read(v, "token") != "token-1" || b.read(v, "ip") != "10.0.0.7" || b.read(v, "labels") != `l="v"` {
		t.Errorf("content: %q %q %q", b.read(v, "token"), b.read(v, "ip"), b.read(v, "labels"))
	}
	if want := b.now.Add(48 * time.Minute); !b.vols.NextRefresh().Equal(want) {
		t.Errorf("next refresh %v, want %v: 80 %% of its life", b.vols.NextRefresh(), want)
	}
	b.now = b.now.Add(50 * time.Minute)
	b.failing = true
	if err := b.vols.Renew(context.Background(), b.pod, nil); err != nil || b.read(v, "token") != "token-1" {
		t.Errorf("while the API is away the old token must stay: %v", err)
	}
	b.failing = false
	if err := b.vols.Renew(context.Background(), b.pod, nil); err != nil || b.read(v, "token") != "token-2" {
		t.Errorf("renewed: %v %q", err, b.read(v, "token"))
	}
}

// bundle is a Certificates that has one certificate, or none.
type bundle struct {
	key, chain string
	asked      string
	forgotten  types.UID
}

func (c *bundle) Bundle(pod *v1.Pod, volume string, i int, _ *v1.PodCertificateProjection) (key, chain []byte, err error) {
	c.asked = fmt.Sprint(pod.Name, " ", volume, " ", i)
	if c.key == "" {
		return nil, nil, errors.New("credential bundle is not issued yet")
	}
	return []byte(c.key), []byte(c.chain), nil
}

func (c *bundle) Forget(pod types.UID) { c.forgotten = pod }

func TestPodCertificate(t *testing.T) {
	b := newBench(t, with(v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}},
		{PodCertificate: &v1.PodCertificateProjection{CredentialBundlePath: "tls/bundle.pem"}},
		{PodCertificate: &v1.PodCertificateProjection{KeyPath: "key.pem", CertificateChainPath: "chain.pem"}},
	}}}))
	b.pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(os.Getgid()))}
	c := &bundle{}
	b.host.Certificates = c
	if err := b.mount(); err == nil || !strings.Contains(err.Error(), `failed for volume "v" : credential bundle is not issued yet`) {
		t.Fatalf("before it is issued: %v", err)
	}
	if c.asked != b.pod.Name+" v 2" {
		t.Errorf("asked: %s", c.asked)
	}
	c.key, c.chain = "key1;", "chain1;"
	v := b.mustMount()
	content := func(want string) {
		t.Helper()
		if got := b.read(v, "tls/bundle.pem") + " " + b.read(v, "key.pem") + " " + b.read(v, "chain.pem") + " " + b.read(v, "a"); got != want {
			t.Errorf("content: %q, want %q", got, want)
		}
	}
	content("key1;chain1; key1; chain1; 1")
	if fi, err := os.Stat(filepath.Join(v.Path(), "key.pem")); err != nil || fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("the key is for everybody: %v %v", fi.Mode(), err)
	}
	c.key, c.chain = "key2;", "chain2;"
	if err := b.vols.Renew(context.Background(), b.pod, nil); err != nil {
		t.Fatal(err)
	}
	content("key2;chain2; key2; chain2; 1")
	if err := b.host.Remove(string(b.pod.UID)); err != nil || c.forgotten != b.pod.UID {
		t.Errorf("after the removal: %v, forgotten %q", err, c.forgotten)
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		typ  v1.HostPathType
		ok   bool
	}{
		{dir, v1.HostPathDirectory, true}, {file, v1.HostPathDirectory, false}, {file, v1.HostPathFile, true}, {dir, v1.HostPathFile, false},
		{dir + "/new", v1.HostPathDirectoryOrCreate, true}, {dir + "/newfile", v1.HostPathFileOrCreate, true}, {dir + "/none", v1.HostPathFile, false},
		{"/dev/null", v1.HostPathCharDev, true}, {"/dev/null", v1.HostPathBlockDev, false}, {file, v1.HostPathSocket, false}, {dir, "odd", false},
	} {
		b := newBench(t, with(v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: c.path, Type: &c.typ}}))
		if err := b.mount(); (err == nil) != c.ok {
			t.Errorf("%s as %s: %v", c.path, c.typ, err)
		}
	}
}

func subPathPod(host string, vm v1.VolumeMount) func(*v1.Pod) {
	return func(p *v1.Pod) {
		with(v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: host}})(p)
		vm.Name, vm.MountPath = "v", "/m"
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{vm}
	}
}

func TestSubPathShowsTheFolderAndIsTakenDown(t *testing.T) {
	host := t.TempDir()
	b := newBench(t, subPathPod(host, v1.VolumeMount{SubPathExpr: "x/$(NAME)"}))
	b.mustMount()
	ms, err := b.vols.ContainerMounts(&b.pod.Spec.Containers[0], MountOptions{Vars: map[string]string{"NAME": "y"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "x/y/file"), []byte("hi"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(ms[0].HostPath, "file")); err != nil || string(data) != "hi" {
		t.Fatalf("through the mount: %q %v", data, err)
	}
	if err := b.host.RemoveDir("uid-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(host, "x/y/file")); err != nil {
		t.Errorf("taking it down deleted the volume's file: %v", err)
	}
}

// CVE-2017-1002101, CVE-2021-25741: a link in the volume must not lead out of it.
func TestSubPathCannotEscape(t *testing.T) {
	host, secret := t.TempDir(), t.TempDir()
	if err := os.Symlink(secret, filepath.Join(host, "out")); err != nil {
		t.Fatal(err)
	}
	for _, vm := range []v1.VolumeMount{{SubPath: "out"}, {SubPath: "out/deeper"}, {SubPath: "../x"}, {SubPath: "/etc"}, {SubPathExpr: "$(EVIL)"}, {SubPathExpr: "$(UNSET)"}} {
		b := newBench(t, subPathPod(host, vm))
		b.mustMount()
		if ms, err := b.vols.ContainerMounts(&b.pod.Spec.Containers[0], MountOptions{Vars: map[string]string{"EVIL": "../.."}}); err == nil {
			t.Errorf("%+v gave %v", vm, ms)
		}
	}
	if entries, _ := os.ReadDir(secret); len(entries) > 0 {
		t.Errorf("something was made outside: %v", entries)
	}
}

func TestUnknownKindsAreNamed(t *testing.T) {
	b := newBench(t, with(v1.VolumeSource{CSI: &v1.CSIVolumeSource{Driver: "d"}}))
	if err := b.mount(); err == nil || !strings.Contains(err.Error(), "volumes of kind csi are not supported by this node") {
		t.Errorf("%v", err)
	}
}

// A claim leads to the folder of its volume; that of an ephemeral volume only from the pod it was made for.
func TestClaims(t *testing.T) {
	claimed := v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "p-v"}}
	ephemeral := v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{VolumeClaimTemplate: &v1.PersistentVolumeClaimTemplate{}}}
	for _, tt := range []struct {
		name  string
		src   v1.VolumeSource
		owner types.UID
		bound bool
		want  string
	}{
		{"bound", claimed, "", true, ""},
		{"not bound", claimed, "", false, "PVC ns/p-v is not bound"},
		{"ephemeral", ephemeral, "uid-1", true, ""},
		{"ephemeral, another's", ephemeral, "uid-2", true, "PVC ns/p-v was not created for pod ns/p (pod is not owner)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, with(tt.src))
			dir := t.TempDir()
			pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: v1.PersistentVolumeSpec{
				PersistentVolumeSource: v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir}},
				ClaimRef:               &v1.ObjectReference{Namespace: "ns", Name: "p-v", UID: "uid-c"}}}
			pvc := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p-v", UID: "uid-c"}}
			if tt.owner != "" {
				pvc.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: tt.owner}},
					v1.SchemeGroupVersion.WithKind("Pod"))}
			}
			if tt.bound {
				pvc.Spec.VolumeName, pvc.Status.Phase = "pv", v1.ClaimBound
			}
			tracker := b.host.Client.(*fake.Clientset).Tracker()
			if err := errors.Join(tracker.Add(pv), tracker.Add(pvc)); err != nil {
				t.Fatal(err)
			}
			err := b.mount()
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %s", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if v, _ := b.vols.Get("v"); v.Path() != dir {
				t.Errorf("volume at %s, want %s", v.Path(), dir)
			}
		})
	}
}

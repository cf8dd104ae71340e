package box

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// run runs an applet in dir and returns its output, errors and status.
func run(t *testing.T, dir, stdin string, args ...string) (out, errs string, status int) {
	t.Helper()
	var o, e bytes.Buffer
	c := &call{
		ctx: t.Context(), name: args[0], args: args[1:], in: strings.NewReader(stdin), out: &o, err: &e, dir: dir,
		env: os.Getenv, environ: func() []string { return []string{"PATH=/usr/bin:/bin", "X=1"} },
	}
	status = applets()[args[0]](c)
	return o.String(), e.String(), status
}

func TestApplets(t *testing.T) {
	dir := t.TempDir()
	file := func(name, data string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("abc", "a\nb\nc\n")
	file("words", "one two\nthree\n")
	file(".hidden", "")
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cmd    string // split at |, so that words may hold spaces
		stdin  string
		out    string
		errs   string
		status int
	}{
		{"cat|abc|-|abc", "x\n", "a\nb\nc\nx\na\nb\nc\n", "", 0},
		{"cat|nope|abc", "", "a\nb\nc\n", "cat: nope: no such file or directory\n", 1},
		{"cat|-z", "", "", "cat: unrecognized option '-z'\n", 2},
		{"echo|-n|a|b", "", "a b", "", 0},
		{"echo|-e|a\\tb", "", "a\tb\n", "", 0},
		{"echo|-x", "", "-x\n", "", 0},
		{"head|-n|2|abc", "", "a\nb\n", "", 0},
		{"head|-1", "x\ny\n", "x\n", "", 0},
		{"head|-c3|abc", "", "a\nb", "", 0},
		{"head|-n|x|abc", "", "", "head: invalid number 'x'\n", 2},
		{"head|-n1|abc|words", "", "==> abc <==\na\n\n==> words <==\none two\n", "", 0},
		{"tail|-n|1|abc", "", "c\n", "", 0},
		{"tail|-n|+2|abc", "", "b\nc\n", "", 0},
		{"tail|-c|3", "hello", "llo", "", 0},
		{"tail|-2", "x\ny\nz", "y\nz", "", 0},
		{"wc|words", "", "2 3 14 words\n", "", 0},
		{"wc|-l", "a\nb", "1\n", "", 0},
		{"wc|-l|abc|words", "", "3 abc\n2 words\n5 total\n", "", 0},
		{"grep|b|abc", "", "b\n", "", 0},
		{"grep|-vn|b|abc", "", "1:a\n3:c\n", "", 0},
		{"grep|-c|.|abc|words", "", "abc:3\nwords:2\n", "", 0},
		{"grep|zzz|abc", "", "", "", 1},
		{"grep|-q|a|abc", "", "", "", 0},
		{"grep|-E|a|b", "a\n", "", "grep: b: no such file or directory\n", 2},
		{"grep|-o|[a-z]*e", "one two three\n", "one\nthree\n", "", 0},
		{"grep|a\\|c|abc", "", "a\nc\n", "", 0},
		{"grep|-F|.", "a\n", "", "", 1},
		{"grep|-i|ONE|words", "", "one two\n", "", 0},
		{"grep|(|abc", "", "", "", 1},
		{"ls", "", "abc\nsub\nwords\n", "", 0},
		{"ls|-a", "", ".\n..\n.hidden\nabc\nsub\nwords\n", "", 0},
		{"ls|-F|sub|abc", "", "abc\n\nsub:\n", "", 0},
		{"ls|-d|sub", "", "sub\n", "", 0},
		{"ls|nope", "", "", "ls: nope: no such file or directory\n", 1},
		{"pwd", "", dir + "\n", "", 0},
		{"true", "", "", "", 0},
		{"false", "", "", "", 1},
		{"sleep|0", "", "", "", 0},
		{"sleep|x", "", "", "sleep: invalid time interval 'x'\n", 2},
		{"date|-u|-d|@0|+%F %T %Z", "", "1970-01-01 00:00:00 UTC\n", "", 0},
		{"date|-u|-d|@86400", "", "Fri Jan  2 00:00:00 UTC 1970\n", "", 0},
		{"date|+%Q", "", "", "date: format %Q is not supported\n", 2},
		{"env|-i|A=1", "", "A=1\n", "", 0},
		{"env|B=2|sh|-c|true", "", "", "", 0},
		{"test|-f|abc", "", "", "", 0},
		{"test|1|-gt|2", "", "", "", 1},
		{"[|a|=|a|]", "", "", "", 0},
		{"mkdir|-p|d/e/f", "", "", "", 0},
		{"mkdir|abc", "", "", "mkdir: abc: file exists\n", 1},
		{"touch|d/new", "", "", "", 0},
		{"rm|d", "", "", "rm: d: is a directory\n", 1},
		{"rm|-rf|d|nope", "", "", "", 0},
		{"rm|-rf|/", "", "", "rm: /: refusing to remove this folder\n", 1},
		{"tee|t1", "x", "x", "", 0},
		{"cat|t1", "", "x", "", 0},
		{"nc|-z|host", "", "", "nc: give a host and a port\n", 2},
		{"nc|-z|h|99999", "", "", "nc: invalid port '99999'\n", 2},
		{"wget|-k|x", "", "", "wget: unrecognized option '-k'\n", 2},
		{"web|--nope", "", "", "web: unrecognized option '--nope'\n", 2},
		{"uname", "", "Linux\n", "", 0},
	} {
		t.Run(c.cmd, func(t *testing.T) {
			args := strings.Split(strings.ReplaceAll(c.cmd, `\|`, "\x00"), "|")
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "\x00", `\|`)
			}
			out, errs, status := run(t, dir, c.stdin, args...)
			if out != c.out || errs != c.errs || status != c.status {
				t.Errorf("got %q %q %d\nwant %q %q %d", out, errs, status, c.out, c.errs, c.status)
			}
		})
	}
}

func TestShell(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("echo $0 $1 $#\nexit 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		args   []string
		stdin  string
		out    string
		errs   string
		status int
	}{
		{"command", []string{"-c", "echo $0 $1; false"}, "", "sh\n", "", 1},
		{"command with arguments", []string{"-c", "echo $0 $1", "me", "you"}, "", "me you\n", "", 0},
		{"exit on error", []string{"-ec", "false; echo no"}, "", "", "", 1},
		{"script", []string{script, "a", "b"}, "", script + " a 2\n", "", 3},
		{"missing script", []string{"nope"}, "", "", "sh: nope: no such file or directory\n", 127},
		{"standard input", nil, "x=1\nif true; then\necho $x\nfi\nexit 4\necho no\n", "1\n", "", 4},
		{"syntax error", []string{"-c", "if"}, "", "", "sh: sh:1:1: `if` must be followed by a statement list\n", 2},
		{"unknown command", []string{"-c", "nosuchcommand"}, "", "", "\"nosuchcommand\": executable file not found in $PATH\n", 127},
		{"pipes and applets", []string{"-c", "echo a b c | wc -w; cat <<E | grep -c x\nx\ny\nx\nE\n"}, "", "3\n2\n", "", 0},
		{"environment", []string{"-c", "export A=1; B=2; env | grep '^[AB]='"}, "", "A=1\n", "", 0},
		{"folder", []string{"-c", "mkdir d; cd d; touch f; ls; ls .. | head -1"}, "", "f\nd\n", "", 0},
		{"background", []string{"-c", "sleep 0 & wait; echo done"}, "", "done\n", "", 0},
		{"trap at exit", []string{"-c", "trap 'echo bye' 0; echo hi"}, "", "hi\nbye\n", "", 0},
		{"bad option", []string{"-Q"}, "", "", "sh: unrecognized option '-Q'\n", 2},
		{"kill", []string{"-c", "kill -0 $$ && kill -0 999999999; kill x; kill -Q 1"}, "", "", "kill: 999999999: no such process\nkill: x: not a process number\nkill: invalid signal 'Q'\n", 2},
		{"umask", []string{"-c", "umask 027; umask; umask 022; umask z"}, "", "0027\n", "umask: invalid mask 'z'\n", 2},
		{"loop", []string{"-c", "i=0; while [ $i -lt 3 ]; do i=$((i+1)); done; echo $i"}, "", "3\n", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, errs, status := run(t, dir, c.stdin, append([]string{"sh"}, c.args...)...)
			if out != c.out || errs != c.errs || status != c.status {
				t.Errorf("got %q %q %d\nwant %q %q %d", out, errs, status, c.out, c.errs, c.status)
			}
		})
	}
}

// A trapped signal ends a sleeping applet and runs its action; USR2 is this
// process's own.
func TestTrap(t *testing.T) {
	dir := t.TempDir()
	ready := filepath.Join(dir, "ready")
	go func() {
		for range 500 {
			if _, err := os.Stat(ready); err == nil {
				_ = syscall.Kill(os.Getpid(), syscall.SIGUSR2)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	out, errs, status := run(t, dir, "", "sh", "-c", "trap 'echo got; exit 7' USR2; touch ready; while true; do sleep 5; done")
	if out != "got\n" || errs != "" || status != 7 {
		t.Errorf("got %q %q %d", out, errs, status)
	}
}

func TestTarRoundTrip(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	if _, errs, status := run(t, src, "", "sh", "-c", "mkdir -p a/b; echo hi > a/b/f; echo x > a/x"); status != 0 {
		t.Fatal(errs)
	}
	if err := os.Symlink("b/f", filepath.Join(src, "a/link")); err != nil {
		t.Fatal(err)
	}
	archive, errs, status := run(t, src, "", "tar", "cf", "-", "a")
	if status != 0 {
		t.Fatal(errs)
	}
	if out, errs, status := run(t, dst, archive, "tar", "-xmf", "-"); status != 0 || out != "" {
		t.Fatal(out, errs)
	}
	got, _ := os.ReadFile(filepath.Join(dst, "a/link"))
	if string(got) != "hi\n" {
		t.Errorf("through the link: %q", got)
	}
	out, _, _ := run(t, dst, archive, "tar", "tf", "-", "a/b")
	if out != "a/b/\na/b/f\n" {
		t.Errorf("listing %q", out)
	}
}

// An archive must not write outside the folder it is extracted in, neither by
// name nor through a link of its own.
func TestTarStaysInside(t *testing.T) {
	outside := t.TempDir()
	src := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(src, "out")); err != nil {
		t.Fatal(err)
	}
	link, _, _ := run(t, src, "", "tar", "cf", "-", "out")
	if err := os.Remove(filepath.Join(src, "out")); err != nil {
		t.Fatal(err)
	}
	if _, errs, status := run(t, src, "", "sh", "-c", "mkdir out; echo evil > out/f"); status != 0 {
		t.Fatal(errs)
	}
	through, _, _ := run(t, src, "", "tar", "cf", "-", "out/f")
	dst := t.TempDir()
	if _, errs, status := run(t, dst, link, "tar", "xf", "-"); status != 0 {
		t.Fatal(errs)
	}
	if _, _, status := run(t, dst, through, "tar", "xf", "-"); status == 0 {
		t.Error("wrote through a link")
	}
	if _, err := os.Stat(filepath.Join(outside, "f")); err == nil {
		t.Error("a file appeared outside")
	}
}

func TestWgetAndWeb(t *testing.T) {
	t.Setenv("POD_NAME", "web-1")
	t.Setenv("NODE_NAME", "n1")
	var log bytes.Buffer
	c := &call{out: &log, env: os.Getenv}
	s := httptest.NewServer(c.webHandler())
	defer s.Close()
	dir := t.TempDir()
	for i, want := range []string{"requests: 1\n", "requests: 2\n"} {
		out, errs, status := run(t, dir, "", "wget", "-q", "-O-", "-T", "5", s.URL)
		if status != 0 || errs != "" || !strings.HasPrefix(out, "Hello from pod web-1\nnode: n1\n") || !strings.HasSuffix(out, want) {
			t.Errorf("%d: %q %q %d", i, out, errs, status)
		}
	}
	if out, _, status := run(t, dir, "", "wget", "-qO", "saved", s.URL+"/healthz"); status != 0 || out != "" {
		t.Errorf("%q %d", out, status)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "saved")); string(data) != "ok\n" {
		t.Errorf("saved %q", data)
	}
	missing := httptest.NewServer(http.NotFoundHandler())
	if _, errs, status := run(t, dir, "", "wget", "-q", "-O-", missing.URL); status != 8 || !strings.Contains(errs, "404 Not Found") {
		t.Errorf("%q %d", errs, status)
	}
	missing.Close()
	if _, errs, status := run(t, dir, "", "wget", "-q", "-O-", missing.URL); status != 4 || !strings.Contains(errs, "connection refused") {
		t.Errorf("%q %d", errs, status)
	}
}

func TestNC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if out, errs, status := run(t, "", "echoed", "nc", host, port); out != "echoed" || status != 0 {
		t.Errorf("%q %q %d", out, errs, status)
	}
	if _, _, status := run(t, "", "", "nc", "-z", host, port); status != 0 {
		t.Errorf("open port: status %d", status)
	}
	l.Close()
	if _, _, status := run(t, "", "", "nc", "-z", "-w1", host, port); status != 1 {
		t.Errorf("closed port: status %d", status)
	}
}

func TestTailFollows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("1\n2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, w := io.Pipe()
	go func() {
		tail(&call{ctx: ctx, name: "tail", args: []string{"-n1", "-f", path}, out: w, err: io.Discard})
		w.Close()
	}()
	read := func(want string) {
		t.Helper()
		buf := make([]byte, len(want))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != want {
			t.Fatalf("got %q %v, want %q", buf, err, want)
		}
	}
	read("2\n")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("3\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	read("3\n")
	cancel()
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}

func TestNamesAreComplete(t *testing.T) {
	for _, n := range []string{"sh", "cat", "ls", "wget", "nslookup", "web", "[", "ps", "tar"} {
		if !Has(n) {
			t.Errorf("no %s", n)
		}
	}
	if Has("skiff") || len(Names()) != len(applets()) {
		t.Error("the list is wrong")
	}
}

// Whatever an archive holds, nothing outside the folder changes and tar does
// not panic.
func FuzzTar(f *testing.F) {
	src := f.TempDir()
	if err := os.Symlink("/", filepath.Join(src, "root")); err != nil {
		f.Fatal(err)
	}
	var good bytes.Buffer
	tarCmd(&call{ctx: context.Background(), name: "tar", args: []string{"cf", "-", "."}, out: &good, err: io.Discard, dir: src})
	f.Add(good.Bytes())
	f.Add([]byte("../x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		tarCmd(&call{ctx: t.Context(), name: "tar", args: []string{"xf", "-"}, in: bytes.NewReader(data), out: io.Discard, err: io.Discard, dir: dir})
		if entries, _ := os.ReadDir(parent); len(entries) != 1 {
			t.Fatalf("files outside the folder: %v", entries)
		}
	})
}

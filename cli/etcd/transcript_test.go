package etcd

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/skiff-project/skiff/store/etcdapi"
)

var (
	stock   = flag.String("stock", os.Getenv("ETCD_STOCK"), "stock etcd 3.7 to run the transcripts against, instead of Skiff")
	stockV2 = flag.String("stock-v2", os.Getenv("ETCD_STOCK_V2"), "stock etcd 3.4 for the transcripts of the v2 API")
	rewrite = flag.Bool("rewrite", false, "record the answers")
)

// The transcripts in testdata were recorded from stock etcd (-stock F -rewrite):
// Skiff answers word for word the same. With -stock alone they are held against
// stock etcd again.
//
//	# a comment; "# flags: …" gives the server flags
//	> KV.Put key:"a" value:"1"            a call, its request as protobuf text
//	> open w Watch.Watch                  a stream called w; send w …, recv w [n], quiet w, close w
//	> as NAME PASSWORD                    who calls from here on; "as nobody"
//	> http POST /v3/kv/range {"key":"YQ=="}
//	> peer POST /raft X-Some-Header=value hex:0807    the same at the peer URL
//	> restart
//	> sleep 1s
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no transcripts", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			t.Parallel()
			reference := *stock
			if strings.HasPrefix(filepath.Base(name), "v2") {
				reference = *stockV2
			}
			if reference == "" && *stock+*stockV2 != "" {
				t.Skip("not for this reference")
			}
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			p := newPlayer(t, reference, string(text))
			if reference == "" && strings.HasPrefix(filepath.Base(name), "v2") {
				// etcd's v2 keys begin at index 3: it has put two of its own.
				p.http(p.url, "PUT /v2/keys/first value=1")
				p.http(p.url, "DELETE /v2/keys/first")
			}
			got := p.play(string(text))
			if *rewrite {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			compareTranscripts(t, name, string(text), got)
		})
	}
}

func compareTranscripts(t *testing.T, name, want, got string) {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	request, shown := "", 0
	for i := 0; i < max(len(w), len(g)) && shown < 20; i++ {
		a, b := "(nothing)", "(nothing)"
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if strings.HasPrefix(a, "> ") {
			request = a
		}
		if a != b {
			t.Errorf("%s:%d %s\n  etcd: %s\n  here: %s", name, i+1, request, a, b)
			shown++
		}
	}
}

// player runs a transcript against one server.
type player struct {
	t      *testing.T
	bin    string // stock etcd, or "" for Skiff in this process
	flags  []string
	stop   func()
	url    string
	peer   string
	conn   *grpc.ClientConn
	ctx    context.Context // carries the token
	stream map[string]*openStream
}

type openStream struct {
	cancel context.CancelFunc
	s      grpc.ClientStream
	in     func() proto.Message
	got    chan string
}

func newPlayer(t *testing.T, bin, text string) *player {
	p := preparePlayer(t, bin, text)
	p.begin()
	return p
}

func preparePlayer(t *testing.T, bin, text string) *player {
	p := &player{t: t, bin: bin, ctx: t.Context(), stream: map[string]*openStream{}}
	client, peer := freePort(t), freePort(t)
	p.url, p.peer = "http://127.0.0.1:"+client, "http://127.0.0.1:"+peer
	p.flags = []string{"--data-dir", t.TempDir(), "--listen-client-urls", p.url, "--advertise-client-urls", p.url,
		"--listen-peer-urls", p.peer, "--log-level", "error"}
	for line := range strings.SplitSeq(text, "\n") {
		if extra, ok := strings.CutPrefix(line, "# flags: "); ok {
			p.flags = append(p.flags, strings.Fields(extra)...)
		}
	}
	return p
}

// begin starts the server and connects to it.
func (p *player) begin() {
	p.start()
	var err error
	p.conn, err = grpc.NewClient(strings.TrimPrefix(p.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		p.conn.Close()
		p.stop()
	})
}

func freePort(t *testing.T) string {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return strconv.Itoa(lis.Addr().(*net.TCPAddr).Port)
}

func (p *player) start() {
	if p.bin == "" {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- run(ctx, p.flags, noEnv, io.Discard) }()
		p.stop = func() {
			cancel()
			if err := <-done; err != nil {
				p.t.Error(err)
			}
		}
	} else {
		cmd := exec.Command(p.bin, p.flags...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			p.t.Fatal(err)
		}
		p.stop = func() {
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait()
		}
	}
	for range 200 {
		resp, err := http.Get(p.url + "/health")
		if err == nil {
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK || strings.Contains(string(text), "ALARM") {
				return
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	p.t.Fatal("the server does not come up")
}

// play runs every request of a transcript and returns it with the answers.
func (p *player) play(text string) string {
	var out strings.Builder
	skip := false
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		request, isRequest := strings.CutPrefix(line, "> ")
		switch {
		case isRequest:
			fmt.Fprintln(&out, line)
			for _, answer := range p.do(request) {
				fmt.Fprintln(&out, answer)
			}
			skip = true
		case line == "" || strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
			skip = false
		case !skip:
			p.t.Fatalf("stray line %q", line)
		}
	}
	return out.String()
}

func (p *player) do(request string) []string {
	word, rest, _ := strings.Cut(request, " ")
	switch word {
	case "sleep":
		d, err := time.ParseDuration(rest)
		if err != nil {
			p.t.Fatal(err)
		}
		time.Sleep(d)
	case "restart":
		p.stop()
		p.start()
		p.conn.ResetConnectBackoff()
	case "as":
		return p.as(strings.Fields(rest))
	case "http":
		return p.http(p.url, rest)
	case "peer":
		return p.http(p.peer, rest)
	case "open", "send", "recv", "quiet", "close":
		return p.streams(word, strings.SplitN(rest, " ", 2))
	default:
		return p.call(word, rest)
	}
	return nil
}

// method finds KV.Put among etcd's services.
func (p *player) method(name string) protoreflect.MethodDescriptor {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("etcdserverpb." + name))
	if err != nil {
		p.t.Fatalf("%s: %v", name, err)
	}
	return d.(protoreflect.MethodDescriptor)
}

func fullName(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
}

func (p *player) message(d protoreflect.MessageDescriptor, text string) proto.Message {
	typ, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		p.t.Fatal(err)
	}
	m := typ.New().Interface()
	if err := prototext.Unmarshal([]byte(expand(text)), m); err != nil {
		p.t.Fatalf("%s: %v", text, err)
	}
	return m
}

// expand writes out x*1000 as a thousand x.
func expand(text string) string {
	return regexp.MustCompile(`(\w)\*(\d+)`).ReplaceAllStringFunc(text, func(s string) string {
		n, _ := strconv.Atoi(s[2:])
		return strings.Repeat(s[:1], n)
	})
}

func (p *player) call(name, text string) []string {
	m := p.method(name)
	in, out := p.message(m.Input(), text), p.message(m.Output(), "")
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	if err := p.conn.Invoke(ctx, fullName(m), in, out, grpc.WaitForReady(true)); err != nil {
		return []string{failure(err)}
	}
	return []string{cmp.Or(show(out.ProtoReflect()), "(empty)")}
}

func failure(err error) string {
	st := status.Convert(err)
	return fmt.Sprintf("error %s: %s", st.Code(), normal(st.Message()))
}

// as authenticates.
func (p *player) as(who []string) []string {
	p.ctx = p.t.Context()
	if who[0] == "nobody" {
		return nil
	}
	if who[0] == "token" {
		p.ctx = metadata.AppendToOutgoingContext(p.ctx, "token", who[1])
		return nil
	}
	m := p.method("Auth.Authenticate")
	in, out := p.message(m.Input(), fmt.Sprintf("name:%q password:%q", who[0], who[1])), p.message(m.Output(), "")
	if err := p.conn.Invoke(p.ctx, fullName(m), in, out); err != nil {
		return []string{failure(err)}
	}
	token := out.ProtoReflect().Get(m.Output().Fields().ByName("token")).String()
	p.ctx = metadata.AppendToOutgoingContext(p.ctx, "token", token)
	return nil
}

func (p *player) streams(word string, args []string) []string {
	name := args[0]
	if word == "open" {
		p.open(name, args[1])
		return nil
	}
	s := p.stream[name]
	switch word {
	case "send":
		in := s.in()
		if err := prototext.Unmarshal([]byte(expand(args[1])), in); err != nil {
			p.t.Fatalf("%s: %v", args[1], err)
		}
		if err := s.s.SendMsg(in); err != nil {
			return []string{failure(err)}
		}
	case "recv":
		n := 1
		if len(args) > 1 {
			n, _ = strconv.Atoi(args[1])
		}
		var out []string
		for range n {
			select {
			case msg := <-s.got:
				out = append(out, msg)
			case <-time.After(5 * time.Second):
				out = append(out, "(nothing came)")
			}
		}
		return out
	case "quiet":
		select {
		case msg := <-s.got:
			return []string{msg}
		case <-time.After(300 * time.Millisecond):
		}
	case "close":
		s.s.CloseSend()
	}
	return nil
}

func (p *player) open(name, method string) {
	m := p.method(method)
	ctx, cancel := context.WithCancel(p.ctx)
	p.t.Cleanup(cancel)
	s, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, fullName(m))
	if err != nil {
		p.t.Fatal(err)
	}
	o := &openStream{cancel: cancel, s: s, in: func() proto.Message { return p.message(m.Input(), "") }, got: make(chan string, 1000)}
	p.stream[name] = o
	go func() {
		for {
			out := p.message(m.Output(), "")
			if err := s.RecvMsg(out); errors.Is(err, io.EOF) {
				o.got <- "end"
				return
			} else if err != nil {
				o.got <- failure(err)
				return
			}
			o.got <- show(out.ProtoReflect())
		}
	}()
}

func (p *player) http(url, rest string) []string {
	method, rest, _ := strings.Cut(rest, " ")
	path, body, _ := strings.Cut(rest, " ")
	headers := http.Header{}
	for strings.HasPrefix(body, "X-") || strings.HasPrefix(body, "Origin=") || strings.HasPrefix(body, "Host=") {
		var header string
		header, body, _ = strings.Cut(body, " ")
		name, value, _ := strings.Cut(header, "=")
		headers.Set(name, value)
	}
	if text, ok := strings.CutPrefix(body, "hex:"); ok {
		raw, err := hex.DecodeString(text)
		if err != nil {
			p.t.Fatal(err)
		}
		body = string(raw)
	}
	req, err := http.NewRequest(method, url+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header, req.Host = headers, headers.Get("Host")
	all := len(headers) > 0 || url == p.peer
	if body != "" && !strings.HasPrefix(body, "{") {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if md, ok := metadata.FromOutgoingContext(p.ctx); ok && len(md.Get("token")) > 0 {
		req.Header.Set("Authorization", md.Get("token")[0])
	}
	resp, err := (&http.Client{Timeout: 8 * time.Second}).Do(req)
	if err != nil {
		return []string{"error " + normal(err.Error())}
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	var value any
	if json.Unmarshal(text, &value) == nil {
		text, _ = json.Marshal(value)
	}
	if resp.Header.Get("Content-Type") == "application/protobuf" {
		text = []byte(hex.EncodeToString(text))
	}
	lines := strings.Split(strings.TrimSpace(normal(string(text))), "\n")
	if strings.HasPrefix(lines[0], "[") { // health checks, in any order
		slices.Sort(lines)
	}
	for i := range lines {
		lines[i] = "| " + lines[i]
	}
	head := []string{strconv.Itoa(resp.StatusCode), resp.Header.Get("Content-Type")}
	shown := []string{"X-Etcd-Index", "Location", "Allow"}
	if all {
		shown = append(shown, "X-Etcd-Cluster-Id", "X-Server-Version", "Access-Control-Allow-Methods", "Access-Control-Allow-Origin", "Access-Control-Allow-Headers")
	}
	for _, name := range shown {
		if v := resp.Header.Get(name); v != "" {
			head = append(head, name+": "+normal(v))
		}
	}
	return append([]string{strings.Join(head, " ")}, lines...)
}

// What differs from server to server and run to run.
var (
	volatile = []string{"raftIndex", "raftTerm", "raftAppliedIndex", "dbSize", "dbSizeInUse", "leader", "blob", "remaining_bytes", "token"}
	noise    = []struct{ from, to string }{
		{`[\x{a0} ]+`, " "}, // protobuf's texts vary with the binary
		{`"(cluster_id|member_id|raft_term|leader|raftIndex|raftTerm|raftAppliedIndex|dbSize|dbSizeInUse)":"\d+"`, `"$1":"*"`},
		{`"ttl":(99|100|49|50),`, `"ttl":N,`},
		{`127\.0\.0\.1:\d+`, "127.0.0.1:PORT"},
		{`"(expiration|startTime|Now)":"[^"]*"`, `"$1":"*"`},
		{`"(id|token)":"[^"]*"`, `"$1":"*"`},
		{regexp.QuoteMeta(etcdapi.Version), "3.7.x"},
	}
)

func normal(text string) string {
	for _, n := range noise {
		text = regexp.MustCompile(n.from).ReplaceAllString(text, n.to)
	}
	return text
}

// show writes a message in a line, in the order of its fields.
func show(m protoreflect.Message) string {
	if m.Descriptor().Name() == "ResponseHeader" {
		return showHeader(m)
	}
	var parts []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) || f.TextName() == "dbSizeInUse" {
			continue
		}
		name, v := f.TextName(), m.Get(f)
		switch {
		case slices.Contains(volatile, name):
			parts = append(parts, name+":*")
		case f.IsList():
			for j := range v.List().Len() {
				parts = append(parts, name+":"+showValue(f, v.List().Get(j)))
			}
		default:
			parts = append(parts, name+":"+showValue(f, v))
		}
	}
	return strings.Join(parts, " ")
}

func showHeader(m protoreflect.Message) string {
	get := func(name protoreflect.Name) uint64 {
		v := m.Get(m.Descriptor().Fields().ByName(name)).Interface()
		if n, ok := v.(int64); ok {
			return uint64(n)
		}
		return v.(uint64)
	}
	switch set := [3]bool{get("cluster_id") != 0, get("member_id") != 0, get("raft_term") != 0}; set {
	case [3]bool{true, true, true}:
		return fmt.Sprintf("revision:%d", get("revision"))
	case [3]bool{}:
		return fmt.Sprintf("bare revision:%d", get("revision"))
	default:
		return fmt.Sprintf("%v revision:%d", set, get("revision"))
	}
}

func showValue(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return "{" + show(v.Message()) + "}"
	case protoreflect.BytesKind:
		if b := v.Bytes(); len(b) <= 100 {
			return strconv.Quote(string(b))
		}
		return fmt.Sprintf("(%d bytes)", len(v.Bytes()))
	case protoreflect.StringKind:
		return strconv.Quote(normal(v.String()))
	case protoreflect.EnumKind:
		if d := f.Enum().Values().ByNumber(v.Enum()); d != nil {
			return string(d.Name())
		}
	case protoreflect.Uint64Kind:
		if strings.EqualFold(f.TextName(), "ID") || f.TextName() == "memberID" {
			return "*"
		}
	}
	return fmt.Sprint(v.Interface())
}

package reply_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/skiff-project/skiff/apiserver/reply"
)

// rows are bodies of n rows and some large ones, as a client reads them.
func rows(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strconv.Itoa(i) + strings.Repeat("x", 100+i%7) + "\n")
		if i%500 == 499 {
			b.WriteString(strings.Repeat("large", 100<<10) + "\n")
		}
	}
	return b.String()
}

func send(t *testing.T, b reply.Body, body string) *http.Response {
	w := httptest.NewRecorder()
	b.To, b.Media, b.Code = w, "text/plain", 200
	buf := b.Buffer(len(body))
	var err error
	for line := range strings.SplitAfterSeq(body, "\n") {
		if buf, err = b.Spill(append(buf, line...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.End(buf); err != nil {
		t.Fatal(err)
	}
	return w.Result()
}

func TestWhatIsAppendedArrives(t *testing.T) {
	for _, n := range []int{0, 10, 1000, 5000} {
		for _, b := range []reply.Body{{}, {Gzip: true}, {Keep: true}, {Gzip: true, Keep: true}} {
			want := rows(n)
			resp := send(t, b, want)
			from := io.Reader(resp.Body)
			if compressed := resp.Header.Get("Content-Encoding") == "gzip"; compressed != (b.Gzip && len(want) > 128<<10) {
				t.Errorf("%d rows, %+v: compressed: %t", n, b, compressed)
			} else if compressed {
				var err error
				if from, err = gzip.NewReader(resp.Body); err != nil {
					t.Fatal(err)
				}
			}
			got, err := io.ReadAll(from)
			if err != nil || string(got) != want {
				t.Errorf("%d rows, %+v: %d bytes of %d, %v", n, b, len(got), len(want), err)
			}
			if whole := resp.Header.Get("Content-Length") != ""; whole && resp.ContentLength != int64(len(want)) {
				t.Errorf("%d rows, %+v: Content-Length %d of %d", n, b, resp.ContentLength, len(want))
			}
		}
	}
}

func TestNothingIsSaidBeforeThereIsAPiece(t *testing.T) {
	b := reply.Body{To: httptest.NewRecorder(), Media: "text/plain", Code: 200}
	buf, err := b.Spill(append(b.Buffer(0), make([]byte, 128<<10-1)...))
	if err != nil || b.Begun() {
		t.Fatalf("begun with %d bytes: %v", len(buf), err)
	}
	if buf, err = b.Spill(append(buf, 'x')); err != nil || !b.Begun() || len(buf) != 0 {
		t.Errorf("not begun, %d bytes are kept: %v", len(buf), err)
	}
	b.Drop()
}

type leaving struct{ *httptest.ResponseRecorder }

func (leaving) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestAClientThatLeft(t *testing.T) {
	for _, gzip := range []bool{false, true} {
		b := reply.Body{To: leaving{httptest.NewRecorder()}, Media: "text/plain", Code: 200, Gzip: gzip}
		buf, err := b.Buffer(0), error(nil)
		for i := 0; err == nil && i < 1000; i++ {
			buf, err = b.Spill(append(buf, make([]byte, 64<<10)...))
		}
		if err == nil {
			err = b.End(buf)
		}
		if !errors.Is(err, reply.ErrGone) {
			t.Errorf("gzip %t: %v", gzip, err)
		}
		b.Drop()
	}
}

type local struct {
	http.ResponseWriter
	got []byte
}

func (l *local) WriteOwned(p []byte) { l.got = p }

func TestALocalClientGetsTheBufferItself(t *testing.T) {
	w := &local{ResponseWriter: httptest.NewRecorder()}
	b := reply.Body{To: w, Media: "text/plain", Code: 200, Keep: true}
	data := append(b.Buffer(300<<10), bytes.Repeat([]byte("y"), 300<<10)...)
	data, err := b.Spill(data)
	if err != nil || b.Begun() {
		t.Fatal("not kept", err)
	}
	if err := b.End(data); err != nil || len(w.got) != len(data) || &w.got[0] != &data[0] {
		t.Errorf("copied, or lost: %d bytes, %v", len(w.got), err)
	}
}

// A reader of members has what was sent before the next is there.
func TestMembersAreOneStream(t *testing.T) {
	from, to := io.Pipe()
	sent := []string{"a\n", strings.Repeat("long ", 50_000) + "\n", "\n", rows(1000) + "\n"}
	read := make(chan struct{}, len(sent))
	go func() {
		for _, p := range sent {
			to.Write(reply.Member([]byte(p))) //nolint:errcheck // the reader tells
			<-read
		}
		to.Close()
	}()
	in, err := gzip.NewReader(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range sent {
		got := make([]byte, len(p))
		if _, err := io.ReadFull(in, got); err != nil || string(got) != p {
			t.Fatalf("%.20q, not %.20q: %v", got, p, err)
		}
		read <- struct{}{}
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("%q at the end, %v", rest, err)
	}
}

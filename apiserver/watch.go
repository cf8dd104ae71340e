package apiserver

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/partial"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/wire"
	"github.com/skiff-project/skiff/store"
)

// streamType is the Content-Type of a watch in each media type.
func streamType(media string) string {
	if media == codec.Protobuf {
		return codec.Protobuf + ";stream=watch"
	}
	return media
}

func (s *Server) watch(c *call) {
	out, err := c.negotiate(true)
	if err == nil && out.media == codec.YAML {
		err = notAcceptable(codec.JSON+";stream=watch", codec.Protobuf+";stream=watch")
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	out.pretty = false
	o, err := parseListOptions(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	initial := o.sendInitial != nil && *o.sendInitial
	if o.sendInitial != nil && !*o.sendInitial && (o.ResourceVersion == "" || o.ResourceVersion == "0") {
		o.ResourceVersion = s.currentRevision(c) // from now on, without the present objects
	}
	w, err := c.ep.reg.Watch(c.ctx(), registry.WatchOptions{Selection: o.Selection, ResourceVersion: o.ResourceVersion, SendInitial: initial})
	st := &stream{s: s, c: c, out: out, bookmarks: o.bookmarks}
	if err != nil {
		if fault := (*registry.ClientFault)(nil); apierrors.IsBadRequest(err) || errors.As(err, &fault) {
			s.fail(c, err)
			return
		}
		st.start() // history that is gone is told of in the stream, as upstream does
		st.sendError(err)
		return
	}
	defer w.Close()
	st.run(w, initial, s.watchTimeout(o.timeout))
}

func (s *Server) currentRevision(c *call) string {
	snap, err := s.cfg.Store.Snapshot(c.ctx(), 0)
	if err != nil {
		return ""
	}
	return strconv.FormatInt(snap.Revision(), 10)
}

func (s *Server) watchTimeout(seconds *int64) time.Duration {
	if seconds != nil && *seconds > 0 {
		const longest = 24 * 60 * 60
		return time.Duration(min(*seconds, longest)) * time.Second
	}
	return time.Duration(float64(s.cfg.MinWatchTimeout) * (1 + rand.Float64()))
}

// stream is one watch response.
type stream struct {
	s         *Server
	c         *call
	out       output
	bookmarks bool
	flusher   *http.ResponseController
	buf       []byte
	tableSent bool // the column definitions went out with the first table
}

func (st *stream) start() {
	st.flusher = http.NewResponseController(st.c.w)
	h := st.c.w.Header()
	h.Set("Content-Type", streamType(st.out.media))
	st.c.w.WriteHeader(http.StatusOK)
	st.flusher.Flush() //nolint:errcheck // the next write tells
}

// run sends events until the client leaves, the time is up or the server stops.
func (st *stream) run(w *registry.Watch, initialEnd bool, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(st.c.ctx(), timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {})
	defer stop()
	go func() {
		select {
		case <-st.s.stopping:
			cancel()
		case <-st.c.ep.gone: // what is left to tell is told within a second
			select {
			case <-st.s.cfg.Clock.After(time.Second):
			case <-ctx.Done():
			}
			cancel()
		case <-ctx.Done():
		}
	}()
	st.start()
	items, rev := w.Initial()
	for _, kv := range items {
		if !st.add(registry.Change{Type: watch.Added, KV: kv, ResourceVersion: kv.ModRevision}) || len(st.buf) > flushAbove && !st.flush() {
			return
		}
	}
	if initialEnd && st.bookmarks && !st.addBookmark(rev, true) || !st.flush() {
		return
	}
	st.follow(ctx, w)
}

// flushAbove is how much of a burst is sent at once.
const flushAbove = 64 * 1024

func (st *stream) follow(ctx context.Context, w *registry.Watch) {
	for {
		wait, cancel := context.WithTimeout(ctx, st.s.cfg.BookmarkInterval)
		var err error
		for err == nil {
			var changes []registry.Change
			if changes, err = w.Next(wait); err == nil && !st.send(changes) {
				cancel()
				return
			}
		}
		cancel()
		switch {
		case ctx.Err() != nil:
			if st.bookmarks && st.c.ctx().Err() == nil && st.addBookmark(w.Progress(), false) {
				st.flush() // so that the client resumes from here
			}
			return
		case errors.Is(err, context.DeadlineExceeded):
			if st.bookmarks && !(st.addBookmark(w.Progress(), false) && st.flush()) {
				return
			}
		case errors.Is(err, store.ErrClosed):
			return
		default:
			st.sendError(err)
			return
		}
	}
}

func (st *stream) send(changes []registry.Change) bool {
	if len(changes) == 1 && len(st.buf) == 0 { // by far the most frequent
		frame, err := st.frame(changes[0])
		if err != nil {
			st.sendError(err)
			return false
		}
		_, err = st.c.w.Write(frame)
		return err == nil && st.flusher.Flush() == nil
	}
	for _, ch := range changes {
		if !st.add(ch) {
			return false
		}
	}
	return st.flush()
}

func (st *stream) flush() bool {
	if len(st.buf) > 0 {
		if _, err := st.c.w.Write(st.buf); err != nil {
			return false
		}
		if st.buf = st.buf[:0]; cap(st.buf) > 4*flushAbove {
			st.buf = nil
		}
	}
	return st.flusher.Flush() == nil
}

// add appends the frame of one change. Frames are made once per change and
// format and shared by all watchers.
func (st *stream) add(ch registry.Change) bool {
	frame, err := st.frame(ch)
	if err != nil {
		st.sendError(err)
		return false
	}
	if len(st.buf) == 0 && len(frame) > flushAbove {
		_, err := st.c.w.Write(frame)
		return err == nil
	}
	st.buf = append(st.buf, frame...)
	return true
}

func (st *stream) frame(ch registry.Change) ([]byte, error) {
	attrs, shared := ch.KV.Attrs.(*wire.Attrs)
	if !shared || st.out.shape == shapeTable || !st.out.sharable() {
		return st.build(ch)
	}
	key := wire.EncodingKey{Form: st.formName(), ResourceVersion: ch.ResourceVersion, Event: string(ch.Type)}
	return attrs.Shared().Encoding(key, func() ([]byte, error) { return st.build(ch) })
}

func (o output) sharable() bool { return !o.pretty }

// formName distinguishes the frames of one change.
func (st *stream) formName() string {
	e := st.c.ep
	if st.out.shape == shapePartial {
		return st.out.media + ";partial;" + st.out.version
	}
	return e.formNames[st.out.media == codec.Protobuf]
}

func (st *stream) build(ch registry.Change) ([]byte, error) {
	it := registry.Item{KV: ch.KV, ResourceVersion: ch.ResourceVersion}
	if st.out.shape == shapeTable {
		return st.tableFrame(ch, it)
	}
	data, err := st.s.encodeItem(st.c, st.out, it)
	if err != nil {
		return nil, err
	}
	return frame(st.out.media, string(ch.Type), data), nil
}

// frame wraps an encoded object as a watch event.
func frame(media, eventType string, object []byte) []byte {
	if media == codec.Protobuf {
		return wire.AppendWatchFrame(nil, eventType, object)
	}
	object = bytes.TrimSuffix(object, []byte("\n"))
	out := make([]byte, 0, len(object)+len(eventType)+24)
	out = append(out, `{"type":"`...)
	out = append(out, eventType...)
	out = append(out, `","object":`...)
	out = append(out, object...)
	return append(out, "}\n"...)
}

// tableFrame sends a change as a one-row table; only the first has the columns.
func (st *stream) tableFrame(ch registry.Change, it registry.Item) ([]byte, error) {
	obj, err := st.c.ep.reg.Object(it)
	if err != nil {
		return nil, err
	}
	t, err := st.s.table(st.c, st.out, []api.Object{obj})
	if err != nil {
		return nil, err
	}
	t.ResourceVersion = strconv.FormatInt(ch.ResourceVersion, 10)
	if st.tableSent {
		t.ColumnDefinitions = nil
	}
	st.tableSent = true
	data, err := encodeObject(st.out, t)
	if err != nil {
		return nil, err
	}
	return frame(st.out.media, string(ch.Type), data), nil
}

// addBookmark appends a bookmark: everything up to rev has been sent.
func (st *stream) addBookmark(rev int64, initialEnd bool) bool {
	var obj runtime.Object
	meta := metav1.ObjectMeta{ResourceVersion: strconv.FormatInt(rev, 10)}
	if initialEnd {
		meta.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	switch st.out.shape {
	case shapePlain:
		o := st.c.ep.ver.New()
		o.SetResourceVersion(meta.ResourceVersion)
		o.SetAnnotations(meta.Annotations)
		o.GetObjectKind().SetGroupVersionKind(st.c.ep.kind)
		obj = o
	case shapePartial:
		p := &metav1.PartialObjectMetadata{ObjectMeta: meta}
		obj = partial.Of(st.out.version, p)
	case shapeTable:
		o := st.c.ep.reg.New()
		o.SetResourceVersion(meta.ResourceVersion)
		o.SetAnnotations(meta.Annotations)
		t, err := st.s.table(st.c, st.out, []api.Object{o})
		if err != nil {
			return false
		}
		t.ResourceVersion = meta.ResourceVersion
		if st.tableSent {
			t.ColumnDefinitions = nil
		}
		obj = t
	}
	data, err := encodeObject(st.out, obj)
	if err != nil {
		return false
	}
	st.buf = append(st.buf, frame(st.out.media, string(watch.Bookmark), data)...)
	return true
}

// sendError ends the stream with an error event.
func (st *stream) sendError(err error) {
	out := st.out
	data, encErr := encodeObject(output{media: out.media}, toStatus(err))
	if encErr != nil {
		return
	}
	st.buf = append(st.buf, frame(out.media, string(watch.Error), data)...)
	st.flush()
}

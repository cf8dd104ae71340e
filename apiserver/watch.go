package apiserver

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/apiserver/partial"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/apiserver/reply"
	"github.com/skiff-project/skiff/apiserver/watchstream"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/wire"
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
	st := watchstream.New(watchstream.Config{
		W: c.w, Sent: s.storage.Events(c.ep.kind.GroupVersion().WithResource(c.ep.res.Name)), Form: &watchForm{s: s, c: c, out: out}, Alone: out.shape == shapeTable || c.ep.converts || c.ep.reg.Encrypted(),
		Gzip:      initial && o.bookmarks && !c.user.local && reply.Accepted(c.req), // a streaming list
		Bookmarks: o.bookmarks, Listed: func() { s.metrics.Listed(c.counted(), s.cfg.Clock.Since(c.received)) }, Interval: s.cfg.BookmarkInterval, Stopping: s.stopping, Gone: c.ep.gone,
	})
	w, err := c.ep.reg.Watch(c.ctx(), registry.WatchOptions{
		Selection: o.Selection, ResourceVersion: o.ResourceVersion, SendInitial: initial, Wake: st.Wake,
	})
	if fault := (*registry.ClientFault)(nil); apierrors.IsBadRequest(err) || errors.As(err, &fault) {
		s.fail(c, err)
		return
	}
	c.w.Header().Set("Content-Type", streamType(out.media))
	if err != nil {
		st.Refuse(err) // history that is gone is told of in the stream, as upstream does
		return
	}
	defer w.Close()
	st.Run(c.ctx(), w, initial, s.watchTimeout(o.timeout))
}

func (s *Server) currentRevision(c *call) string {
	snap, err := c.ep.reg.Store.Snapshot(c.ctx(), 0)
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

// watchForm makes the events of one watch.
type watchForm struct {
	s         *Server
	c         *call
	out       output
	gzipName  string // formName of the compressed frames, once there are some
	tableSent bool   // the column definitions went out with the first table
}

// Frame implements watchstream.Form. Frames are made once per change and
// format and shared by all watchers.
func (f *watchForm) Frame(ch registry.Change) ([]byte, error) {
	return f.shared(ch, f.formName(), f.build)
}

// Compressed implements watchstream.Form.
func (f *watchForm) Compressed(ch registry.Change) ([]byte, error) {
	if f.gzipName == "" {
		f.gzipName = f.formName() + ";gzip"
	}
	return f.shared(ch, f.gzipName, func(ch registry.Change) ([]byte, error) {
		frame, err := f.build(ch)
		if err != nil {
			return nil, err
		}
		return reply.Member(frame), nil
	})
}

func (f *watchForm) shared(ch registry.Change, form string, build func(registry.Change) ([]byte, error)) ([]byte, error) {
	attrs, shared := ch.KV.Attrs.(*wire.Attrs)
	if !shared || f.out.shape == shapeTable {
		return build(ch)
	}
	key := wire.EncodingKey{Form: form, ResourceVersion: ch.ResourceVersion, Event: string(ch.Type)}
	return attrs.Shared().Encoding(key, func() ([]byte, error) { return build(ch) })
}

// formName distinguishes the frames of one change.
func (f *watchForm) formName() string {
	e := f.c.ep
	if f.out.shape == shapePartial {
		return f.out.media + ";partial;" + f.out.version
	}
	return e.formNames[f.out.media == codec.Protobuf]
}

func (f *watchForm) build(ch registry.Change) ([]byte, error) {
	it := registry.Item{KV: ch.KV, ResourceVersion: ch.ResourceVersion}
	if f.out.shape == shapeTable {
		return f.tableFrame(ch, it)
	}
	data, err := f.s.encodeItem(f.c, f.out, it)
	if err != nil {
		return nil, err
	}
	return frame(f.out.media, string(ch.Type), data), nil
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
func (f *watchForm) tableFrame(ch registry.Change, it registry.Item) ([]byte, error) {
	obj, err := f.c.ep.reg.Object(it)
	if err != nil {
		return nil, err
	}
	t, err := f.s.table(f.c, f.out, []api.Object{obj})
	if err != nil {
		return nil, err
	}
	t.ResourceVersion = strconv.FormatInt(ch.ResourceVersion, 10)
	if f.tableSent {
		t.ColumnDefinitions = nil
	}
	f.tableSent = true
	data, err := encodeObject(f.out, t)
	if err != nil {
		return nil, err
	}
	return frame(f.out.media, string(ch.Type), data), nil
}

// Bookmark implements watchstream.Form.
func (f *watchForm) Bookmark(rev int64, initialEnd bool) ([]byte, error) {
	var obj runtime.Object
	meta := metav1.ObjectMeta{ResourceVersion: strconv.FormatInt(rev, 10)}
	if initialEnd {
		meta.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	switch f.out.shape {
	case shapePlain:
		o := f.c.ep.ver.New()
		o.SetResourceVersion(meta.ResourceVersion)
		o.SetAnnotations(meta.Annotations)
		o.GetObjectKind().SetGroupVersionKind(f.c.ep.kind)
		obj = o
	case shapePartial:
		p := &metav1.PartialObjectMetadata{ObjectMeta: meta}
		obj = partial.Of(f.out.version, p)
	case shapeTable:
		o := f.c.ep.reg.New()
		o.SetResourceVersion(meta.ResourceVersion)
		o.SetAnnotations(meta.Annotations)
		t, err := f.s.table(f.c, f.out, []api.Object{o})
		if err != nil {
			return nil, err
		}
		t.ResourceVersion = meta.ResourceVersion
		if f.tableSent {
			t.ColumnDefinitions = nil
		}
		obj = t
	}
	data, err := encodeObject(f.out, obj)
	if err != nil {
		return nil, err
	}
	return frame(f.out.media, string(watch.Bookmark), data), nil
}

// Error implements watchstream.Form.
func (f *watchForm) Error(err error) ([]byte, error) {
	data, err := encodeObject(output{media: f.out.media}, toStatus(err))
	return frame(f.out.media, string(watch.Error), data), err
}

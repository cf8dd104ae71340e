package audit

import (
	"encoding/json"
	"errors"
	"maps"
)

// Truncate bounds what a backend is given, in bytes of JSON. An event that is
// larger loses the objects of its request and response; one that still is, is
// dropped, and counted as an error of the plugin "truncate": neither is a
// reason to refuse a request.
type Truncate struct {
	MaxEventSize int64
	MaxBatchSize int64 // of events sent to a webhook at once, each at most MaxEventSize
}

var errTooLarge = errors.New("event is too large even after truncating")

// truncating is a backend with such bounds.
type truncating struct {
	sink
	Truncate
	lost func(plugin string, n int, err error)
}

// within returns s, within the bounds t; s itself without any.
func (t *Truncate) within(s sink, lost func(string, int, error)) sink {
	if t == nil {
		return s
	}
	return &truncating{s, *t, lost}
}

func (t *truncating) put(e *Event, text []byte) error {
	if t.large(text) && e.Level.atLeast(LevelRequest) {
		small := *e
		small.RequestObject, small.ResponseObject = nil, nil
		small.Annotations = map[string]string{} // e's are other backends' and later stages', too
		maps.Copy(small.Annotations, e.Annotations)
		small.Annotations["audit.k8s.io/truncated"] = "true"
		var err error
		if text, err = json.Marshal(&small); err != nil {
			return err
		}
		e = &small
	}
	if t.large(text) {
		t.lost("truncate", 1, errTooLarge)
		return nil
	}
	return t.sink.put(e, text)
}

// large counts the end of the line, too, as upstream.
func (t *truncating) large(text []byte) bool { return int64(len(text))+1 > t.MaxEventSize }

package apiserver

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/skiff-project/skiff/apiserver/reply"
	"github.com/skiff-project/skiff/object/codec"
	"github.com/skiff-project/skiff/object/wire"
)

func statusError(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}}
}

// toStatus is the Status that tells a client of err.
func toStatus(err error) *metav1.Status {
	var as apierrors.APIStatus
	if !errors.As(err, &as) {
		return &metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
			Code: http.StatusInternalServerError, Reason: metav1.StatusReasonUnknown, Message: err.Error(),
		}
	}
	st := as.Status()
	st.Kind, st.APIVersion = "Status", "v1"
	if st.Status == "" {
		st.Status = metav1.StatusFailure
	}
	if st.Code == 0 {
		st.Code = http.StatusInternalServerError
		if st.Status == metav1.StatusSuccess {
			st.Code = http.StatusOK
		}
	}
	return &st
}

// fail answers with an error.
func (s *Server) fail(c *call, err error) {
	st := toStatus(err)
	if st.Code >= 500 && st.Code != http.StatusServiceUnavailable && st.Code != http.StatusGatewayTimeout {
		s.cfg.Log.Error("request failed", "method", c.req.Method, "path", c.req.URL.Path, "error", err)
	}
	if st.Details != nil && st.Details.RetryAfterSeconds > 0 {
		c.w.Header().Set("Retry-After", strconv.Itoa(int(st.Details.RetryAfterSeconds)))
	}
	c.w.Header().Set("X-Content-Type-Options", "nosniff")
	out, nerr := negotiate(c.req, c.query, false)
	if nerr != nil {
		out = output{media: codec.JSON}
		if st.Code < 400 {
			st = toStatus(nerr)
		}
	}
	s.writeObject(c, out, int(st.Code), st)
}

// writeObject encodes an object that is not stored (statuses, reviews,
// discovery) or has been decoded already.
func (s *Server) writeObject(c *call, out output, code int, obj runtime.Object) {
	if st, ok := obj.(*metav1.Status); ok {
		c.audit.Status(st)
	}
	data, err := encodeObject(out, obj)
	if err != nil {
		s.cfg.Log.Error("response cannot be encoded", "path", c.req.URL.Path, "error", err)
		http.Error(c.w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.write(c, out.media, code, data)
}

func encodeObject(out output, obj runtime.Object) ([]byte, error) {
	switch out.media {
	case codec.Protobuf:
		m, ok := obj.(wire.Message)
		if !ok {
			return nil, fmt.Errorf("%T has no protobuf form", obj)
		}
		gvk := obj.GetObjectKind().GroupVersionKind()
		return wire.Seal(gvk.GroupVersion().String(), gvk.Kind, m)
	case codec.YAML:
		return codec.ToYAML(obj)
	}
	if out.pretty {
		return codec.Pretty(obj)
	}
	return codec.AppendJSON(nil, obj)
}

// write sends a whole response body, which is given away.
func (s *Server) write(c *call, media string, code int, data []byte) {
	s.end(c, s.body(c, media, code), data)
}

// body is that of a response, still to be made.
func (s *Server) body(c *call, media string, code int) *reply.Body {
	return &reply.Body{
		To: c.w, Media: media, Code: code,
		Gzip: !c.user.local && reply.Accepted(c.req), Keep: c.user.local || c.audit.WantsResponse(),
	}
}

// end sends what is left of a response body.
func (s *Server) end(c *call, body *reply.Body, data []byte) {
	if c.info.IsResource {
		c.audit.Response(func() ([]byte, error) { return s.codec.ToJSON(body.Media, data) })
	}
	body.End(data) //nolint:errcheck // the client went away
}

// warn adds a Warning header.
func (c *call) warn(text string) {
	const longest = 4096 // of all warnings together
	if text == "" {
		return
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	for _, have := range c.warnings {
		if have == text {
			return
		}
	}
	if c.warned += len(text); c.warned > longest {
		return
	}
	c.warnings = append(c.warnings, text)
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)
	c.w.Header().Add("Warning", `299 - "`+quoted+`"`)
}

// audited notes the object of a request.
func (c *call) audited(obj any) {
	c.audit.Request(obj, func() ([]byte, error) { return codec.AppendJSON(nil, obj) })
}

// readBody reads a request body within its bound.
func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil {
		return nil, nil
	}
	if req.ContentLength > MaxBody {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", MaxBody))
	}
	var data []byte
	var err error
	if n := req.ContentLength; n > 0 {
		data = make([]byte, n)
		_, err = io.ReadFull(req.Body, data)
	} else {
		data, err = io.ReadAll(io.LimitReader(req.Body, MaxBody+1))
	}
	if err != nil {
		return nil, apierrors.NewBadRequest("the request body could not be read: " + err.Error())
	}
	if len(data) > MaxBody {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", MaxBody))
	}
	if req.Header.Get("Content-Encoding") == "gzip" {
		return nil, statusError(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType, "compressed request bodies are not supported")
	}
	return data, nil
}

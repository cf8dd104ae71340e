package apiserver

import (
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/munnerz/goautoneg"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/object/codec"
)

// shape is what a client wants an answer turned into.
type shape uint8

const (
	shapePlain   shape = iota
	shapeTable         // meta.k8s.io Table
	shapePartial       // PartialObjectMetadata, PartialObjectMetadataList
)

// output is a negotiated response format.
type output struct {
	media   string
	shape   shape
	list    bool   // PartialObjectMetadataList was asked for
	version string // of the meta.k8s.io group, for Table and Partial
	pretty  bool
}

// negotiate picks the response format of a request on a resource: custom
// resources have no protobuf form, only their metadata has.
func (c *call) negotiate(transforms bool) (output, error) {
	return negotiateFor(c.req, c.query, transforms, c.ep != nil && c.ep.custom(), c.info.Verb == "list" || c.info.Verb == "watch")
}

// negotiate picks the response format from the Accept header. transforms
// tells whether Table and PartialObjectMetadata can be made here.
func negotiate(req *http.Request, query url.Values, transforms bool) (output, error) {
	return negotiateFor(req, query, transforms, false, false)
}

func negotiateFor(req *http.Request, query url.Values, transforms, custom, streams bool) (output, error) {
	header := req.Header.Get("Accept")
	switch {
	case header == "":
		return output{media: codec.JSON, pretty: wantsPretty(req, query)}, nil
	case header == codec.Protobuf && !custom:
		return output{media: codec.Protobuf}, nil
	}
	if len(header) > 4096 {
		return output{}, notAcceptable(acceptedMedia...)
	}
	known := custom
	for _, clause := range goautoneg.ParseAccept(header) {
		media := acceptMedia(clause.Type, clause.SubType)
		if media == "" {
			continue
		}
		known = true
		o, ok := acceptParams(media, clause.Params, transforms)
		if !ok || custom && o.media == codec.Protobuf && o.shape == shapePlain {
			continue
		}
		o.pretty = o.pretty || o.media == codec.JSON && wantsPretty(req, query)
		return o, nil
	}
	if !known {
		available := strings.Join(acceptedMedia, ", ")
		if streams {
			available += ", " + codec.JSON + ";stream=watch, " + codec.Protobuf + ";stream=watch"
		}
		return output{}, generic(http.StatusNotAcceptable, "406: Not Acceptable\n\nAvailable representations: "+available)
	}
	return output{}, notAcceptable(acceptedMedia...)
}

// generic is an answer that names no object: what a path, a method or an
// Accept header comes to before anybody looks for one.
func generic(code int, message string) error {
	return apierrors.NewGenericServerResponse(code, "", schema.GroupResource{}, "", message, 0, false)
}

// notShaped refuses to make a list of an object, and the reverse. The type is
// told as upstream calls it inside.
func notShaped(c *call, what, kind string) error {
	pkg, _, _ := strings.Cut(c.ep.kind.Group, ".")
	switch {
	case c.ep.custom():
		pkg, kind = "unstructured", map[bool]string{true: "Unstructured", false: "UnstructuredList"}[kind == c.ep.kind.Kind]
	case pkg == "" || pkg == "events":
		pkg = "core"
	}
	return statusError(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, fmt.Sprintf("you requested %s (*%s.%s)", what, pkg, kind))
}

func acceptMedia(typ, sub string) string {
	switch full := typ + "/" + sub; full {
	case codec.JSON, codec.YAML, codec.Protobuf:
		return full
	case "*/*", "application/*":
		return codec.JSON
	}
	return ""
}

func acceptParams(media string, params map[string]string, transforms bool) (output, bool) {
	o := output{media: media, pretty: params["pretty"] == "1"}
	as, g := params["as"], params["g"]
	if as == "" {
		return o, true
	}
	o.version = params["v"]
	if !transforms || g != metav1.GroupName || o.version != "v1" && o.version != "v1beta1" {
		return o, false
	}
	switch as {
	case "Table":
		o.shape = shapeTable
		return o, media != codec.Protobuf
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		o.shape, o.list = shapePartial, as == "PartialObjectMetadataList"
		return o, true
	}
	return o, false
}

// wantsPretty follows the pretty parameter, or guesses a human from the user agent.
func wantsPretty(req *http.Request, query url.Values) bool {
	if p := query.Get("pretty"); p != "" {
		v, _ := strconv.ParseBool(p)
		return v
	}
	agent := req.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

var acceptedMedia = []string{codec.JSON, codec.YAML, codec.Protobuf}

func notAcceptable(accepted ...string) error {
	return statusError(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "only the following media types are accepted: "+strings.Join(accepted, ", "))
}

// inputMedia is the media type of a request body.
func inputMedia(req *http.Request) (string, error) {
	header := req.Header.Get("Content-Type")
	switch header {
	case "":
		return codec.JSON, nil
	case codec.JSON, codec.Protobuf:
		return header, nil
	}
	if media, _, err := mime.ParseMediaType(header); err == nil {
		switch media {
		case codec.JSON, codec.YAML, codec.Protobuf:
			return media, nil
		}
	}
	return "", statusError(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		"the body of the request was in an unknown format - accepted media types include: "+strings.Join(acceptedMedia, ", "))
}

package connect

import (
	"net/url"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/apiserver/request"
)

// LogParams checks and passes on PodLogOptions.
func LogParams(q url.Values) (url.Values, error) {
	out := url.Values{}
	for _, name := range []string{"follow", "previous", "timestamps"} {
		if v, err := request.Bool(q, name); err != nil {
			return nil, err
		} else if v {
			out.Set(name, "true")
		}
	}
	for _, name := range []string{"sinceSeconds", "tailLines", "limitBytes"} {
		v, err := request.Int(q, name)
		if err != nil {
			return nil, err
		}
		if v == nil {
			continue
		}
		if *v < 0 || name != "tailLines" && *v < 1 {
			return nil, invalidLogOption(name, *v)
		}
		out.Set(name, strconv.FormatInt(*v, 10))
	}
	if v := q.Get("sinceTime"); v != "" {
		if out.Has("sinceSeconds") {
			return nil, forbiddenLogOption()
		}
		out.Set("sinceTime", v)
	}
	if v := q.Get("stream"); v != "" {
		out.Set("stream", v)
	}
	return out, nil
}

// StreamParams renames the API's parameters to the kubelet's.
func StreamParams(what string, q url.Values) url.Values {
	out := url.Values{}
	if what == "portforward" {
		if p := q["ports"]; len(p) > 0 {
			out.Set("port", strings.Join(p, ","))
		}
		return out
	}
	for from, to := range map[string]string{"stdin": "input", "stdout": "output", "stderr": "error", "tty": "tty"} {
		if v, _ := request.Bool(q, from); v {
			out.Set(to, "1")
		}
	}
	if what == "attach" && !q.Has("stdout") && !q.Has("stderr") {
		out.Set("output", "1") // the API's defaults
		out.Set("error", "1")
	}
	for _, cmd := range q["command"] {
		out.Add("command", cmd)
	}
	return out
}

func invalidLogOption(name string, value int64) error {
	msg := "must be greater than 0"
	if name == "tailLines" {
		msg = "must be greater than or equal to 0"
	}
	return apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, "", field.ErrorList{field.Invalid(field.NewPath(name), value, msg)})
}

func forbiddenLogOption() error {
	return apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, "", field.ErrorList{
		field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified")})
}

package connect

import (
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/skiff-project/skiff/apiserver/request"
)

// Options are the options of a connect request, as admission sees them, with
// their kind. path is the request's and rest what of it is behind "proxy".
func Options(resource, sub string, q url.Values, path, rest string) (o runtime.Object, kind schema.GroupVersionKind, err error) {
	is := func(name string) bool {
		v, _ := request.Bool(q, name)
		return v
	}
	to := ""
	if rest != "" || strings.HasSuffix(path, "/") {
		to = "/" + rest
	}
	switch resource + "/" + sub {
	case "pods/exec":
		kind.Kind, o = "PodExecOptions", &corev1.PodExecOptions{
			Stdin: is("stdin"), Stdout: is("stdout"), Stderr: is("stderr"), TTY: is("tty"), Container: q.Get("container"), Command: q["command"],
		}
	case "pods/attach":
		kind.Kind, o = "PodAttachOptions", &corev1.PodAttachOptions{
			Stdin: is("stdin"), Stdout: is("stdout"), Stderr: is("stderr"), TTY: is("tty"), Container: q.Get("container"),
		}
	case "pods/portforward":
		f := &corev1.PodPortForwardOptions{}
		for _, text := range q["ports"] {
			for text := range strings.SplitSeq(text, ",") {
				port, err := strconv.ParseInt(text, 10, 32)
				if err != nil {
					return nil, kind, apierrors.NewBadRequest(err.Error())
				}
				f.Ports = append(f.Ports, int32(port))
			}
		}
		kind.Kind, o = "PodPortForwardOptions", f
	case "services/proxy":
		kind.Kind, o = "ServiceProxyOptions", &corev1.ServiceProxyOptions{Path: to}
	case "nodes/proxy":
		kind.Kind, o = "NodeProxyOptions", &corev1.NodeProxyOptions{Path: to}
	default:
		kind.Kind, o = "PodProxyOptions", &corev1.PodProxyOptions{Path: to}
	}
	kind.Version = "v1"
	o.GetObjectKind().SetGroupVersionKind(kind)
	return o, kind, nil
}

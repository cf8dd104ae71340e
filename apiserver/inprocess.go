package apiserver

import (
	"net/http"
	"strings"

	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver/inprocess"
	"github.com/skiff-project/skiff/auth"
)

func isLocal(req *http.Request) bool { _, ok := inprocess.User(req); return ok }

// InProcess returns a client configuration whose requests go straight to the
// server's handler as user, with streaming responses and cancellation. Client
// side rate limits are off: the server has its own bounds.
func (s *Server) InProcess(user auth.User) *rest.Config {
	return &rest.Config{
		Host:      "http://skiff.in-process",
		Transport: &inprocess.Transport{Handler: s.Handler(), User: user},
		QPS:       -1,
		ContentConfig: rest.ContentConfig{
			AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
			ContentType:        "application/vnd.kubernetes.protobuf",
		},
		UserAgent: userAgent(user),
	}
}

// userAgent names in-process components as upstream's binaries name themselves.
func userAgent(u auth.User) string {
	name := strings.TrimPrefix(u.Name, "system:")
	if i := strings.IndexAny(name, ":/"); i >= 0 {
		name = name[:i]
	}
	switch name {
	case "apiserver":
		name = "kube-apiserver"
	case "node":
		name = "kubelet"
	}
	return name + "/v1.37.2 (linux/amd64) skiff"
}

package apiserver

import (
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// streamLogWebsocket sends a log over a websocket, one message per read.
func (s *Server) streamLogWebsocket(c *call, t target) {
	tr := s.transport(t.tls)
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(c.ctx(), http.MethodGet, t.url.String(), http.NoBody)
	if err != nil {
		s.fail(c, err)
		return
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		s.fail(c, apierrors.NewInternalError(err))
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		s.fail(c, kubeletError(resp))
		return
	}
	r := wsstream.NewReader(resp.Body, true, wsstream.NewDefaultReaderProtocols())
	if err := r.Copy(c.w, c.req); err != nil {
		s.cfg.Log.Debug("log stream ended", "path", c.req.URL.Path, "error", err)
	}
}

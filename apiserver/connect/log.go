package connect

import (
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// LogWebsocket sends a log over a websocket, one message per read.
func (p *Proxy) LogWebsocket(c Call, t Target) {
	tr := p.transport(t.TLS)
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(c.Req.Context(), http.MethodGet, t.URL.String(), http.NoBody)
	if err != nil {
		c.Fail(err)
		return
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		c.Fail(apierrors.NewInternalError(err))
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.Fail(kubeletError(resp))
		return
	}
	r := wsstream.NewReader(lateEOF{resp.Body}, true, wsstream.NewDefaultReaderProtocols())
	if err := r.Copy(c.W, c.Req); err != nil {
		p.Log.Debug("log stream ended", "path", c.Req.URL.Path, "error", err)
	}
}

// lateEOF reports the end of its reader on a read of its own: wsstream drops
// what comes together with it, which for a short log is all of it.
type lateEOF struct{ r io.Reader }

func (l lateEOF) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	gwebsocket "github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	pfconst "k8s.io/apimachinery/pkg/util/portforward"
	constants "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Translate serves exec and attach over the v5 websocket protocol, which
// kubelets do not speak: it is a websocket server to the client and a SPDY
// client to the kubelet.
func (p *Proxy) Translate(c Call, t Target, params url.Values) {
	on := func(name string) bool { return params.Get(name) == "1" }
	ch := func(wanted bool, kind wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return kind
		}
		return wsstream.IgnoreChannel
	}
	channels := make([]wsstream.ChannelType, 5)
	channels[constants.StreamStdIn] = ch(on("input"), wsstream.ReadChannel)
	channels[constants.StreamStdOut] = ch(on("output"), wsstream.WriteChannel)
	channels[constants.StreamStdErr] = ch(on("error"), wsstream.WriteChannel)
	channels[constants.StreamErr] = wsstream.WriteChannel
	channels[constants.StreamResize] = wsstream.ReadChannel
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{constants.StreamProtocolV5Name: {Binary: true, Channels: channels}})
	const idle = 4 * time.Hour
	conn.SetIdleTimeout(idle)
	_, streams, err := conn.Open(c.W, c.Req)
	if err != nil {
		return // the library has answered
	}
	defer conn.Close()
	first := constants.StreamErr // an empty message tells the client that the connection stands
	if on("output") {
		first = constants.StreamStdOut
	} else if on("error") {
		first = constants.StreamStdErr
	}
	streams[first].Write([]byte{}) //nolint:errcheck // the next write tells
	ctx, cancel := context.WithCancel(c.Req.Context())
	defer cancel()
	go func() {
		select {
		case <-p.Stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	opts := remotecommand.StreamOptions{Tty: on("tty")}
	if on("input") {
		opts.Stdin = streams[constants.StreamStdIn]
	}
	if on("output") {
		opts.Stdout = streams[constants.StreamStdOut]
	}
	if on("error") {
		opts.Stderr = streams[constants.StreamStdErr]
	}
	if opts.Tty {
		opts.TerminalSizeQueue = newSizes(ctx, streams[constants.StreamResize])
	}
	st := streamStatus(p.runStream(ctx, t, opts))
	if data, err := json.Marshal(st); err == nil {
		conn.SetWriteDeadline(10 * time.Second)
		streams[constants.StreamErr].Write(data) //nolint:errcheck // the client went away
	}
}

// runStream is the SPDY client's side of Translate.
func (p *Proxy) runStream(ctx context.Context, t Target, opts remotecommand.StreamOptions) error {
	tr := p.transport(t.TLS)
	defer tr.CloseIdleConnections()
	rt, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{UpgradeTransport: tr, PingPeriod: 5 * time.Second})
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	ex, err := remotecommand.NewSPDYExecutorRejectRedirects(rt, clientspdy.NewUpgraderForStreaming(rt), http.MethodPost, t.URL)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	return ex.StreamWithContext(ctx, opts)
}

// streamStatus is the last message of a v5 stream: how the command ended.
func streamStatus(err error) metav1.Status {
	if err == nil {
		return metav1.Status{Status: metav1.StatusSuccess}
	}
	var exit exec.CodeExitError
	if errors.As(err, &exit) && exit.Exited() {
		return metav1.Status{
			Status: metav1.StatusFailure, Reason: constants.NonZeroExitCodeReason,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: constants.ExitCodeCauseType, Message: fmt.Sprint(exit.ExitStatus())}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
		}
	}
	var st apierrors.APIStatus
	if errors.As(err, &st) {
		return st.Status()
	}
	return apierrors.NewInternalError(err).Status()
}

// sizes hands terminal sizes from the client's channel to the executor.
type sizes chan remotecommand.TerminalSize

func newSizes(ctx context.Context, r io.Reader) sizes {
	q := make(sizes)
	go func() {
		defer close(q)
		dec := json.NewDecoder(r)
		for {
			var size remotecommand.TerminalSize
			if dec.Decode(&size) != nil {
				return
			}
			select {
			case q <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return q
}

// Next implements remotecommand.TerminalSizeQueue.
func (q sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

// TunnelProtocols are the SPDY protocols a client wants to speak inside a websocket.
func TunnelProtocols(req *http.Request) []string {
	if !gwebsocket.IsWebSocketUpgrade(req) {
		return nil
	}
	var out []string
	for _, name := range gwebsocket.Subprotocols(req) {
		if rest, ok := strings.CutPrefix(name, pfconst.WebsocketsSPDYTunnelingPrefix); ok && strings.HasSuffix(name, pfconst.KubernetesSuffix) {
			out = append(out, rest)
		}
	}
	return out
}

// Tunnel carries a client's SPDY inside a websocket to the kubelet's SPDY port.
func (p *Proxy) Tunnel(c Call, t Target) {
	in := c.Req.Clone(c.Req.Context())
	in.Method = http.MethodPost
	for _, h := range []string{"Sec-Websocket-Protocol", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Extensions"} {
		in.Header.Del(h)
	}
	in.Header.Set("Upgrade", spdy.HeaderSpdy31)
	in.Header["X-Stream-Protocol-Version"] = TunnelProtocols(c.Req)
	backend, br, resp := p.openBackend(c, in, t)
	if backend == nil {
		return
	}
	defer backend.Close()
	chosen := resp.Header.Get("X-Stream-Protocol-Version")
	up := gwebsocket.Upgrader{
		Subprotocols: []string{pfconst.WebsocketsSPDYTunnelingPrefix + chosen},
		CheckOrigin:  func(*http.Request) bool { return true }, // the client has shown a credential
	}
	ws, err := up.Upgrade(c.W, c.Req, nil)
	if err != nil {
		p.Log.Debug("port forward tunnel refused", "error", err)
		return // the library has answered
	}
	conn := portforward.NewTunnelingConnection("server", ws)
	defer conn.Close()
	p.join(conn, conn, backend, br)
}

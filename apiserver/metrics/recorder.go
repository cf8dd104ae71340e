package metrics

import (
	"bufio"
	"net"
	"net/http"
)

// Recorder remembers the status code of a response.
type Recorder struct {
	http.ResponseWriter
	// Code is the answer's status code; 0: nothing was sent yet.
	Code int
	Size int64 // bytes of the body so far
	// Begun, when set, is called with the code before the answer begins.
	Begun func(code int)
	// Delegated, when set, is to be called once a stream is another server's to answer, which may take its time.
	Delegated func()
}

func (r *Recorder) begin(code int) {
	if r.Code != 0 {
		return
	}
	if r.Code = code; r.Begun != nil {
		r.Begun(code)
	}
}

// WriteHeader implements http.ResponseWriter.
func (r *Recorder) WriteHeader(code int) {
	r.begin(code)
	r.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (r *Recorder) Write(p []byte) (int, error) {
	r.begin(http.StatusOK)
	r.Size += int64(len(p))
	return r.ResponseWriter.Write(p)
}

// Hijack implements http.Hijacker, which websocket libraries look for.
func (r *Recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.begin(http.StatusSwitchingProtocols)
	return http.NewResponseController(r.ResponseWriter).Hijack()
}

// Unwrap lets http.ResponseController reach the connection.
func (r *Recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush implements http.Flusher.
func (r *Recorder) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

package etcdapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// gateway serves the gRPC methods as JSON over HTTP, on the paths the services
// are annotated with (POST /v3/kv/range, …). It calls the server's own gRPC
// through memory, so that every check is the same.
type gateway struct {
	s    *Server
	conn *grpc.ClientConn
	loop *queue
}

// route is a method behind a path.
type route struct {
	method              string // full name
	in, out             func() proto.Message
	sendsMany, getsMany bool
}

func newGateway(s *Server) (*gateway, error) {
	g := &gateway{s: s, loop: newQueue(&net.UnixAddr{Name: "gateway", Net: "unix"})}
	var err error
	g.conn, err = grpc.NewClient("passthrough:///gateway",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<31-1)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			client, server := net.Pipe()
			g.loop.give(server)
			return client, nil
		}))
	return g, err
}

func (g *gateway) close() {
	g.conn.Close()
	g.loop.Close()
}

// legacy makes messages of the services whose messages are plain structs.
func legacy[T any, P interface {
	*T
	protoadapt.MessageV1
}]() func() proto.Message {
	return func() proto.Message { return protoadapt.MessageV2Of(P(new(T))) }
}

func (g *gateway) register(mux *http.ServeMux) {
	add := func(path string, r route) {
		mux.HandleFunc(path, func(w http.ResponseWriter, req *http.Request) {
			if req.Method != http.MethodPost {
				writeStatus(w, status.Error(codes.Unimplemented, "Method Not Allowed"))
				return
			}
			g.serve(w, req, r)
		})
	}
	mux.HandleFunc("/v3/", func(w http.ResponseWriter, req *http.Request) {
		writeStatus(w, status.Error(codes.NotFound, "Not Found"))
	})
	services := pb.File_rpc_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			rule, ok := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
			if !ok || rule.GetPost() == "" {
				continue
			}
			r := route{method: "/" + string(services.Get(i).FullName()) + "/" + string(m.Name()),
				in: typed(m.Input()), out: typed(m.Output()), sendsMany: m.IsStreamingClient(), getsMany: m.IsStreamingServer()}
			add(rule.GetPost(), r)
			for _, more := range rule.GetAdditionalBindings() {
				add(more.GetPost(), r)
			}
		}
	}
	header := legacy[headerResponse]()
	for path, r := range map[string]route{
		"/v3/lock/lock":         {method: "/v3lockpb.Lock/Lock", in: legacy[lockRequest](), out: legacy[lockResponse]()},
		"/v3/lock/unlock":       {method: "/v3lockpb.Lock/Unlock", in: legacy[unlockRequest](), out: header},
		"/v3/election/campaign": {method: "/v3electionpb.Election/Campaign", in: legacy[campaignRequest](), out: legacy[campaignResponse]()},
		"/v3/election/proclaim": {method: "/v3electionpb.Election/Proclaim", in: legacy[proclaimRequest](), out: header},
		"/v3/election/leader":   {method: "/v3electionpb.Election/Leader", in: legacy[leaderRequest](), out: legacy[leaderResponse]()},
		"/v3/election/observe":  {method: "/v3electionpb.Election/Observe", in: legacy[leaderRequest](), out: legacy[leaderResponse](), getsMany: true},
		"/v3/election/resign":   {method: "/v3electionpb.Election/Resign", in: legacy[resignRequest](), out: header},
	} {
		add(path, r)
	}
}

func typed(d protoreflect.MessageDescriptor) func() proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil
	}
	return func() proto.Message { return t.New().Interface() }
}

var (
	fromJSON = protojson.UnmarshalOptions{DiscardUnknown: true}
	toJSON   = protojson.MarshalOptions{UseProtoNames: true}
)

func (g *gateway) serve(w http.ResponseWriter, req *http.Request, r route) {
	w.Header().Set("Content-Type", "application/json")
	// Base64 makes a request a third longer than it is.
	body := json.NewDecoder(http.MaxBytesReader(w, req.Body, int64(g.s.cfg.MaxRequestBytes+messageOverhead)*2))
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	if token := req.Header.Get("Authorization"); token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", token)
	}
	if r.sendsMany || r.getsMany {
		g.stream(ctx, w, body, r)
		return
	}
	in, out := r.in(), r.out()
	err := readJSON(body, in)
	if errors.Is(err, io.EOF) {
		err = nil // no body is an empty request
	}
	if err == nil {
		err = g.conn.Invoke(ctx, r.method, in, out)
	}
	if err != nil {
		writeStatus(w, err)
		return
	}
	text, err := toJSON.Marshal(out)
	if err != nil {
		writeStatus(w, err)
		return
	}
	w.Write(text)
}

func readJSON(from *json.Decoder, into proto.Message) error {
	var raw json.RawMessage
	if err := from.Decode(&raw); err != nil {
		if errors.Is(err, io.EOF) {
			return err
		}
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if err := fromJSON.Unmarshal(raw, into); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

// stream passes requests from the body and answers, a line each, until one
// side ends.
func (g *gateway) stream(ctx context.Context, w http.ResponseWriter, body *json.Decoder, r route) {
	s, err := g.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, r.method)
	if err != nil {
		writeStatus(w, err)
		return
	}
	first := r.in()
	if err := readJSON(body, first); err != nil && !errors.Is(err, io.EOF) {
		writeStatus(w, err)
		return
	}
	if err := s.SendMsg(first); err != nil {
		writeStatus(w, err)
		return
	}
	control := http.NewResponseController(w)
	if r.sendsMany {
		control.EnableFullDuplex()
		go func() { // ends with the body, which ends with the handler
			for in := r.in(); readJSON(body, in) == nil && s.SendMsg(in) == nil; in = r.in() {
			}
			s.CloseSend()
		}()
	} else {
		s.CloseSend()
	}
	for started := false; ; started = true {
		out := r.out()
		err := s.RecvMsg(out)
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil && !started:
			writeStatus(w, err)
			return
		case err != nil:
			text, _ := json.Marshal(map[string]any{"error": statusBody(err)})
			w.Write(append(text, '\n'))
			return
		}
		text, err := toJSON.Marshal(out)
		if err != nil {
			return
		}
		if _, err := w.Write([]byte(`{"result":` + string(text) + "}\n")); err != nil {
			return
		}
		control.Flush()
	}
}

func statusBody(err error) map[string]any {
	st := status.Convert(err)
	return map[string]any{"code": st.Code(), "message": st.Message()}
}

var httpStatus = map[codes.Code]int{
	codes.Canceled: 499, codes.InvalidArgument: 400, codes.DeadlineExceeded: 504, codes.NotFound: 404,
	codes.AlreadyExists: 409, codes.PermissionDenied: 403, codes.Unauthenticated: 401, codes.ResourceExhausted: 429,
	codes.FailedPrecondition: 400, codes.Aborted: 409, codes.OutOfRange: 400, codes.Unimplemented: 501, codes.Unavailable: 503,
}

func writeStatus(w http.ResponseWriter, err error) {
	code, ok := httpStatus[status.Code(err)]
	if !ok {
		code = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(statusBody(err))
}

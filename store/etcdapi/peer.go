package etcdapi

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/skiff-project/skiff/store"
)

// maxPeerMessage bounds what is read of a request of a peer. Bytes.
const maxPeerMessage = 64 << 10

// PeerHandler serves what etcd serves at its peer URLs: the members, versions,
// hashes and leases to whoever asks, and to raft the refusals of a member that
// has no peers.
func (s *Server) PeerHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", http.NotFound)
	raft := s.raftHandler()
	mux.Handle("/raft", raft)
	mux.Handle("/raft/", raft)
	only(mux, http.MethodGet, "/members", s.servePeerMembers)
	only(mux, http.MethodPost, "/members/promote/", s.servePromote)
	only(mux, http.MethodGet, "/members/hashkv", s.servePeerHash)
	mux.HandleFunc("/leases", postOnly(s.servePeerLease))
	mux.HandleFunc("/leases/internal", postOnly(s.servePeerLeaseTime))
	only(mux, http.MethodGet, "/downgrade/enabled", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Etcd-Cluster-Id", s.clusterID())
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "false")
	})
	only(mux, http.MethodGet, "/version", serveVersion)
	return mux
}

// clusterID is the cluster's ID as peers write it.
func (s *Server) clusterID() string { return strconv.FormatUint(s.cfg.ClusterID, 16) }

// only registers a handler of one method, with etcd's answer to others.
func only(mux *http.ServeMux, method, path string, h http.HandlerFunc) {
	mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	})
}

// postOnly is only for the leases, where etcd does not say what it allows.
func postOnly(h func(http.ResponseWriter, *http.Request, []byte)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPeerMessage))
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			http.Error(w, "request body too large", http.StatusRequestEntityTooLarge)
			return
		} else if err != nil {
			http.Error(w, "error reading body", http.StatusBadRequest)
			return
		}
		h(w, r, body)
	}
}

func (s *Server) servePeerMembers(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Etcd-Cluster-Id", s.clusterID())
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode([]any{struct {
		ID         uint64   `json:"id"`
		PeerURLs   []string `json:"peerURLs"`
		Name       string   `json:"name,omitempty"`
		ClientURLs []string `json:"clientURLs,omitempty"`
	}{s.cfg.MemberID, s.cfg.PeerURLs, s.cfg.Name, s.clientURLs()}})
}

// servePromote answers as for members that are no learners, or not there.
func (s *Server) servePromote(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Etcd-Cluster-Id", s.clusterID())
	text := strings.TrimPrefix(r.URL.Path, "/members/promote/")
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("member %s not found in cluster", text), http.StatusNotFound)
		return
	}
	ctx := r.Context()
	if token := r.Header.Get("Authorization"); token != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.TokenFieldNameGRPC, token))
	}
	switch err := s.access.check(ctx, &pb.MemberPromoteRequest{ID: id}); {
	case err != nil:
		writeMessage(w, http.StatusInternalServerError, "Internal Server Error")
	case id != s.cfg.MemberID:
		http.Error(w, "membership: ID not found", http.StatusNotFound)
	default:
		http.Error(w, "membership: can only promote a learner member", http.StatusPreconditionFailed)
	}
}

// writeMessage is an error as etcd's older handlers write it.
func writeMessage(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	text, _ := json.Marshal(map[string]string{"message": message})
	w.Write(text)
}

// servePeerHash is the hash that members compare themselves by.
func (s *Server) servePeerHash(w http.ResponseWriter, r *http.Request) {
	if id := r.Header.Get("X-Etcd-Cluster-Id"); id != "" && id != s.clusterID() {
		http.Error(w, "cluster ID mismatch", http.StatusPreconditionFailed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPeerMessage))
	if err != nil {
		http.Error(w, "error reading body", http.StatusBadRequest)
		return
	}
	var req pb.HashKVRequest
	if json.Unmarshal(body, &req) != nil {
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	resp, err := (&maintenanceServer{s: s}).HashKV(r.Context(), &req)
	if err != nil {
		http.Error(w, strings.TrimPrefix(rpctypes.ErrorDesc(err), "etcdserver: "), http.StatusBadRequest)
		return
	}
	resp.Header = &pb.ResponseHeader{Revision: resp.Header.Revision}
	text, err := json.Marshal(resp)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("X-Etcd-Cluster-Id", s.clusterID())
	w.Header().Set("Content-Type", "application/json")
	w.Write(text)
}

// servePeerLease renews a lease, as a member asks the leader to.
func (s *Server) servePeerLease(w http.ResponseWriter, r *http.Request, body []byte) {
	var req pb.LeaseKeepAliveRequest
	if proto.Unmarshal(body, &req) != nil {
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	lease, err := s.cfg.Store.Leases().KeepAlive(r.Context(), store.LeaseID(req.ID))
	writeLease(w, &pb.LeaseKeepAliveResponse{ID: req.ID, TTL: lease.TTL}, false, err)
}

// servePeerLeaseTime says how long a lease has left. Request and answer are
// those of the gRPC call, each wrapped as the field 1 of a message.
func (s *Server) servePeerLeaseTime(w http.ResponseWriter, r *http.Request, body []byte) {
	var req pb.LeaseTimeToLiveRequest
	_, wrapped, ok := fields(body)
	if !ok || proto.Unmarshal(wrapped[1], &req) != nil {
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	lease, err := s.cfg.Store.Leases().TimeToLive(r.Context(), store.LeaseID(req.ID))
	resp := &pb.LeaseTimeToLiveResponse{Header: &pb.ResponseHeader{}, ID: req.ID, TTL: lease.Remaining, GrantedTTL: lease.TTL}
	if req.Keys {
		for _, key := range lease.Keys {
			resp.Keys = append(resp.Keys, []byte(key))
		}
	}
	writeLease(w, resp, true, err)
}

func writeLease(w http.ResponseWriter, resp proto.Message, wrap bool, err error) {
	var text []byte
	if err == nil {
		text, err = proto.Marshal(resp)
	}
	switch {
	case errors.Is(err, store.ErrLeaseNotFound):
		http.Error(w, "lease not found", http.StatusNotFound)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case wrap:
		text = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), text)
	}
	w.Header().Set("Content-Type", "application/protobuf")
	w.Write(text)
}

// fields are the numbers and bytes at the top of a message, the last of each field.
func fields(message []byte) (numbers map[protowire.Number]uint64, texts map[protowire.Number][]byte, ok bool) {
	numbers, texts = map[protowire.Number]uint64{}, map[protowire.Number][]byte{}
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil, nil, false
		}
		message = message[n:]
		switch kind {
		case protowire.VarintType:
			numbers[field], n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			texts[field], n = protowire.ConsumeBytes(message)
		default:
			n = protowire.ConsumeFieldValue(field, kind, message)
		}
		if n < 0 {
			return nil, nil, false
		}
		message = message[n:]
	}
	return numbers, texts, true
}

// Of raft's messages only the type is looked at, its first field, and of types
// that of messages which bring a snapshot.
const (
	raftType     protowire.Number = 1
	raftSnapshot uint64           = 7
)

// raftHandler answers other members as etcd answers those it does not know.
// What comes from one of this very cluster and is for this member, so from a
// copy under real etcd, is refused too, which etcd would not do.
func (s *Server) raftHandler() http.Handler {
	mux := http.NewServeMux()
	only(mux, http.MethodPost, "/raft", s.ofCluster(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(s.cfg.MaxRequestBytes+messageOverhead)))
		if err != nil {
			http.Error(w, "error reading raft message", http.StatusBadRequest)
			return
		}
		if _, _, ok := fields(body); !ok {
			http.Error(w, "error unmarshalling raft message", http.StatusBadRequest)
			return
		}
		http.Error(w, "error processing raft message", http.StatusInternalServerError)
	}))
	only(mux, http.MethodGet, "/raft/stream/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Server-Version", Version)
		s.ofCluster(serveRaftStream)(w, r)
	})
	only(mux, http.MethodPost, "/raft/snapshot", s.ofCluster(func(w http.ResponseWriter, r *http.Request) {
		var size [8]byte
		_, err := io.ReadFull(r.Body, size[:])
		var message bytes.Buffer
		if err == nil {
			// Read as it comes: nobody's word is enough to set memory aside.
			n := binary.BigEndian.Uint64(size[:])
			_, err = io.CopyN(&message, r.Body, int64(min(n, maxPeerMessage)))
			if n > maxPeerMessage {
				err = errors.New("rafthttp: error limit exceeded")
			} else if errors.Is(err, io.EOF) && message.Len() > 0 {
				err = io.ErrUnexpectedEOF
			}
		}
		numbers, _, ok := fields(message.Bytes())
		switch {
		case err != nil || !ok:
			http.Error(w, fmt.Sprintf("failed to decode raft message (%v)", err), http.StatusBadRequest)
		case numbers[raftType] != raftSnapshot:
			http.Error(w, "wrong raft message type", http.StatusBadRequest)
		default:
			http.Error(w, "error processing raft message", http.StatusInternalServerError)
		}
	}))
	mux.HandleFunc("/raft/probing", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(struct {
			OK  bool
			Now time.Time
		}{true, s.cfg.Clock.Now()})
	})
	return mux
}

// ofCluster lets those to next that say they are of this cluster and of a
// version that could be.
func (s *Server) ofCluster(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Etcd-Cluster-Id", s.clusterID())
		theirs := release(r.Header.Get("X-Server-Version"))
		least := release(r.Header.Get("X-Min-Cluster-Version"))
		id := r.Header.Get("X-Etcd-Cluster-Id")
		reason := ""
		switch {
		case theirs[0] < 3 || slices.Compare(least[:], oneRelease[:]) > 0:
			reason = "incompatible version"
		case id != s.clusterID():
			reason = "cluster ID mismatch"
		default:
			next(w, r)
			return
		}
		s.cfg.Log.Warn("a member of another cluster asks for this one: check its --initial-cluster and --initial-cluster-token",
			"reason", reason, "from", r.RemoteAddr, "member", r.Header.Get("X-Server-From"), "cluster", id, "version", r.Header.Get("X-Server-Version"))
		http.Error(w, reason, http.StatusPreconditionFailed)
	}
}

// oneRelease is the release served.
var oneRelease = release(Version)

// release is major and minor of a version; of none it is 2.0, which did not tell.
func release(version string) (r [2]int) {
	fmt.Sscanf(cmp.Or(version, "2.0"), "%d.%d", &r[0], &r[1])
	return r
}

func serveRaftStream(w http.ResponseWriter, r *http.Request) {
	switch kind := path.Dir(r.URL.Path); kind {
	case "/raft/stream/msgapp", "/raft/stream/message":
	default:
		http.Error(w, "invalid path", http.StatusNotFound)
		return
	}
	if _, err := strconv.ParseUint(path.Base(r.URL.Path), 16, 64); err != nil {
		http.Error(w, "invalid from", http.StatusNotFound)
		return
	}
	http.Error(w, "error sender not found", http.StatusNotFound)
}

package authconfig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skiff-project/skiff/apiserver/oidc"
	"github.com/skiff-project/skiff/internal/filewatch"
)

// lookEvery is how often a file is read even if nothing tells that it changed.
const lookEvery = time.Minute

// follow hands use what is in a file whenever it is something else, until ctx
// ends. What use has an error for changes nothing; use says whether to try it again.
func follow(ctx context.Context, file string, last []byte, count *reloads, log *slog.Logger, use func([]byte) (again bool, err error)) {
	for {
		w := filewatch.Folder(filepath.Dir(file)) // before reading: nothing that happens meanwhile is missed
		data, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(data, last) {
			var again bool
			if err == nil {
				if again, err = use(data); !again {
					last = data
				}
			}
			switch {
			case ctx.Err() != nil:
			case err != nil:
				log.Error("a configuration file changed and is not used; what it said before holds", "file", file, "error", err)
				count.add("failure")
			default:
				log.Info("a configuration file changed and is used", "file", file)
				count.add("success")
				count.use(data)
			}
		}
		if !w.Wait(ctx, lookEvery) {
			return
		}
	}
}

// reloads are the metrics of one file.
type reloads struct {
	server string
	total  *prometheus.CounterVec
	last   *prometheus.GaugeVec
	info   *prometheus.GaugeVec
}

func newReloads(of, server string) *reloads {
	prefix := "apiserver_" + of + "_config_controller_"
	labels := []string{"status", "apiserver_id_hash"}
	return &reloads{
		server: server,
		total: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "automatic_reloads_total",
			Help: "Total number of automatic reloads of " + of + " configuration split by status and apiserver identity."}, labels),
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "automatic_reload_last_timestamp_seconds",
			Help: "Timestamp of the last automatic reload of " + of + " configuration split by status and apiserver identity."}, labels),
		info: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "last_config_info",
			Help: "Information about the last applied " + of + " configuration with hash as label, split by apiserver identity."},
			[]string{"apiserver_id_hash", "hash"}),
	}
}

func (r *reloads) collectors() []prometheus.Collector {
	return []prometheus.Collector{r.total, r.last, r.info}
}

func (r *reloads) add(status string) {
	r.total.WithLabelValues(status, r.server).Inc()
	r.last.WithLabelValues(status, r.server).SetToCurrentTime()
}

// use says which configuration holds.
func (r *reloads) use(data []byte) {
	r.info.Reset()
	r.info.WithLabelValues(r.server, oidc.Hash(data)).Set(1)
}

// identity names this API server as upstream does, by a hash of the host's name.
func identity() string {
	host, _ := os.Hostname() // without one there is one server anyway
	var named []byte
	for _, part := range []string{host, "kube-apiserver"} {
		named = append(binary.BigEndian.AppendUint16(named, uint16(len(part))), part...)
	}
	sum := sha256.Sum256(named)
	return "apiserver-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

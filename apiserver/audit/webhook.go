package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/skiff-project/skiff/api"
)

// WebhookConfig is a server that is sent audit.k8s.io/v1 EventLists.
type WebhookConfig struct {
	Kubeconfig     string        // file: how to reach it
	Mode           Mode          // default batch
	Buffer         int           // events queued in mode batch; default 10,000
	BatchSize      int           // events sent at once; default 400
	BatchWait      time.Duration // how long events wait for others; default 30 s
	InitialBackoff time.Duration // before the second try; default 10 s
	Truncate       *Truncate
}

// Upstream's bounds.
const (
	webhookTries   = 5
	webhookTimeout = 30 * time.Second
	webhookQPS     = 10
	webhookBurst   = 15
)

type webhook struct {
	conf   WebhookConfig
	lost   func(plugin string, n int, err error)
	url    string
	client *http.Client
	queue  *queue
	rate   flowcontrol.RateLimiter
	ctx    context.Context // ends the waiting between tries
	cancel context.CancelFunc
}

func newWebhook(c WebhookConfig, lost func(string, int, error)) (*webhook, error) {
	api.SetIfEmpty(&c.Mode, ModeBatch)
	api.SetIfEmpty(&c.Buffer, 10_000)
	api.SetIfEmpty(&c.BatchSize, 400)
	api.SetIfEmpty(&c.BatchWait, 30*time.Second)
	api.SetIfEmpty(&c.InitialBackoff, 10*time.Second)
	conf, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("audit webhook: %w", err)
	}
	conf.Timeout = webhookTimeout
	client, err := rest.HTTPClientFor(conf)
	if err != nil {
		return nil, fmt.Errorf("audit webhook: %w", err)
	}
	w := &webhook{conf: c, lost: lost, url: conf.Host, client: client, rate: flowcontrol.NewTokenBucketRateLimiter(webhookQPS, webhookBurst)}
	if !strings.Contains(w.url, "://") {
		w.url = "https://" + w.url
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if c.Mode == ModeBatch {
		var bytes int64
		if c.Truncate != nil {
			bytes = c.Truncate.MaxBatchSize
		}
		w.queue = newQueue(c.Buffer, c.BatchSize, bytes, c.BatchWait, func(batch [][]byte) {
			w.rate.Accept()
			if err := w.send(batch); err != nil {
				lost("webhook", len(batch), err)
			}
		})
	}
	return w, nil
}

func (w *webhook) name() string { return "webhook" }
func (w *webhook) strict() bool { return w.conf.Mode == ModeBlockingStrict }

func (w *webhook) put(_ *Event, text []byte) error {
	if w.queue != nil {
		return w.queue.put(text)
	}
	return w.send([][]byte{text})
}

// send tries a few times, waiting longer each time.
func (w *webhook) send(batch [][]byte) error {
	var body bytes.Buffer
	body.WriteString(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[`)
	body.Write(bytes.Join(batch, []byte(",")))
	body.WriteString("]}\n")
	var errs []error
	for wait, try := w.conf.InitialBackoff, 1; ; wait, try = wait*3/2, try+1 {
		err := w.post(body.Bytes())
		if err == nil {
			return nil
		}
		if errs = append(errs, err); try == webhookTries {
			return errors.Join(errs...)
		}
		select {
		case <-w.ctx.Done():
			return errors.Join(errs...)
		case <-time.After(wait):
		}
	}
}

func (w *webhook) post(body []byte) error {
	resp, err := w.client.Post(w.url, "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) //nolint:errcheck // so that the connection can be used again
	if resp.StatusCode >= 300 {
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	return nil
}

func (w *webhook) close() {
	w.cancel()
	if w.queue != nil {
		w.queue.close()
	}
}

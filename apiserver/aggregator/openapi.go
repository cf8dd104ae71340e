package aggregator

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	merge "k8s.io/kube-openapi/pkg/aggregator"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/openapiconv"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/skiff-project/skiff/object/codec"
)

// Documents are asked for when a client asks, and not again for a while:
// briefly, as they change with what the server has, longer after a failure.
const (
	documentFresh = 5 * time.Second
	documentRetry = 30 * time.Second
	openAPIUser   = "system:aggregator"
)

// documents are the OpenAPI documents a server last had.
type documents struct {
	mu   sync.Mutex
	next time.Time // not to be asked for before
	v2   *spec.Swagger
	tag  string            // names v2's content
	etag string            // the server's own name of it
	v3   map[string]string // its documents' URLs, by path below /openapi/v3/
	// converted is version 3 made of version 2, of a server that has only that.
	converted []byte
}

// openAPI are a remote's documents, as fresh as they can be had.
func (a *Aggregator) openAPI(ctx context.Context) []*remote {
	remotes := a.table()
	list := slices.SortedFunc(maps.Values(remotes), func(x, y *remote) int {
		return cmp.Or(cmp.Compare(y.spec.GroupPriorityMinimum, x.spec.GroupPriorityMinimum), cmp.Compare(x.name, y.name))
	})
	var wg sync.WaitGroup
	for _, r := range list {
		wg.Go(func() { r.refresh(ctx) })
	}
	wg.Wait()
	return list
}

// refresh asks for the documents again if that is due; on failure the last ones stay.
func (r *remote) refresh(ctx context.Context) {
	d := &r.docs
	d.mu.Lock()
	defer d.mu.Unlock()
	now := r.a.Clock.Now()
	if !r.available.Load() || now.Before(d.next) {
		return
	}
	d.next = now.Add(documentFresh)
	err := r.refreshV2(ctx)
	if err == nil {
		err = r.refreshV3(ctx)
	}
	if err != nil && ctx.Err() == nil {
		d.next = now.Add(documentRetry)
		r.a.Log.Debug("the OpenAPI documents of an APIService cannot be had", "apiservice", r.name, "error", err)
	}
}

func (r *remote) refreshV2(ctx context.Context) error {
	d := &r.docs
	header := http.Header{"Accept": {codec.JSON}}
	if d.etag != "" {
		header.Set("If-None-Match", d.etag)
	}
	resp, data, err := r.read(ctx, "/openapi/v2", header, openAPIUser)
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusNotModified && d.etag != "":
		return nil
	case resp.StatusCode == http.StatusNotFound:
		d.v2, d.tag, d.etag, d.converted = nil, "", "", nil
		return nil
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("/openapi/v2 answered %s", resp.Status)
	}
	sum := sha256.Sum256(data)
	tag := hex.EncodeToString(sum[:])
	if d.etag = resp.Header.Get("Etag"); tag == d.tag {
		return nil
	}
	doc := &spec.Swagger{}
	if err := doc.UnmarshalJSON(data); err != nil {
		return err
	}
	d.v2, d.tag, d.converted = merge.FilterSpecByPathsWithoutSideEffects(doc, []string{r.root() + "/"}), tag, nil
	return nil
}

func (r *remote) refreshV3(ctx context.Context) error {
	d := &r.docs
	resp, data, err := r.read(ctx, "/openapi/v3", http.Header{"Accept": {codec.JSON}}, openAPIUser)
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusNotFound:
		return r.convert()
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("/openapi/v3 answered %s", resp.Status)
	}
	var index handler3.OpenAPIV3Discovery
	if err := json.Unmarshal(data, &index); err != nil {
		return err
	}
	d.v3, d.converted = map[string]string{}, nil
	for path, at := range index.Paths {
		if "/"+path == r.root() || path == "apis/"+r.spec.Group { // the rest belongs to other versions
			d.v3[path] = at.ServerRelativeURL
		}
	}
	return nil
}

func (r *remote) convert() error {
	d := &r.docs
	if d.v2 == nil || d.converted != nil {
		return nil
	}
	var err error
	if d.converted, err = json.Marshal(openapiconv.ConvertV2ToV3(d.v2)); err == nil {
		path := strings.TrimPrefix(r.root(), "/")
		d.v3 = map[string]string{path: "/openapi/v3/" + path + "?hash=" + strings.ToUpper(d.tag)}
	}
	return err
}

// OpenAPIV2 returns what names the aggregated documents' content, "" for none
// at all, and how to merge them into this server's own.
func (a *Aggregator) OpenAPIV2(ctx context.Context) (tag string, into func(own []byte) ([]byte, error)) {
	var docs []*spec.Swagger
	for _, r := range a.openAPI(ctx) {
		r.docs.mu.Lock()
		if r.docs.v2 != nil {
			docs = append(docs, r.docs.v2)
			tag += " " + r.name + "=" + r.docs.tag
		}
		r.docs.mu.Unlock()
	}
	return tag, func(own []byte) ([]byte, error) {
		merged := &spec.Swagger{}
		if err := merged.UnmarshalJSON(own); err != nil {
			return nil, err
		}
		for _, d := range docs {
			if err := merge.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(merged, d); err != nil {
				return nil, err
			}
		}
		return json.Marshal(merged)
	}
}

// OpenAPIV3 are the URLs of the aggregated documents, by path below /openapi/v3/.
func (a *Aggregator) OpenAPIV3(ctx context.Context) map[string]string {
	out := map[string]string{}
	for _, r := range a.openAPI(ctx) {
		r.docs.mu.Lock()
		maps.Copy(out, r.docs.v3)
		r.docs.mu.Unlock()
	}
	return out
}

// ServeOpenAPIV3 answers for the aggregated document at path (below
// /openapi/v3/), if there is one: the server it is from does, or converted has it.
func (a *Aggregator) ServeOpenAPIV3(path string, w http.ResponseWriter, req *http.Request, who Caller) (converted []byte, is bool) {
	for _, r := range a.openAPI(req.Context()) {
		r.docs.mu.Lock()
		_, has := r.docs.v3[path]
		converted := r.docs.converted
		r.docs.mu.Unlock()
		if !has {
			continue
		}
		if converted == nil {
			r.serve(w, req, who)
		}
		return converted, true
	}
	return nil, false
}

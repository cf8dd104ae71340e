// Package rotation keeps the key that a cluster's Secrets are stored under: it
// makes the first one, replaces it while the cluster runs, and follows a file
// that somebody else writes.
package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/internal/atomicfile"
	"github.com/skiff-project/skiff/store"
)

// Keys is the EncryptionConfiguration in a file and what is made of it.
type Keys struct {
	File string
	Set  *encryption.Set
	log  *slog.Logger
	busy sync.Mutex // one rotation at a time
}

// Open reads the configuration in file. With create it makes one with a key if
// there is none: a cluster encrypts from its first start, and what an older one
// stored in the clear stays readable.
func Open(file string, create bool, o encryption.Options) (*Keys, error) {
	if _, err := os.Stat(file); create && errors.Is(err, os.ErrNotExist) {
		if err := atomicfile.Write(file, encryption.Generate("key1"), 0o600); err != nil {
			return nil, err
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("encryption configuration: %w", err)
	}
	set, err := encryption.New(data, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &Keys{File: file, Set: set, log: o.Log}, nil
}

// poll is how often upstream looks whether its file changed.
const poll = time.Minute

// Follow takes over what is written to the file, until ctx ends; a file that
// is not valid is logged and changes nothing.
func (k *Keys) Follow(ctx context.Context) {
	seen := k.Set.Hash()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(poll):
		}
		data, err := os.ReadFile(k.File)
		if err == nil && encryption.HashOf(data) == seen {
			continue
		}
		if err == nil {
			seen = encryption.HashOf(data)
			err = k.Set.Replace(data)
		}
		if err != nil {
			k.log.Error("the encryption configuration changed and is not used", "file", k.File, "error", err)
			continue
		}
		k.log.Info("the encryption configuration changed", "file", k.File)
	}
}

// Step is how far a rotation is.
type Step struct {
	Key         string `json:"key"` // the new one's name
	Done, Total int
	Error       string `json:"error,omitempty"`
}

// Rotate makes a new key, writes again everything that is stored under the one
// of Secrets, and then forgets the old keys. api is the API server as an
// administrator, st its store. Whenever it ends early, the file holds every key
// that is still needed, and doing it again completes it.
func (k *Keys) Rotate(ctx context.Context, api *rest.Config, st store.Store, progress func(Step)) error {
	k.busy.Lock()
	defer k.busy.Unlock()
	data, err := os.ReadFile(k.File)
	if err != nil {
		return err
	}
	config, err := encryption.Parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", k.File, err)
	}
	rule, key, err := config.AddKey(schema.GroupResource{Resource: "secrets"})
	if err != nil {
		return fmt.Errorf("%s: %w", k.File, err)
	}
	if err := k.use(config); err != nil {
		return err
	}
	sealed, err := sealedBy(api, config, rule)
	if err != nil {
		return err
	}
	if err := rewrite(ctx, api, sealed, func(done, total int) { progress(Step{Key: key, Done: done, Total: total}) }); err != nil {
		return fmt.Errorf("not everything could be written again, so the old keys stay: %w; try again", err)
	}
	// A watch that began before would need the old keys for what it has not seen yet: it begins anew.
	if err := st.Compact(ctx, st.Status().Revision); err != nil && !errors.Is(err, store.ErrCompacted) {
		return err
	}
	config.DropOldKeys(rule)
	return k.use(config)
}

// use writes a configuration down before it is used: a key that is lost takes its objects along.
func (k *Keys) use(config *encryption.Configuration) error {
	data := config.YAML()
	if err := atomicfile.Write(k.File, data, 0o600); err != nil {
		return err
	}
	return k.Set.Replace(data)
}

// sealedBy lists the resources a rule of the configuration is about.
func sealedBy(api *rest.Config, config *encryption.Configuration, rule int) ([]schema.GroupVersionResource, error) {
	client, err := discovery.NewDiscoveryClientForConfig(api)
	if err != nil {
		return nil, err
	}
	lists, err := client.ServerPreferredResources()
	if err != nil {
		return nil, err
	}
	var out []schema.GroupVersionResource
	for _, list := range discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list", "patch"}}, lists) {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			gvr := gv.WithResource(r.Name)
			if !strings.Contains(r.Name, "/") && config.RuleOf(gvr.GroupResource()) == rule {
				out = append(out, gvr)
			}
		}
	}
	if !slices.ContainsFunc(out, func(r schema.GroupVersionResource) bool { return r.Resource == "secrets" && r.Group == "" }) {
		return nil, errors.New("the API server does not serve Secrets")
	}
	return out, nil
}

// rewrite has every object of the resources stored again, unchanged: an empty
// patch writes nothing but what is stored under an old key.
func rewrite(ctx context.Context, api *rest.Config, resources []schema.GroupVersionResource, progress func(done, total int)) error {
	client, err := metadata.NewForConfig(api)
	if err != nil {
		return err
	}
	done, total := 0, 0
	var failed []error
	for _, r := range resources {
		opts := metav1.ListOptions{Limit: 500}
		for {
			page, err := client.Resource(r).List(ctx, opts)
			if err != nil {
				return err
			}
			if opts.Continue == "" {
				total += len(page.Items)
				if n := page.RemainingItemCount; n != nil {
					total += int(*n)
				}
			}
			for i := range page.Items {
				o := &page.Items[i]
				_, err := client.Resource(r).Namespace(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
				if err != nil && !apierrors.IsNotFound(err) && len(failed) < 10 {
					failed = append(failed, fmt.Errorf("%s %s/%s: %w", r.Resource, o.Namespace, o.Name, err))
				}
				if done++; done%100 == 0 {
					progress(done, max(done, total))
				}
			}
			if opts.Continue = page.Continue; opts.Continue == "" {
				break
			}
		}
	}
	progress(done, done)
	return errors.Join(failed...)
}

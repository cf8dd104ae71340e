package kubelet

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sort"
	"strings"

	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/skiff-project/skiff/kubelet/podworker"
)

// image is what is known of an image that is on the node.
type image struct {
	ref  string
	uid  *int64
	user string
	size uint64
}

// puller gets images onto the node.
type puller struct{ k *Kubelet }

// withDefaultTag adds ":latest" to a reference without tag or digest.
func withDefaultTag(ref string) string {
	last := ref[strings.LastIndexByte(ref, '/')+1:]
	if strings.ContainsAny(last, ":@") {
		return ref
	}
	return ref + ":latest"
}

func (p *puller) status(ctx context.Context, ref string) (*image, error) {
	res, err := p.k.cfg.Images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: ref}, false)
	if err != nil || res.GetImage() == nil {
		return nil, err
	}
	img := res.GetImage()
	out := &image{ref: img.Id, user: img.Username, size: img.Size}
	if img.Uid != nil {
		uid := img.Uid.Value
		out.uid = &uid
	}
	return out, nil
}

// ensure makes an image present by the pull policy; errors are *startError. Events go to the
// container named ("" = the pod).
func (p *puller) ensure(ctx context.Context, w *worker, pod *v1.Pod, container, ref string, policy v1.PullPolicy, sandbox *runtimeapi.PodSandboxConfig) (image, error) {
	event := func(typ, reason, msg string) {
		if ctx.Err() == nil {
			w.event(podworker.Event{Type: typ, Reason: reason, Message: msg, Container: container})
		}
	}
	if _, err := name.ParseReference(ref, name.WeakValidation); err != nil {
		msg := fmt.Sprintf("Failed to apply default image tag %q: couldn't parse image name %q: %v", ref, ref, err)
		event(v1.EventTypeWarning, "InspectFailed", msg)
		return image{}, &startError{"InvalidImageName", msg}
	}
	full := withDefaultTag(ref)
	if policy != v1.PullAlways {
		img, err := p.status(ctx, full)
		switch {
		case err != nil:
			msg := fmt.Sprintf("Failed to inspect image %q: %s", full, text(err))
			event(v1.EventTypeWarning, "InspectFailed", msg)
			return image{}, &startError{"ImageInspectError", msg}
		case img != nil:
			event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", ref))
			return *img, nil
		case policy == v1.PullNever:
			msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", ref)
			event(v1.EventTypeWarning, "ErrImageNeverPull", msg)
			return image{}, &startError{"ErrImageNeverPull", msg}
		}
	}
	event(v1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", ref))
	begin := p.k.cfg.Clock.Now()
	pulled, err := p.pull(ctx, pod, full, sandbox)
	if err != nil {
		event(v1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", ref, err))
		return image{}, pullError(ref, err)
	}
	img, err := p.status(ctx, pulled)
	if err != nil || img == nil {
		img = &image{ref: pulled}
	}
	took := p.k.cfg.Clock.Since(begin).Truncate(time.Millisecond)
	event(v1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.", ref, took, took, img.size))
	return *img, nil
}

// pullError picks the waiting reason from the runtime's error.
func pullError(ref string, err error) error {
	for _, known := range []struct{ reason, cause string }{
		{"RegistryUnavailable", "the registry is unavailable"},
		{"SignatureValidationFailed", "the signature validation failed"},
	} {
		if rest, ok := strings.CutPrefix(text(err), known.reason); ok {
			return &startError{known.reason, fmt.Sprintf("image pull failed for %s because %s%s", ref, known.cause, rest)}
		}
	}
	return &startError{"ErrImagePull", err.Error()}
}

// pull tries every fitting credential, the most specific first, and none if there are none.
func (p *puller) pull(ctx context.Context, pod *v1.Pod, ref string, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	var secrets []*v1.Secret
	for _, s := range pod.Spec.ImagePullSecrets {
		if sec, err := p.k.objects.Secret(pod.Namespace, s.Name); err == nil {
			secrets = append(secrets, sec)
		}
	}
	creds := credentials(ref, secrets)
	if len(creds) == 0 {
		creds = []*runtimeapi.AuthConfig{nil}
	}
	var last error
	for _, c := range creds {
		id, err := p.k.cfg.Images.PullImage(ctx, &runtimeapi.ImageSpec{Image: ref, Annotations: pod.Annotations}, c, sandbox)
		if err == nil {
			p.k.kickNode()
			return id, nil
		}
		last = err
	}
	return "", last
}

type authEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials picks, from docker configuration secrets, the entries whose registry (and path
// prefix) fits an image.
func credentials(ref string, secrets []*v1.Secret) []*runtimeapi.AuthConfig {
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return nil
	}
	target := r.Context().RegistryStr() + "/" + r.Context().RepositoryStr()
	type match struct {
		length int
		auth   *runtimeapi.AuthConfig
	}
	var found []match
	for _, s := range secrets {
		for registry, e := range authEntries(s) {
			key := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(registry, "https://"), "http://"), "/")
			key = strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
			if key == "docker.io" {
				key = "index.docker.io"
			}
			if target != key && !strings.HasPrefix(target, key+"/") {
				continue
			}
			a := &runtimeapi.AuthConfig{Username: e.Username, Password: e.Password, ServerAddress: registry,
				IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
			if b, err := base64.StdEncoding.DecodeString(e.Auth); err == nil && a.Username == "" {
				a.Username, a.Password, _ = strings.Cut(string(b), ":")
			}
			found = append(found, match{len(key), a})
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].length > found[j].length })
	var out []*runtimeapi.AuthConfig
	for _, m := range found {
		out = append(out, m.auth)
	}
	return out
}

func authEntries(s *v1.Secret) map[string]authEntry {
	if data, ok := s.Data[v1.DockerConfigJsonKey]; ok && s.Type == v1.SecretTypeDockerConfigJson {
		var cfg struct {
			Auths map[string]authEntry `json:"auths"`
		}
		_ = json.Unmarshal(data, &cfg)
		return cfg.Auths
	}
	entries := map[string]authEntry{}
	if data, ok := s.Data[v1.DockerConfigKey]; ok && s.Type == v1.SecretTypeDockercfg {
		_ = json.Unmarshal(data, &entries)
	}
	return entries
}

// imageVolumes pulls the images of the image volumes a container mounts: volume name → reference.
func (w *worker) imageVolumes(ctx context.Context, pod *v1.Pod, c *v1.Container, sandbox *runtimeapi.PodSandboxConfig) (map[string]string, error) {
	out := map[string]string{}
	for _, m := range c.VolumeMounts {
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			if v.Name != m.Name || v.Image == nil {
				continue
			}
			img, err := w.k.pulls.ensure(ctx, w, pod, c.Name, v.Image.Reference, v.Image.PullPolicy, sandbox)
			if err != nil {
				return nil, err
			}
			out[v.Name] = img.ref
		}
	}
	return out, nil
}

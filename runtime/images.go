package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/skiff-project/skiff/runtime/image"
)

// File is one file of an image made from local files; see ImportImage.
type File = image.File

// LoadArchive loads every image of a Docker archive, OCI archive or OCI layout folder
// and returns their names.
func (r *Runtime) LoadArchive(ctx context.Context, path string) ([]string, error) {
	return r.images.LoadArchive(ctx, path)
}

// LoadReader is LoadArchive for a stream.
func (r *Runtime) LoadReader(ctx context.Context, rd io.Reader) ([]string, error) {
	return r.images.LoadReader(ctx, rd)
}

// ImportImage makes a one-layer image named ref from local files and returns its id.
func (r *Runtime) ImportImage(_ context.Context, ref string, files []File, cfg ocispec.ImageConfig) (string, error) {
	img, err := r.images.ImportImage(ref, files, cfg)
	return img.ID, err
}

func criImage(img image.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{Id: img.ID, RepoTags: img.Tags, RepoDigests: img.Digests, Size: img.Size, Pinned: img.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: img.ID}}
	user, _, _ := strings.Cut(img.User, ":")
	switch {
	case user == "":
		out.Uid = &runtimeapi.Int64Value{Value: 0}
	case isNumber(user):
		// What is no id at all stays a name, which runAsNonRoot refuses.
		if uid, ok := parseID(user); ok {
			out.Uid = &runtimeapi.Int64Value{Value: int64(uid)}
			break
		}
		fallthrough
	default:
		out.Username = user
	}
	return out
}

// ListImages implements CRI.
func (r *Runtime) ListImages(_ context.Context, f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if name := f.GetImage().GetImage(); name != "" {
		img, err := r.images.Resolve(name)
		if errors.Is(err, image.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return []*runtimeapi.Image{criImage(img)}, nil
	}
	var out []*runtimeapi.Image
	for _, img := range r.images.List() {
		out = append(out, criImage(img))
	}
	return out, nil
}

// ImageStatus implements CRI: an image that is not there is an empty answer.
func (r *Runtime) ImageStatus(_ context.Context, spec *runtimeapi.ImageSpec, verbose bool) (*runtimeapi.ImageStatusResponse, error) {
	img, err := r.images.Resolve(spec.GetImage())
	if errors.Is(err, image.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(img)}
	if verbose {
		conf, err := r.images.ReadConfig(img.ID)
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(map[string]any{"chainID": img.Layers, "imageSpec": conf})
		if err != nil {
			return nil, err
		}
		resp.Info = map[string]string{"info": string(b)}
	}
	return resp, nil
}

// PullImage implements CRI and returns the image's id.
func (r *Runtime) PullImage(ctx context.Context, spec *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, _ *runtimeapi.PodSandboxConfig) (string, error) {
	if err := checkHandler(spec.GetRuntimeHandler()); err != nil {
		return "", err
	}
	if _, err := image.Parse(spec.GetImage()); err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	img, err := r.images.Pull(ctx, spec.GetImage(), image.Auth{
		Username: auth.GetUsername(), Password: auth.GetPassword(), Basic: auth.GetAuth(),
		IdentityToken: auth.GetIdentityToken(), RegistryToken: auth.GetRegistryToken()})
	if err != nil {
		return "", err
	}
	return img.ID, nil
}

// RemoveImage implements CRI. Idempotent.
func (r *Runtime) RemoveImage(_ context.Context, spec *runtimeapi.ImageSpec) error {
	if spec.GetImage() == "" {
		return status.Error(codes.InvalidArgument, "image not specified")
	}
	return r.images.Remove(spec.GetImage())
}

// layersInUse are the layers of all containers, which outlive their image's name.
func (r *Runtime) layersInUse() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []string
	for _, c := range r.containers {
		out = append(out, c.rec.Layers...)
	}
	return out
}

// usageCache keeps what the stores take on disk: walking them costs.
type usageCache struct {
	mu      sync.Mutex
	at      time.Time
	images  *runtimeapi.FilesystemUsage
	writers *runtimeapi.FilesystemUsage
}

// usageAge is how old an answer of ImageFsInfo may be.
const usageAge = 10 * time.Second

// ImageFsInfo implements CRI.
func (r *Runtime) ImageFsInfo(context.Context) (*runtimeapi.ImageFsInfoResponse, error) {
	u := &r.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	now := r.cfg.Clock.Now()
	if u.images == nil || now.Sub(u.at) > usageAge {
		var err error
		if u.images, err = diskUsage(r.path("images"), now); err != nil {
			return nil, err
		}
		if u.writers, err = diskUsage(r.path("containers"), now); err != nil {
			return nil, err
		}
		u.at = now
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{u.images},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{u.writers}}, nil
}

func diskUsage(dir string, now time.Time) (*runtimeapi.FilesystemUsage, error) {
	b, n, err := image.DiskUsage(dir)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.FilesystemUsage{Timestamp: now.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: dir},
		UsedBytes: &runtimeapi.UInt64Value{Value: b}, InodesUsed: &runtimeapi.UInt64Value{Value: n}}, nil
}

// Package static reads pods from manifest files in a folder of the node (static pods) and builds
// their mirrors at the API.
package static

import (
	"context"
	"crypto/md5" // upstream's identity of a static pod, not a secret
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/skiff-project/skiff/api/core/podspec"
	"github.com/skiff-project/skiff/internal/filewatch"
	"github.com/skiff-project/skiff/kubelet/podstate"
)

// Source watches a folder.
type Source struct {
	Path     string // folder, or one file
	NodeName string
	Log      *slog.Logger
	// Update gets the whole set of pods whenever it changed.
	Update func([]*v1.Pod)
}

const maxManifest = 4 << 20

// poll is how often the folder is read though nothing was seen to change.
const poll = 20 * time.Second

// unreadable is the fingerprint of a folder that is there but cannot be read.
const unreadable = "unreadable"

// Run reads and watches until ctx ends.
func (s *Source) Run(ctx context.Context) error {
	last := ""
	for {
		w := filewatch.Folder(s.Path) // before reading: nothing that happens meanwhile is missed
		pods, finger := s.read()
		if finger != last && finger != unreadable { // a folder that fails for a moment ends no pods
			last = finger
			s.Update(pods)
		}
		if !w.Wait(ctx, poll) {
			return nil
		}
	}
}

// read decodes every manifest; the fingerprint changes when a pod does.
func (s *Source) read() ([]*v1.Pod, string) {
	files := []string{s.Path}
	if fi, err := os.Stat(s.Path); err != nil {
		return nil, "absent"
	} else if fi.IsDir() {
		entries, err := os.ReadDir(s.Path)
		if err != nil {
			s.Log.Error("cannot read the static pod folder", "path", s.Path, "err", err)
			return nil, unreadable
		}
		files = files[:0]
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") && !e.IsDir() {
				files = append(files, filepath.Join(s.Path, e.Name()))
			}
		}
	}
	var pods []*v1.Pod
	finger := "pods"
	seen := map[string]bool{}
	for _, f := range files {
		p, err := s.decode(f)
		if err != nil {
			s.Log.Error("static pod ignored", "file", f, "err", err)
			continue
		}
		if k := p.Namespace + "/" + p.Name; seen[k] {
			s.Log.Error("static pod ignored: another file has this name", "file", f, "pod", k)
			continue
		} else {
			seen[k] = true
		}
		pods = append(pods, p)
		finger += " " + string(p.UID)
	}
	return pods, finger
}

func (s *Source) decode(file string) (*v1.Pod, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxManifest || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxManifest)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict(data, pod); err != nil {
		return nil, fmt.Errorf("couldn't parse as pod: %w", err)
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" || pod.Name == "" || len(pod.Spec.Containers) == 0 {
		return nil, fmt.Errorf("not a v1 Pod with a name and containers (kind %q, apiVersion %q)", pod.Kind, pod.APIVersion)
	}
	return complete(pod, s.NodeName), nil
}

// complete gives a pod read from a file its identity: UID by content, name with the node's name,
// namespace, node, annotations, a toleration of everything; and defaults.
func complete(pod *v1.Pod, node string) *v1.Pod {
	if pod.UID == "" {
		b, _ := json.Marshal(pod)
		sum := md5.Sum(append([]byte("host:"+node+"\nfile:"), b...)) // see import
		pod.UID = types.UID(hex.EncodeToString(sum[:]))
	}
	pod.Name += "-" + strings.ToLower(node)
	if pod.Namespace == "" {
		pod.Namespace = metav1.NamespaceDefault
	}
	pod.Spec.NodeName = node
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[podstate.ConfigSource] = "file"
	pod.Annotations[podstate.ConfigHash] = string(pod.UID)
	pod.Annotations[podstate.ConfigSeen] = time.Now().Format(time.RFC3339Nano)
	pod.Spec.Tolerations = append(pod.Spec.Tolerations, v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute})
	podspec.DefaultPod(pod)
	pod.Status.Phase = v1.PodPending
	return pod
}

// Mirror is the API object that shows a static pod.
func Mirror(pod *v1.Pod, node *v1.Node) *v1.Pod {
	m := &v1.Pod{ObjectMeta: *pod.ObjectMeta.DeepCopy(), Spec: *pod.Spec.DeepCopy()}
	m.UID, m.ResourceVersion, m.Status = "", "", v1.PodStatus{}
	m.Annotations[podstate.ConfigMirror] = pod.Annotations[podstate.ConfigHash]
	yes := true
	if node != nil && node.UID != "" {
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: &yes}}
	}
	return m
}

// MirrorOf says whether an API pod is the mirror of this very static pod.
func MirrorOf(api, pod *v1.Pod) bool {
	return podstate.IsMirror(api) && api.Annotations[podstate.ConfigMirror] == pod.Annotations[podstate.ConfigHash]
}

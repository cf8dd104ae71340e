package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// volumeFile is where a volume puts a file, or all of a source.
type volumeFile struct{ path, source string }

func (f volumeFile) String() string {
	if f.source == "" {
		return fmt.Sprintf("%q", f.path)
	}
	return fmt.Sprintf("%q (%s)", f.path, f.source)
}

// overlaps tells whether one of two files takes the other's place or is a folder on the way to it.
func (f volumeFile) overlaps(o volumeFile) bool {
	a, b := f.path+"/", o.path+"/"
	return f.path != "" && o.path != "" && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a))
}

// files warns about files of one volume that are in each other's way.
func (w *warner) files(volumes []corev1.Volume) {
	for i := range volumes {
		v := &volumes[i]
		if m := v.ConfigMap; m != nil {
			w.overlaps(v.Name, fmt.Sprintf("ConfigMap %q", m.Name), nil, keyFiles(m.Items, ""))
		}
		if s := v.Secret; s != nil {
			w.overlaps(v.Name, fmt.Sprintf("Secret %q", s.SecretName), nil, keyFiles(s.Items, ""))
		}
		if d := v.DownwardAPI; d != nil {
			w.overlaps(v.Name, "DownwardAPI", nil, downwardFiles(d.Items, ""))
		}
		if p := v.Projected; p != nil {
			var files []volumeFile
			for j := range p.Sources {
				if p.Sources[j] == (corev1.VolumeProjection{}) {
					w.out = append(w.out, fmt.Sprintf("volume %q (Projected) has no sources provided", v.Name))
				}
				files = w.overlaps(v.Name, "Projected", files, projectedFiles(&p.Sources[j]))
			}
		}
	}
}

// overlaps warns about each of more that is in the way of one before it, and returns them all.
func (w *warner) overlaps(volume, kind string, files, more []volumeFile) []volumeFile {
	for _, f := range more {
		f.path = strings.TrimRight(f.path, "/")
		for _, o := range files {
			if f.overlaps(o) {
				w.out = append(w.out, fmt.Sprintf("volume %q (%s): overlapping paths: %s with %s", volume, kind, f, o))
			}
		}
		files = append(files, f)
	}
	return files
}

func keyFiles(items []corev1.KeyToPath, source string) (files []volumeFile) {
	for _, i := range items {
		files = append(files, volumeFile{i.Path, source})
	}
	return files
}

func downwardFiles(items []corev1.DownwardAPIVolumeFile, source string) (files []volumeFile) {
	for _, i := range items {
		files = append(files, volumeFile{i.Path, source})
	}
	return files
}

func projectedFiles(s *corev1.VolumeProjection) []volumeFile {
	switch {
	case s.ConfigMap != nil && s.ConfigMap.Items != nil:
		return keyFiles(s.ConfigMap.Items, fmt.Sprintf("ConfigMap %q", s.ConfigMap.Name))
	case s.Secret != nil && s.Secret.Items != nil:
		return keyFiles(s.Secret.Items, fmt.Sprintf("Secret %q", s.Secret.Name))
	case s.DownwardAPI != nil && s.DownwardAPI.Items != nil:
		return downwardFiles(s.DownwardAPI.Items, "DownwardAPI")
	case s.ServiceAccountToken != nil:
		return []volumeFile{{s.ServiceAccountToken.Path, "ServiceAccountToken"}}
	case s.ClusterTrustBundle != nil:
		name := s.ClusterTrustBundle.Name
		if name == nil {
			name = s.ClusterTrustBundle.SignerName // validation wants one of them
		}
		return []volumeFile{{s.ClusterTrustBundle.Path, fmt.Sprintf("ClusterTrustBundle %q", *name)}}
	case s.PodCertificate != nil:
		c := s.PodCertificate
		return []volumeFile{{c.CertificateChainPath, "PodCertificate chain"}, {c.KeyPath, "PodCertificate key"},
			{c.CredentialBundlePath, "PodCertificate credential bundle"}}
	}
	return nil
}

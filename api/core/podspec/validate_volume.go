package podspec

import (
	"fmt"
	"path"
	"reflect"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

const fileModeRange = "must be a number between 0 and 0777 (octal), both inclusive"

// checkVolumes checks the volumes of a pod and returns the valid ones by name.
// meta is nil in templates.
func checkVolumes(l *check.List, p *field.Path, volumes []corev1.Volume, meta *metav1.ObjectMeta) map[string]*corev1.VolumeSource {
	valid, made := map[string]*corev1.VolumeSource{}, sets.Set[string]{}
	if meta != nil && meta.Name != "" {
		for _, v := range volumes {
			if v.Ephemeral != nil {
				made.Insert(meta.Name + "-" + v.Name)
			}
		}
	}
	for i := range volumes {
		v, at, own := &volumes[i], p.Index(i), &check.List{}
		checkVolumeSource(own, at, v, meta)
		if v.Name == "" {
			own.Required(at.Child("name"), "")
		} else {
			own.Label(at.Child("name"), v.Name)
		}
		if valid[v.Name] != nil {
			own.Duplicate(at.Child("name"), v.Name)
		}
		if len(own.Errors) == 0 {
			valid[v.Name] = &v.VolumeSource
		}
		l.Add(own.Errors)
		if c := v.PersistentVolumeClaim; c != nil && made.Has(c.ClaimName) {
			l.Invalid(at.Child("persistentVolumeClaim", "claimName"), c.ClaimName, "must not reference a PVC that gets created for an ephemeral volume")
		}
	}
	return valid
}

func checkVolumeSource(l *check.List, p *field.Path, v *corev1.Volume, meta *metav1.ObjectMeta) {
	n := 0
	src := reflect.ValueOf(v.VolumeSource)
	for i := range src.NumField() {
		if i < 2 {
			i = 1 - i // upstream looks at an emptyDir before a hostPath
		}
		if src.Field(i).IsNil() {
			continue
		}
		n++
		name, _, _ := strings.Cut(src.Type().Field(i).Tag.Get("json"), ",")
		if n > 1 {
			l.Forbidden(p.Child(name), "may not specify more than 1 volume type")
			continue
		}
		checkOneSource(l, p.Child(name), &v.VolumeSource)
	}
	if n == 0 {
		l.Required(p, "must specify a volume type")
	}
	if v.ISCSI != nil && v.ISCSI.InitiatorName != nil && len(v.Name+":"+v.ISCSI.TargetPortal) > 64 {
		l.Invalid(p.Child("name"), v.Name, "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.")
	}
	if v.Ephemeral != nil && meta != nil && meta.Name != "" && v.Name != "" {
		claim := meta.Name + "-" + v.Name
		for _, msg := range apivalidation.NameIsDNSSubdomain(claim, false) {
			l.Invalid(p.Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", claim, msg))
		}
	}
}

// checkOneSource checks the first source that is set.
func checkOneSource(l *check.List, p *field.Path, s *corev1.VolumeSource) {
	switch {
	case s.EmptyDir != nil:
		if q := s.EmptyDir.SizeLimit; q != nil && q.Sign() < 0 {
			l.Forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
		}
	case s.HostPath != nil:
		CheckHostPath(l, p, s.HostPath)
	case s.GitRepo != nil:
		l.Text(p.Child("repository"), s.GitRepo.Repository)
		checkDescending(l, p.Child("directory"), s.GitRepo.Directory)
	case s.Secret != nil:
		l.Text(p.Child("secretName"), s.Secret.SecretName)
		checkMode(l, p.Child("defaultMode"), s.Secret.DefaultMode)
		checkItems(l, p.Child("items"), s.Secret.Items)
	case s.NFS != nil:
		CheckNFS(l, p, s.NFS)
	case s.PersistentVolumeClaim != nil:
		l.Text(p.Child("claimName"), s.PersistentVolumeClaim.ClaimName)
	case s.DownwardAPI != nil:
		checkMode(l, p.Child("defaultMode"), s.DownwardAPI.DefaultMode)
		for i := range s.DownwardAPI.Items {
			checkDownwardFile(l, p, &s.DownwardAPI.Items[i])
		}
	case s.ConfigMap != nil:
		l.Text(p.Child("name"), s.ConfigMap.Name)
		checkMode(l, p.Child("defaultMode"), s.ConfigMap.DefaultMode)
		checkItems(l, p.Child("items"), s.ConfigMap.Items)
	case s.Projected != nil:
		checkProjected(l, p, s.Projected)
	case s.CSI != nil:
		CheckCSIDriverName(l, p.Child("driver"), s.CSI.Driver)
		if r := s.CSI.NodePublishSecretRef; r != nil {
			if r.Name == "" {
				l.Required(p.Child("nodePublishSecretRef", "name"), "")
			} else {
				l.Messages(p.Child("name"), r.Name, apivalidation.NameIsDNSSubdomain(r.Name, false))
			}
		}
	case s.Ephemeral != nil:
		checkEphemeralSource(l, p, s.Ephemeral)
	case s.Image != nil:
		l.Text(p.Child("reference"), s.Image.Reference)
		check.Choice(l, p.Child("pullPolicy"), s.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	default:
		checkNetworkSource(l, p, s)
	}
}

// checkNetworkSource checks the sources that old in-tree drivers serve.
func checkNetworkSource(l *check.List, p *field.Path, s *corev1.VolumeSource) {
	switch {
	case s.ISCSI != nil:
		l.Text(p.Child("targetPortal"), s.ISCSI.TargetPortal)
		CheckIQN(l, p.Child("iqn"), s.ISCSI.IQN)
		l.Range(p.Child("lun"), int64(s.ISCSI.Lun), 0, 255)
		if (s.ISCSI.DiscoveryCHAPAuth || s.ISCSI.SessionCHAPAuth) && s.ISCSI.SecretRef == nil {
			l.Required(p.Child("secretRef"), "")
		}
	case s.FC != nil:
		CheckFC(l, p, s.FC)
	case s.RBD != nil:
		if len(s.RBD.CephMonitors) == 0 {
			l.Required(p.Child("monitors"), "")
		}
		l.Text(p.Child("image"), s.RBD.RBDImage)
	case s.CephFS != nil:
		if len(s.CephFS.Monitors) == 0 {
			l.Required(p.Child("monitors"), "")
		}
	case s.Glusterfs != nil:
		l.Text(p.Child("endpoints"), s.Glusterfs.EndpointsName)
		l.Text(p.Child("path"), s.Glusterfs.Path)
	case s.GCEPersistentDisk != nil:
		l.Text(p.Child("pdName"), s.GCEPersistentDisk.PDName)
	case s.AWSElasticBlockStore != nil:
		l.Text(p.Child("volumeID"), s.AWSElasticBlockStore.VolumeID)
	case s.Cinder != nil:
		l.Text(p.Child("volumeID"), s.Cinder.VolumeID)
	case s.AzureFile != nil:
		l.Text(p.Child("secretName"), s.AzureFile.SecretName)
		l.Text(p.Child("shareName"), s.AzureFile.ShareName)
	case s.VsphereVolume != nil:
		l.Text(p.Child("volumePath"), s.VsphereVolume.VolumePath)
	case s.FlexVolume != nil:
		l.Text(p.Child("driver"), s.FlexVolume.Driver)
	}
}

// iqnForms are the three ways to name an iSCSI target, by their prefix.
var iqnForms = map[string]*regexp.Regexp{
	"iqn": regexp.MustCompile(`iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`),
	"eui": regexp.MustCompile(`^eui.[[:alnum:]]{16}$`),
	"naa": regexp.MustCompile(`^naa.[[:alnum:]]{32}$`),
}

// CheckIQN checks an iSCSI qualified name.
func CheckIQN(l *check.List, p *field.Path, name string) {
	if name == "" {
		l.Required(p, "")
		return
	}
	form := iqnForms[name[:min(3, len(name))]]
	if form == nil {
		l.Invalid(p, name, "must be valid format starting with iqn, eui, or naa")
	} else if !form.MatchString(name) {
		l.Invalid(p, name, "must be valid format")
	}
}

// CheckFC checks a fibre channel volume.
func CheckFC(l *check.List, p *field.Path, fc *corev1.FCVolumeSource) {
	switch {
	case len(fc.TargetWWNs) == 0 && len(fc.WWIDs) == 0:
		l.Required(p.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
	case len(fc.TargetWWNs) != 0 && len(fc.WWIDs) != 0:
		l.Invalid(p.Child("targetWWNs"), fc.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
	}
	if len(fc.TargetWWNs) != 0 {
		if fc.Lun == nil {
			l.Required(p.Child("lun"), "lun is required if targetWWNs is specified")
		} else {
			l.Range(p.Child("lun"), int64(*fc.Lun), 0, 255)
		}
	}
}

func checkMode(l *check.List, p *field.Path, mode *int32) {
	if mode != nil && (*mode > 0o777 || *mode < 0) {
		l.Invalid(p, *mode, fileModeRange)
	}
}

// CheckHostPath checks a volume that is a path of the node.
func CheckHostPath(l *check.List, p *field.Path, h *corev1.HostPathVolumeSource) {
	if h.Path == "" {
		l.Required(p.Child("path"), "")
		return
	}
	l.NoBacksteps(p.Child("path"), h.Path)
	if h.Type != nil {
		check.OneOf(l, p.Child("type"), *h.Type, corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev,
			corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)
	}
}

// CheckNFS checks a volume served by NFS.
func CheckNFS(l *check.List, p *field.Path, n *corev1.NFSVolumeSource) {
	l.Text(p.Child("server"), n.Server)
	l.Text(p.Child("path"), n.Path)
	if !path.IsAbs(n.Path) {
		l.Invalid(p.Child("path"), n.Path, "must be an absolute path")
	}
}

func checkItems(l *check.List, p *field.Path, items []corev1.KeyToPath) {
	for i, it := range items {
		at := p.Index(i)
		l.Text(at.Child("key"), it.Key)
		l.Text(at.Child("path"), it.Path)
		checkLocalPath(l, at.Child("path"), it.Path)
		checkMode(l, at.Child("mode"), it.Mode)
	}
}

func checkDownwardFile(l *check.List, p *field.Path, f *corev1.DownwardAPIVolumeFile) {
	l.Text(p.Child("path"), f.Path)
	checkLocalPath(l, p.Child("path"), f.Path)
	switch {
	case f.FieldRef != nil:
		checkFieldRef(l, p.Child("fieldRef"), f.FieldRef, fileFieldPaths)
		if f.ResourceFieldRef != nil {
			l.Invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
		}
	case f.ResourceFieldRef != nil:
		checkResourceRef(l, p.Child("resourceFieldRef"), f.ResourceFieldRef, true)
	default:
		l.Required(p, "one of fieldRef and resourceFieldRef is required")
	}
	checkMode(l, p.Child("mode"), f.Mode)
}

// CheckCSIDriverName checks the name of a CSI driver wherever one is named.
func CheckCSIDriverName(l *check.List, p *field.Path, name string) {
	if name == "" {
		l.Required(p, "")
		return
	}
	if len(name) > 63 {
		l.TooLong(p, 63)
	}
	l.Messages(p, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))
}

func checkEphemeralSource(l *check.List, p *field.Path, e *corev1.EphemeralVolumeSource) {
	t, at := e.VolumeClaimTemplate, p.Child("volumeClaimTemplate")
	if t == nil {
		l.Required(at, "")
		return
	}
	CheckTemplateMeta(l, at.Child("metadata"), &t.ObjectMeta)
	CheckClaimSpec(l, at.Child("spec"), &t.Spec)
}

// CheckTemplateMeta checks the metadata of a template, which may be only annotations and labels.
func CheckTemplateMeta(l *check.List, p *field.Path, m *metav1.ObjectMeta) {
	l.Annotations(p.Child("annotations"), m.Annotations)
	l.Labels(p.Child("labels"), m.Labels)
	checkAllowed(l, p, *m, sets.New("Annotations", "Labels"), "cannot be set")
}

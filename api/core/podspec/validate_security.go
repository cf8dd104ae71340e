package podspec

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

const maxSysctlName = 253

var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

func checkSecurityContext(l *check.List, p *field.Path, sc *corev1.SecurityContext, hostUsers bool) {
	if sc == nil {
		return
	}
	checkUser(l, p, sc.RunAsUser, sc.RunAsGroup)
	if sc.ProcMount != nil {
		check.OneOf(l, p.Child("procMount"), *sc.ProcMount, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		if hostUsers && *sc.ProcMount == corev1.UnmaskedProcMount {
			l.Invalid(p.Child("procMount"), sc.ProcMount, "`hostUsers` must be false to use `Unmasked`")
		}
	}
	checkSeccomp(l, p.Child("seccompProfile"), sc.SeccompProfile)
	if e := sc.AllowPrivilegeEscalation; e != nil && !*e {
		if sc.Privileged != nil && *sc.Privileged {
			l.Invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
		}
		if sc.Capabilities != nil {
			for _, c := range sc.Capabilities.Add {
				if c == "CAP_SYS_ADMIN" {
					l.Invalid(p, sc, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
				}
			}
		}
	}
	checkAppArmor(l, p.Child("appArmorProfile"), sc.AppArmorProfile)
}

func checkUser(l *check.List, p *field.Path, user, group *int64) {
	if user != nil {
		l.Messages(p.Child("runAsUser"), *user, validation.IsValidUserID(*user))
	}
	if group != nil {
		l.Messages(p.Child("runAsGroup"), *group, validation.IsValidGroupID(*group))
	}
}

func checkSeccomp(l *check.List, p *field.Path, s *corev1.SeccompProfile) {
	if s == nil {
		return
	}
	if s.Type == "" {
		l.Required(p.Child("type"), "type is required when seccompProfile is set")
	} else {
		check.OneOf(l, p.Child("type"), s.Type, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	}
	at := p.Child("localhostProfile")
	switch {
	case s.Type != corev1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile != nil {
			l.Invalid(at, s, "can only be set when seccomp type is Localhost")
		}
	case s.LocalhostProfile == nil:
		l.Required(at, "must be set when seccomp type is Localhost")
	default:
		checkDescending(l, at, *s.LocalhostProfile)
	}
}

func checkAppArmor(l *check.List, p *field.Path, a *corev1.AppArmorProfile) {
	if a == nil {
		return
	}
	at := p.Child("localhostProfile")
	switch a.Type {
	case corev1.AppArmorProfileTypeLocalhost:
		const must = "must be set when AppArmor type is Localhost"
		if a.LocalhostProfile == nil {
			l.Required(at, must)
			return
		}
		name := *a.LocalhostProfile
		switch trimmed := strings.TrimSpace(name); {
		case trimmed != name:
			l.Invalid(at, name, "must not be padded with whitespace")
		case trimmed == "":
			l.Required(at, must)
		}
		if len(name) > 4095 {
			l.TooLong(at, 4095)
		}
	case corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined:
		if a.LocalhostProfile != nil {
			l.Invalid(at, a.LocalhostProfile, "can only be set when AppArmor type is Localhost")
		}
	case "":
		l.Required(p.Child("type"), "type is required when appArmorProfile is set")
	default:
		check.OneOf(l, p.Child("type"), a.Type, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined)
	}
}

func checkPodSecurityContext(l *check.List, p *field.Path, s *corev1.PodSpec) {
	sc := s.SecurityContext
	if sc == nil {
		return
	}
	if sc.FSGroup != nil {
		l.Messages(p.Child("fsGroup"), *sc.FSGroup, validation.IsValidGroupID(*sc.FSGroup))
	}
	checkUser(l, p, sc.RunAsUser, sc.RunAsGroup)
	for i, g := range sc.SupplementalGroups {
		l.Messages(p.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))
	}
	checkSysctls(l, p.Child("sysctls"), s)
	if sc.FSGroupChangePolicy != nil {
		check.OneOf(l, p.Child("fsGroupChangePolicy"), *sc.FSGroupChangePolicy, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
	}
	checkSeccomp(l, p.Child("seccompProfile"), sc.SeccompProfile)
	checkAppArmor(l, p.Child("appArmorProfile"), sc.AppArmorProfile)
	if sc.SupplementalGroupsPolicy != nil {
		check.OneOf(l, p.Child("supplementalGroupsPolicy"), *sc.SupplementalGroupsPolicy, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
	}
	if sc.SELinuxChangePolicy != nil {
		check.OneOf(l, p.Child("seLinuxChangePolicy"), *sc.SELinuxChangePolicy, corev1.SELinuxChangePolicyMountOption, corev1.SELinuxChangePolicyRecursive)
	}
}

func checkSysctls(l *check.List, p *field.Path, s *corev1.PodSpec) {
	seen := map[string]bool{}
	for i, c := range s.SecurityContext.Sysctls {
		at := p.Index(i).Child("name")
		switch {
		case c.Name == "":
			l.Required(at, "")
		case len(c.Name) > maxSysctlName || !sysctlName.MatchString(c.Name):
			l.Invalid(at, c.Name, fmt.Sprintf("must have at most %d characters and match regex %s", maxSysctlName, sysctlName))
		case seen[c.Name]:
			l.Duplicate(at, c.Name)
		}
		dotted := strings.ReplaceAll(c.Name, "/", ".")
		ipc := strings.HasPrefix(dotted, "kernel.shm") || strings.HasPrefix(dotted, "kernel.msg") || dotted == "kernel.sem" || strings.HasPrefix(dotted, "fs.mqueue.")
		switch {
		case s.HostNetwork && strings.HasPrefix(dotted, "net."):
			l.Invalid(at, c.Name, "may not be specified when 'hostNetwork' is true")
		case s.HostIPC && ipc:
			l.Invalid(at, c.Name, "may not be specified when 'hostIPC' is true")
		}
		seen[c.Name] = true
	}
}

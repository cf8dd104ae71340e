package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api/check"
)

// projection checks the sources of one projected volume; paths are the files
// its sources have claimed so far.
type projection struct {
	*check.List
	at    *field.Path
	paths sets.Set[string]
}

func checkProjected(l *check.List, p *field.Path, v *corev1.ProjectedVolumeSource) {
	checkMode(l, p.Child("defaultMode"), v.DefaultMode)
	c := &projection{l, p, sets.Set[string]{}}
	for i := range v.Sources {
		s, at := &v.Sources[i], p.Child("sources").Index(i)
		n := 0
		if s.Secret != nil {
			n++
			c.object(at.Child("secret"), s.Secret.Name, s.Secret.Items)
		}
		if s.ConfigMap != nil {
			n++
			c.object(at.Child("configMap"), s.ConfigMap.Name, s.ConfigMap.Items)
		}
		if s.DownwardAPI != nil {
			n++
			for j := range s.DownwardAPI.Items {
				f := &s.DownwardAPI.Items[j]
				checkDownwardFile(l, at.Child("downwardAPI"), f)
				c.claim(f.Path, f.Path)
			}
		}
		if s.ServiceAccountToken != nil {
			n++
			c.token(at.Child("serviceAccountToken"), s.ServiceAccountToken)
		}
		if s.ClusterTrustBundle != nil {
			n++
			c.trustBundle(at.Child("clusterTrustBundle"), s.ClusterTrustBundle)
		}
		if s.PodCertificate != nil {
			n++
			c.certificate(at.Child("podCertificate"), s.PodCertificate)
		}
		if n > 1 {
			l.Forbidden(at, "may not specify more than 1 volume type per source")
		}
	}
}

// claim notes a file; it may be claimed once. shown is what the error quotes.
func (c *projection) claim(path, shown string) {
	if path == "" {
		return
	}
	if c.paths.Has(path) {
		c.Invalid(c.at, shown, "conflicting duplicate paths")
	}
	c.paths.Insert(path)
}

func (c *projection) object(p *field.Path, name string, items []corev1.KeyToPath) {
	c.Text(p.Child("name"), name)
	checkItems(c.List, p.Child("items"), items)
	for _, it := range items {
		c.claim(it.Path, name)
	}
}

func (c *projection) token(p *field.Path, t *corev1.ServiceAccountTokenProjection) {
	switch s := t.ExpirationSeconds; {
	case s == nil:
		c.Required(p.Child("expirationSeconds"), "")
	case *s < 10*60:
		c.Invalid(p.Child("expirationSeconds"), *s, "may not specify a duration less than 10 minutes")
	case *s > 1<<32:
		c.Invalid(p.Child("expirationSeconds"), *s, "may not specify a duration larger than 2^32 seconds")
	}
	if t.Path == "" {
		c.Required(c.at.Child("path"), "")
		return
	}
	checkLocalPath(c.List, c.at.Child("path"), t.Path)
}

func (c *projection) trustBundle(p *field.Path, b *corev1.ClusterTrustBundleProjection) {
	switch {
	case b.Name != nil && b.SignerName != nil:
		c.Invalid(p, b, "only one of name and signerName may be used")
	case b.Name != nil:
		if *b.Name == "" {
			c.Required(p.Child("name"), "must be a valid object name")
		}
		signer := ""
		if i := strings.LastIndex(*b.Name, ":"); i >= 0 {
			signer = strings.Replace((*b.Name)[:i], ":", "/", 1)
		}
		for _, msg := range TrustBundleNameProblems(*b.Name, signer) {
			c.Invalid(p.Child("name"), *b.Name, "not a valid clustertrustbundlename: "+msg)
		}
		if b.LabelSelector != nil {
			c.Invalid(p.Child("labelSelector"), b.LabelSelector, "labelSelector must be unset if name is specified")
		}
	case b.SignerName != nil:
		if *b.SignerName == "" {
			c.Required(p.Child("signerName"), "must be a valid signer name")
		}
		CheckSignerName(c.List, p.Child("signerName"), *b.SignerName)
		c.Selector(p.Child("labelSelector"), b.LabelSelector)
	default:
		c.Required(p, "either name or signerName must be specified")
	}
	c.Text(p.Child("path"), b.Path)
	checkLocalPath(c.List, p.Child("path"), b.Path)
	c.claim(b.Path, b.Path)
}

func (c *projection) certificate(p *field.Path, s *corev1.PodCertificateProjection) {
	CheckSignerName(c.List, p.Child("signerName"), s.SignerName)
	for key := range check.Sorted(s.UserAnnotations) {
		c.Add(validation.IsDomainPrefixedKey(p.Child("userAnnotations"), strings.ToLower(key)))
	}
	if apivalidation.ValidateAnnotationsSize(s.UserAnnotations) != nil {
		c.TooLong(p.Child("userAnnotations"), apivalidation.TotalAnnotationSizeLimitB)
	}
	check.OneOf(c.List, p.Child("keyType"), s.KeyType, "RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")
	CheckMaxExpiration(c.List, p.Child("maxExpirationSeconds"), s.MaxExpirationSeconds, s.SignerName)
	n := 0
	for name, path := range check.Sorted(map[string]string{
		"certificateChainPath": s.CertificateChainPath, "credentialBundlePath": s.CredentialBundlePath, "keyPath": s.KeyPath,
	}) {
		if path == "" {
			continue
		}
		n++
		checkLocalPath(c.List, p.Child(name), path)
		c.claim(path, path)
	}
	if n == 0 {
		c.Required(p, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
	}
}

// CheckMaxExpiration checks the longest lifetime asked of a pod certificate:
// an hour to 91 days, or a day for Kubernetes' own signers.
func CheckMaxExpiration(l *check.List, p *field.Path, seconds *int32, signer string) {
	if seconds == nil {
		return
	}
	if *seconds < 3600 {
		l.Invalid(p, *seconds, "if provided, maxExpirationSeconds must be >= 3600")
	}
	limit := int32(7862400)
	if host, _, _ := strings.Cut(signer, "/"); host == "kubernetes.io" || strings.HasSuffix(host, ".kubernetes.io") {
		limit = 86400
	}
	if *seconds > limit {
		l.Invalid(p, *seconds, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", limit))
	}
}

// CheckSignerName checks the name of a certificate signer: domain/path.
func CheckSignerName(l *check.List, p *field.Path, name string) {
	if name == "" {
		l.Required(p, "")
		return
	}
	domain, path, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(path, "/") {
		l.Invalid(p, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	const most = validation.DNS1123SubdomainMaxLength
	if len(domain) > most {
		l.TooLong(p, most)
	}
	labels := strings.Split(domain, ".")
	for _, s := range labels {
		for _, msg := range validation.IsDNS1123Label(s) {
			l.Invalid(p, domain, fmt.Sprintf("validating label %q: %s", s, msg))
		}
	}
	if len(labels) < 2 {
		l.Invalid(p, domain, "should be a domain with at least two segments separated by dots")
	}
	for _, s := range strings.Split(path, ".") {
		for _, msg := range validation.IsDNS1123Subdomain(s) {
			l.Invalid(p, path, fmt.Sprintf("validating label %q: %s", s, msg))
		}
	}
	if limit := most + (most + validation.DNS1123LabelMaxLength + 1) + 1; len(name) > limit {
		l.TooLong(p, limit)
	}
}

// TrustBundleNameProblems tells what is wrong with the name of a cluster trust
// bundle for a signer ("" for none).
func TrustBundleNameProblems(name, signer string) []string {
	if signer == "" {
		if strings.Contains(name, ":") {
			return []string{"ClusterTrustBundle without signer name must not have \":\" in its name"}
		}
		return apivalidation.NameIsDNSSubdomain(name, false)
	}
	prefix := strings.ReplaceAll(signer, "/", ":") + ":"
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return []string{fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, prefix)}
	}
	return apivalidation.NameIsDNSSubdomain(rest, false)
}

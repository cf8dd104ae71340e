package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/check"
	"github.com/skiff-project/skiff/api/core/podspec"
)

const maxBundleSize = 1 << 20

func clusterTrustBundleResource() *api.Resource {
	return &api.Resource{
		Group: Group, Name: "clustertrustbundles", Singular: "clustertrustbundle", Kind: "ClusterTrustBundle",
		Versions: []api.Version{api.Versioned[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList]("v1", nil)},
		Strategy: api.Strategy{
			Validate: api.Check(func(b *certificatesv1.ClusterTrustBundle) field.ErrorList { return validateBundle(b, true) }),
			ValidateUpdate: api.CheckUpdate(func(b, old *certificatesv1.ClusterTrustBundle) field.ErrorList {
				l := &check.List{Errors: validateBundle(b, b.Spec.TrustBundle != old.Spec.TrustBundle)}
				l.Immutable(specPath.Child("signerName"), b.Spec.SignerName, old.Spec.SignerName)
				return l.Errors
			}),
			// The name depends on the signer: validateBundle checks it.
			NameValid: func(string, bool) []string { return nil },
			Selectable: api.Select(func(b *certificatesv1.ClusterTrustBundle) fields.Set {
				return fields.Set{"spec.signerName": b.Spec.SignerName}
			}),
			DenyUnconditionalUpdate: true,
		},
		Columns: []metav1.TableColumnDefinition{
			api.Column("SignerName", "string", certificatesv1.ClusterTrustBundleSpec{}.SwaggerDoc()["signerName"]),
		},
		Cells: api.Row(func(b *certificatesv1.ClusterTrustBundle, _ metav1.Time) []any {
			if b.Spec.SignerName == "" {
				return []any{b.Name, "<none>"}
			}
			return []any{b.Name, b.Spec.SignerName}
		}),
	}
}

func validateBundle(b *certificatesv1.ClusterTrustBundle, parse bool) field.ErrorList {
	l := &check.List{}
	l.Names(b, func(name string) []string { return podspec.TrustBundleNameProblems(name, b.Spec.SignerName) })
	if b.Spec.SignerName != "" {
		podspec.CheckSignerName(l, specPath.Child("signerName"), b.Spec.SignerName)
	}
	if parse {
		checkAnchors(l, specPath.Child("trustBundle"), b.Spec.TrustBundle)
	}
	return l.Errors
}

func checkAnchors(l *check.List, p *field.Path, text string) {
	if len(text) > maxBundleSize {
		l.TooLong(p, maxBundleSize)
		return
	}
	bad := func(format string, args ...any) { l.Invalid(p, "<value omitted>", fmt.Sprintf(format, args...)) }
	seen, order := map[string][]int{}, []string{}
	before := len(l.Errors)
	i := 0
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		switch {
		case block.Type != "CERTIFICATE":
			bad("entry %d has bad block type: %v", i, block.Type)
		case len(block.Headers) != 0:
			bad("entry %d has PEM block headers", i)
		case err != nil:
			bad("entry %d does not parse as X.509", i)
		case !cert.IsCA:
			bad("entry %d does not have the CA bit set", i)
		case !cert.BasicConstraintsValid:
			bad("entry %d has invalid basic constraints", i)
		default:
			key := string(block.Bytes)
			if seen[key] == nil {
				order = append(order, key)
			}
			seen[key] = append(seen[key], i)
		}
		i++
	}
	if len(l.Errors) > before {
		return
	}
	if len(order) == 0 {
		bad("at least one trust anchor must be provided")
	}
	for _, key := range order {
		if len(seen[key]) > 1 {
			bad("duplicate trust anchor (indices %v)", seen[key])
		}
	}
}

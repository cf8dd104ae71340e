package check

import (
	"fmt"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// WebhookURL checks the address of a webhook: https, a host, perhaps a path.
func (l *List) WebhookURL(p *field.Path, text string) {
	const form = "; desired format: https://host[/path]"
	u, err := url.Parse(text)
	if err != nil {
		l.Required(p, "url must be a valid URL: "+err.Error()+form)
		return
	}
	if u.Scheme != "https" {
		l.Invalid(p, u.Scheme, "'https' is the only allowed URL scheme"+form)
	}
	if u.Host == "" {
		l.Invalid(p, u.Host, "host must be specified"+form)
	}
	if u.User != nil {
		l.Invalid(p, u.User.String(), "user information is not permitted in the URL")
	}
	if u.Fragment != "" {
		l.Invalid(p, u.Fragment, "fragments are not permitted in the URL")
	}
	if u.RawQuery != "" {
		l.Invalid(p, u.RawQuery, "query parameters are not permitted in the URL")
	}
}

// WebhookPort checks the port of a webhook's Service.
func (l *List) WebhookPort(p *field.Path, port int32) {
	if msgs := validation.IsValidPortNum(int(port)); msgs != nil {
		l.Invalid(p, port, "port is not valid: "+strings.Join(msgs, ", "))
	}
}

// WebhookPath checks the path of a webhook behind a Service; nil: none.
func (l *List) WebhookPath(p *field.Path, path *string) {
	if path == nil || *path == "" || *path == "/" {
		return
	}
	if *path == "//" {
		l.Invalid(p, *path, "segment[0] may not be empty")
		return
	}
	rest, rooted := strings.CutPrefix(*path, "/")
	if !rooted {
		l.Invalid(p, *path, "must start with a '/'")
		rest = (*path)[1:] // as upstream counts segments
	}
	for i, step := range strings.Split(strings.TrimSuffix(rest, "/"), "/") {
		if step == "" {
			l.Invalid(p, *path, fmt.Sprintf("segment[%d] may not be empty", i))
			continue
		}
		for _, msg := range validation.IsDNS1123Subdomain(step) {
			l.Invalid(p, *path, fmt.Sprintf("segment[%d]: %v", i, msg))
		}
	}
}

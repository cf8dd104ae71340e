// Package admissionregistration describes the resources of the admissionregistration.k8s.io group.
package admissionregistration

import (
	"context"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-project/skiff/api"
	"github.com/skiff-project/skiff/api/admissionregistration/expression"
)

// Group is the name of the API group.
const Group = "admissionregistration.k8s.io"

// Resources lists the resources of this group.
func Resources() []*api.Resource {
	envs := &expression.Environments{}
	list := []*api.Resource{
		mutatingAdmissionPolicyResource(envs),
		mutatingAdmissionPolicyBindingResource(),
		mutatingWebhookConfigurationResource(envs),
		validatingAdmissionPolicyResource(envs),
		validatingAdmissionPolicyBindingResource(),
		validatingWebhookConfigurationResource(envs),
	}
	for _, r := range list {
		check := r.Strategy.Validate
		r.Strategy.Validate = func(ctx context.Context, obj api.Object) field.ErrorList {
			return append(check(ctx, obj), checkName(obj.GetName())...)
		}
	}
	return list
}

// reservedName ends the names of configurations that upstream reads from files.
const reservedName = ".static.k8s.io"

func checkName(name string) field.ErrorList {
	if !strings.HasSuffix(name, reservedName) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata", "name"), name,
		fmt.Sprintf("names ending with %q are reserved for static manifest-based configurations and cannot be managed via the API", reservedName))}
}

package claimstatus_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"

	"github.com/skiff-project/skiff/apiserver/claimstatus"
	"github.com/skiff-project/skiff/apiserver/request"
	"github.com/skiff-project/skiff/auth"
)

// answer is what an authorizer says to everything; asked is what it was asked.
type answer struct {
	d      auth.Decision
	reason string
	err    error
	asked  []string
}

func (z *answer) Authorize(_ context.Context, a auth.Attributes) (auth.Decision, string, error) {
	z.asked = append(z.asked, strings.Join([]string{a.User.Name, a.Verb, a.Namespace, a.APIGroup, a.APIVersion, a.Resource, a.Subresource, a.Name}, " "))
	return z.d, z.reason, z.err
}

func claim(fields ...corev1.NodeSelectorRequirement) *resourcev1.ResourceClaim {
	c := &resourcev1.ResourceClaim{}
	c.Status.Allocation = &resourcev1.AllocationResult{NodeSelector: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: fields}},
	}}
	return c
}

func in(names ...string) corev1.NodeSelectorRequirement {
	return corev1.NodeSelectorRequirement{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: names}
}

// told is c with devices, written driver/share.
func told(c *resourcev1.ResourceClaim, devices ...string) *resourcev1.ResourceClaim {
	c = c.DeepCopy()
	for _, d := range devices {
		driver, share, shared := strings.Cut(d, "/")
		s := resourcev1.AllocatedDeviceStatus{Driver: driver, Pool: "p", Device: "d"}
		if shared {
			s.ShareID = &share
		}
		c.Status.Devices = append(c.Status.Devices, s)
	}
	return c
}

func by(user string, node ...string) context.Context {
	u := auth.User{Name: user, Extra: map[string][]string{"authentication.kubernetes.io/node-name": node}}
	return request.WithInfo(context.Background(), &request.Info{
		IsResource: true, Verb: "update", Group: "resource.k8s.io", Version: "v1", Resource: "resourceclaims", Subresource: "status", Namespace: "ns", Name: "c",
	}, u)
}

func TestAsked(t *testing.T) {
	const plugin = "system:serviceaccount:kube-system:plugin"
	driver := func(user, place, name string) string {
		return user + " " + place + "-node:update ns resource.k8s.io v1 resourceclaims driver " + name
	}
	here := claim(in("n"))
	several := claim(in("n"))
	several.Status.Allocation.NodeSelector.NodeSelectorTerms = append(several.Status.Allocation.NodeSelector.NodeSelectorTerms, corev1.NodeSelectorTerm{})
	other := in("n")
	other.Operator = corev1.NodeSelectorOpNotIn
	for _, c := range []struct {
		name     string
		ctx      context.Context
		obj, old *resourcev1.ResourceClaim
		want     []string
	}{
		{"nothing changes", context.Background(), told(here, "a/1"), told(here, "a/1"), nil},
		{"allocation", by("u"), here, &resourcev1.ResourceClaim{}, []string{"u update  resource.k8s.io v1 resourceclaims binding "}},
		{"deallocation", by("u"), &resourcev1.ResourceClaim{}, told(here, "a"), []string{"u update  resource.k8s.io v1 resourceclaims binding "}},
		{"every driver once", by("u"), told(here, "c", "b", "b/1", "a"), told(here, "a", "d"), []string{driver("u", "arbitrary", "b"), driver("u", "arbitrary", "c"), driver("u", "arbitrary", "d")}},
		{"another share", by("u"), told(here, "a/1"), told(here, "a/2"), []string{driver("u", "arbitrary", "a")}},
		{"told twice", by("u"), told(here, "a", "a"), told(here, "a"), []string{driver("u", "arbitrary", "a")}},
		{"on the node", by(plugin, "n"), told(here, "a"), here, []string{driver(plugin, "associated", "a"), driver(plugin, "arbitrary", "a")}},
		{"on another", by(plugin, "m"), told(here, "a"), here, []string{driver(plugin, "arbitrary", "a")}},
		{"on two", by(plugin, "n", "m"), told(here, "a"), here, []string{driver(plugin, "arbitrary", "a")}},
		{"several nodes", by(plugin, "n"), told(claim(in("n", "m")), "a"), claim(in("n", "m")), []string{driver(plugin, "arbitrary", "a")}},
		{"several terms", by(plugin, "n"), told(several, "a"), several, []string{driver(plugin, "arbitrary", "a")}},
		{"another operator", by(plugin, "n"), told(claim(other), "a"), claim(other), []string{driver(plugin, "arbitrary", "a")}},
		{"no name of a node", by(plugin, "N_"), told(claim(in("N_")), "a"), claim(in("N_")), []string{driver(plugin, "arbitrary", "a")}},
		{"no name of an account", by(plugin+":x", "n"), told(here, "a"), here, []string{driver(plugin+":x", "arbitrary", "a")}},
		{"no namespace", by("system:serviceaccount:a.b:x", "n"), told(here, "a"), here, []string{driver("system:serviceaccount:a.b:x", "arbitrary", "a")}},
	} {
		z := &answer{}
		errs := claimstatus.Check(c.ctx, z, c.obj, c.old)
		if !slices.Equal(z.asked, c.want) || (len(errs) == 0) != (c.want == nil) {
			t.Errorf("%s: asked %q, want %q; %v", c.name, z.asked, c.want, errs)
		}
	}
}

func TestAnswers(t *testing.T) {
	const head = `status.allocation: Forbidden: changing status.allocation or status.reservedFor requires resource="resourceclaims/binding", verb="update" permission: ` +
		`resourceclaims.resource.k8s.io is forbidden: User "<u>" cannot update resource "resourceclaims/binding" in API group "resource.k8s.io" at the cluster scope`
	shown := strings.NewReplacer("<u>", "&lt;u&gt;").Replace(head)
	broken := errors.New("role broken not found")
	for _, c := range []struct {
		z    answer
		want string
	}{
		{answer{d: auth.Allow, err: broken}, ""},
		{answer{d: auth.Deny}, shown},
		{answer{reason: "not today"}, shown + ": not today"},
		{answer{err: broken}, shown + ": role broken not found"},
		{answer{d: auth.Deny, reason: "not today", err: broken}, shown + ": role broken not found: not today"},
	} {
		got := ""
		if errs := claimstatus.Check(by("<u>"), &c.z, claim(in("n")), &resourcev1.ResourceClaim{}); len(errs) > 0 {
			got = errs.ToAggregate().Error()
		}
		if got != c.want {
			t.Errorf("%+v\ngot:  %s\nwant: %s", c.z, got, c.want)
		}
	}
	errs := claimstatus.Check(context.Background(), &answer{d: auth.Allow}, claim(in("n")), &resourcev1.ResourceClaim{})
	if len(errs) != 1 || errs[0].Type != "InternalError" {
		t.Errorf("nobody's request: %v", errs)
	}
}

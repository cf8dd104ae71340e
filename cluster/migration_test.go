package cluster_test

import (
	"fmt"
	"slices"
	"testing"

	svmv1 "k8s.io/api/storagemigration/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-project/skiff/cluster"
)

// TestStorageVersionMigration: objects stored in an older version are stored
// in the new one, once, and the definition forgets the older one.
func TestStorageVersionMigration(t *testing.T) {
	c := clientsOf(t, cluster.Start(t, cluster.TestOptions{}))
	c.define(t, "widget")
	ctx := t.Context()
	ns := c.dynamic.Resource(resourceOf("widget")).Namespace("default")
	for i := range 3 {
		if _, err := ns.Create(ctx, object(fmt.Sprint("w", i), "Kindwidget"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	crds := c.crds.ApiextensionsV1().CustomResourceDefinitions()
	crd, err := crds.Get(ctx, "widgets.example.com", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	next := *crd.Spec.Versions[0].DeepCopy()
	next.Name, crd.Spec.Versions[0].Storage = "v2", false
	crd.Spec.Versions = append(crd.Spec.Versions, next)
	if crd, err = crds.Update(ctx, crd, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := crd.Status.StoredVersions; !slices.Equal(got, []string{"v1", "v2"}) {
		t.Fatalf("stored versions %v", got)
	}
	versions := func() (out []string) {
		l, err := ns.List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range l.Items {
			out = append(out, o.GetResourceVersion())
		}
		return out
	}
	migrate := func(name, group, resource string) *svmv1.StorageVersionMigration {
		t.Helper()
		api := c.kube.StoragemigrationV1().StorageVersionMigrations()
		s := &svmv1.StorageVersionMigration{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: svmv1.StorageVersionMigrationSpec{Resource: metav1.GroupResource{Group: group, Resource: resource}}}
		if _, err := api.Create(ctx, s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+" ends", func() bool {
			s, err = api.Get(ctx, name, metav1.GetOptions{})
			return err == nil && meta.IsStatusConditionFalse(s.Status.Conditions, string(svmv1.MigrationRunning))
		})
		return s
	}
	before := versions()
	s := migrate("first", "example.com", "widgets")
	if !meta.IsStatusConditionTrue(s.Status.Conditions, string(svmv1.MigrationSucceeded)) || s.Status.ResourceVersion == "" {
		t.Errorf("status %+v", s.Status)
	}
	after := versions()
	for i := range before {
		if before[i] == after[i] {
			t.Errorf("object %d was not stored again", i)
		}
	}
	if crd, err = crds.Get(ctx, crd.Name, metav1.GetOptions{}); err != nil || !slices.Equal(crd.Status.StoredVersions, []string{"v2"}) {
		t.Errorf("stored versions %v %v", crd.Status.StoredVersions, err)
	}
	told := ""
	for _, cond := range crd.Status.Conditions {
		if cond.Type == apiextensionsv1.StorageMigrating {
			told = fmt.Sprintf("%s %s: %s", cond.Status, cond.Reason, cond.Message)
		}
	}
	if told != "False MigrationSucceeded: The migration has succeeded and the stored versions have been updated" {
		t.Errorf("the definition says %q", told)
	}
	migrate("again", "example.com", "widgets")
	if got := versions(); !slices.Equal(got, after) {
		t.Errorf("what is up to date was stored again: %v, was %v", got, after)
	}
	migrate("builtin", "apps", "deployments")

	s = migrate("reviews", "authentication.k8s.io", "tokenreviews")
	failed := meta.FindStatusCondition(s.Status.Conditions, string(svmv1.MigrationFailed))
	if failed == nil || failed.Message != `resource "authentication.k8s.io/v1, Resource=tokenreviews" does not support discovery operations: [update patch list]` {
		t.Errorf("reviews: %+v", s.Status)
	}
}

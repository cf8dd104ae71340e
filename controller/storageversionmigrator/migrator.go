// Package storageversionmigrator has every object of a resource written anew,
// in the version the API server stores the resource in now, as a
// StorageVersionMigration asks for. Of one resource one migration runs at a time.
package storageversionmigrator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	svmv1 "k8s.io/api/storagemigration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/metadata"

	"github.com/skiff-project/skiff/controller/engine"
)

const (
	name = "storage-version-migrator-controller"
	// settling is how long a resource may be missing from discovery after the migration was asked for.
	settling = time.Minute
	again    = 5 * time.Second
	page     = 500
)

// Discover lists the resources in their preferred versions. With an error,
// the list holds what could be learned.
type Discover func() ([]*metav1.APIResourceList, error)

type migrator struct {
	env      engine.Env
	metadata metadata.Interface
	discover Discover
}

// New returns the controller; its keys are resources ("deployments.apps").
func New(env engine.Env, md metadata.Interface, discover Discover) (*engine.Controller, error) {
	if md == nil || discover == nil {
		return nil, errors.New("storage version migrator: needs a metadata client and discovery")
	}
	m := &migrator{env, md, discover}
	return &engine.Controller{
		Name:    name,
		Outputs: []engine.Resource{"storageversionmigrations.storagemigration.k8s.io/status", "customresourcedefinitions.apiextensions.k8s.io/status", "*"},
		Sources: []engine.Source{engine.On("storageversionmigrations.storagemigration.k8s.io", env.Informers.Storagemigration().V1().StorageVersionMigrations().Informer(),
			func(q engine.Queue, old, new *svmv1.StorageVersionMigration) {
				if new == nil {
					new = old
				}
				q.Add(new.Spec.Resource.String())
			})},
		Reconcile: m.reconcile,
	}, nil
}

// reconcile takes a resource's migrations one step further: those that have
// ended are wound up, then the running one goes on, or the oldest begins.
func (m *migrator) reconcile(ctx context.Context, resource string) error {
	list, err := m.env.Client.StoragemigrationV1().StorageVersionMigrations().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var running, waiting *svmv1.StorageVersionMigration
	for i := range list.Items {
		s := &list.Items[i]
		switch {
		case s.Spec.Resource.String() != resource:
		case is(s, svmv1.MigrationRunning) && ended(s):
			if err := m.windUp(ctx, s); err != nil {
				return err
			}
		case is(s, svmv1.MigrationRunning):
			running = s
		case !ended(s) && (waiting == nil || older(s, waiting)):
			waiting = s
		}
	}
	switch {
	case running == nil && waiting == nil:
		return nil
	case running == nil:
		return m.begin(ctx, waiting)
	}
	return m.proceed(ctx, running)
}

func is(s *svmv1.StorageVersionMigration, t svmv1.MigrationConditionType) bool {
	return meta.IsStatusConditionTrue(s.Status.Conditions, string(t))
}

func ended(s *svmv1.StorageVersionMigration) bool {
	return is(s, svmv1.MigrationSucceeded) || is(s, svmv1.MigrationFailed)
}

func older(a, b *svmv1.StorageVersionMigration) bool {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c < 0
	}
	return a.Name < b.Name
}

// set puts a condition into the status; update writes it.
func (m *migrator) set(s *svmv1.StorageVersionMigration, t svmv1.MigrationConditionType, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.Status.Conditions, metav1.Condition{
		Type: string(t), Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(m.env.Clock.Now()),
	})
}

func (m *migrator) update(ctx context.Context, s *svmv1.StorageVersionMigration) error {
	_, err := m.env.Client.StoragemigrationV1().StorageVersionMigrations().UpdateStatus(ctx, s, metav1.UpdateOptions{})
	return err
}

func (m *migrator) fail(ctx context.Context, s *svmv1.StorageVersionMigration, format string, args ...any) error {
	m.set(s, svmv1.MigrationFailed, metav1.ConditionTrue, "StorageVersionMigrationFailed", fmt.Sprintf(format, args...))
	return m.update(ctx, s)
}

func (m *migrator) run(s *svmv1.StorageVersionMigration, left, total int, trouble error) {
	text := "The migration is running"
	switch {
	case left > 0:
		text += fmt.Sprintf(", %d/%d objects not yet migrated", left, total)
	case total > 0:
		text += fmt.Sprintf(", %d objects verified migrated", total)
	}
	if trouble != nil {
		text += "; transient error: " + trouble.Error()
	}
	m.set(s, svmv1.MigrationRunning, metav1.ConditionTrue, "MigrationRunning", text)
}

func (m *migrator) begin(ctx context.Context, s *svmv1.StorageVersionMigration) error {
	err := m.markDefinition(ctx, s, func(d *definition) {
		d.set("True", "MigrationRunning", fmt.Sprintf("Migration %s is running", s.Name))
	})
	if err != nil {
		return err
	}
	m.run(s, 0, 0, nil)
	return m.update(ctx, s)
}

func (m *migrator) windUp(ctx context.Context, s *svmv1.StorageVersionMigration) error {
	err := m.markDefinition(ctx, s, func(d *definition) {
		c := d.migrating()
		same := c != nil && c.ObservedGeneration == d.Metadata.Generation
		switch {
		case !is(s, svmv1.MigrationSucceeded):
			// Upstream forgets the stored versions here too; objects may still be stored in them.
			d.set("False", "MigrationFailed", "The migration has failed")
		case !same:
			d.set("False", "MigrationSucceeded", "The migration has succeeded but the stored versions have not been updated due to a generation mismatch")
		default:
			d.set("False", "MigrationSucceeded", "The migration has succeeded and the stored versions have been updated")
			for _, v := range d.Spec.Versions {
				if v.Storage {
					d.Status.StoredVersions = []string{v.Name}
				}
			}
		}
	})
	if err != nil {
		return err
	}
	m.set(s, svmv1.MigrationRunning, metav1.ConditionFalse, "MigrationCompleted", "Migration completed")
	return m.update(ctx, s)
}

// verbs a resource needs to be migrated.
var verbs = []string{"update", "patch", "list"}

func (m *migrator) proceed(ctx context.Context, s *svmv1.StorageVersionMigration) error {
	gvr, res, err := m.find(s.Spec.Resource)
	if err != nil {
		return err
	}
	if res == nil {
		if m.env.Clock.Since(s.CreationTimestamp.Time) < settling {
			return engine.Later(again)
		}
		return m.fail(ctx, s, "resource does not exist in discovery")
	}
	if slices.ContainsFunc(verbs, func(v string) bool { return !slices.Contains(res.Verbs, v) }) {
		return m.fail(ctx, s, "resource %q does not support discovery operations: %v", gvr.String(), verbs)
	}
	if s.Status.ResourceVersion == "" {
		l, err := m.metadata.Resource(gvr).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return fmt.Errorf("error getting latest resourceVersion for %s: %w", gvr, err)
		}
		if _, err := resourceversion.CompareResourceVersion(l.ResourceVersion, l.ResourceVersion); err != nil {
			return m.fail(ctx, s, "latest resourceVersion for %s is not valid: %v", gvr, err)
		}
		s.Status.ResourceVersion = l.ResourceVersion
		return m.update(ctx, s) // the change brings the resource back
	}
	return m.migrate(ctx, s, gvr, schema.GroupVersionKind{Group: gvr.Group, Version: gvr.Version, Kind: res.Kind})
}

// find looks a resource up in discovery; nil where it is not, and an error
// where that cannot be known.
func (m *migrator) find(gr metav1.GroupResource) (schema.GroupVersionResource, *metav1.APIResource, error) {
	lists, err := m.discover()
	for _, l := range lists {
		gv, perr := schema.ParseGroupVersion(l.GroupVersion)
		if perr != nil || gv.Group != gr.Group {
			continue
		}
		for i := range l.APIResources {
			if l.APIResources[i].Name == gr.Resource {
				return gv.WithResource(gr.Resource), &l.APIResources[i], nil
			}
		}
	}
	return schema.GroupVersionResource{}, nil, err
}

// migrate patches each object that is not newer than the migration with what
// it is, so that the API server stores it again.
func (m *migrator) migrate(ctx context.Context, s *svmv1.StorageVersionMigration, gvr schema.GroupVersionResource, kind schema.GroupVersionKind) error {
	objects, total, err := m.candidates(ctx, gvr, s.Status.ResourceVersion)
	if err != nil {
		return err
	}
	left := len(objects)
	for _, o := range objects {
		body, err := json.Marshal(metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{APIVersion: kind.GroupVersion().String(), Kind: kind.Kind},
			ObjectMeta: metav1.ObjectMeta{ResourceVersion: o.version},
		})
		if err != nil {
			return err
		}
		_, err = m.metadata.Resource(gvr).Namespace(o.namespace).Patch(ctx, o.name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: name})
		switch {
		case err == nil, apierrors.IsConflict(err), apierrors.IsNotFound(err): // written since, or gone
			left--
		case transient(err):
			m.run(s, left, total, err)
			if uerr := m.update(ctx, s); uerr != nil {
				return errors.Join(err, uerr)
			}
			return err
		default:
			m.run(s, left, total, nil)
			return m.fail(ctx, s, "%d/%d not yet migrated. migration encountered unhandled error: %v", left, total, err)
		}
	}
	m.run(s, left, total, nil)
	m.set(s, svmv1.MigrationSucceeded, metav1.ConditionTrue, "StorageVersionMigrationSucceeded", "Migration completed")
	return m.update(ctx, s)
}

type object struct{ namespace, name, version string }

// candidates are the objects last written at or before a resourceVersion, and how many there are in all.
func (m *migrator) candidates(ctx context.Context, gvr schema.GroupVersionResource, until string) (out []object, total int, err error) {
	for o := (metav1.ListOptions{Limit: page}); ; {
		l, err := m.metadata.Resource(gvr).List(ctx, o)
		if err != nil {
			return nil, 0, err
		}
		total += len(l.Items)
		for i := range l.Items {
			item := &l.Items[i]
			c, err := resourceversion.CompareResourceVersion(item.ResourceVersion, until)
			if err != nil {
				return nil, 0, err
			}
			if c <= 0 {
				out = append(out, object{item.Namespace, item.Name, item.ResourceVersion})
			}
		}
		if o.Continue = l.Continue; o.Continue == "" {
			return out, total, nil
		}
	}
}

func transient(err error) bool {
	return utilnet.IsConnectionReset(err) || utilnet.IsHTTP2ConnectionLost(err) || utilnet.IsProbableEOF(err) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsInternalError(err) || apierrors.IsTimeout(err)
}

// definition is what of a CustomResourceDefinition matters here.
type definition struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Versions []struct {
			Name    string `json:"name"`
			Storage bool   `json:"storage"`
		} `json:"versions"`
	} `json:"spec"`
	Status struct {
		Conditions     []metav1.Condition `json:"conditions"`
		StoredVersions []string           `json:"storedVersions"`
	} `json:"status"`
	now metav1.Time
}

func (d *definition) migrating() *metav1.Condition {
	return meta.FindStatusCondition(d.Status.Conditions, "StorageMigrating")
}

func (d *definition) set(status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&d.Status.Conditions, metav1.Condition{
		Type: "StorageMigrating", Status: status, Reason: reason, Message: message, LastTransitionTime: d.now, ObservedGeneration: d.Metadata.Generation,
	})
}

// markDefinition changes the status of the definition that makes the
// resource, if one does. A change by somebody else in between is a Conflict.
func (m *migrator) markDefinition(ctx context.Context, s *svmv1.StorageVersionMigration, change func(*definition)) error {
	if !strings.Contains(s.Spec.Resource.Group, ".") {
		return nil
	}
	path := "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + s.Spec.Resource.Resource + "." + s.Spec.Resource.Group
	client := m.env.Client.Discovery().RESTClient()
	data, err := client.Get().AbsPath(path).SetHeader("Accept", "application/json").DoRaw(ctx)
	if err != nil {
		return engine.IgnoreNotFound(err)
	}
	d := &definition{now: metav1.NewTime(m.env.Clock.Now())}
	if err := json.Unmarshal(data, d); err != nil {
		return err
	}
	change(d)
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": d.Metadata.ResourceVersion}, "status": d.Status})
	if err != nil {
		return err
	}
	return client.Patch(types.MergePatchType).AbsPath(path+"/status").Param("fieldManager", "migration-runner-controller").
		SetHeader("Accept", "application/json").Body(body).Do(ctx).Error()
}

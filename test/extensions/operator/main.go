// Command operator is an ordinary small controller-runtime manager, of the kind
// people run on their clusters: a custom resource in two versions with a
// conversion webhook, a mutating and a validating one, a finalizer, owned
// objects, status conditions and leader election. It knows nothing of Skiff.
//
//	operator                          the manager, in a pod with its certificate in /certs
//	operator certificate DIR NAME     writes DIR/tls.crt and DIR/tls.key for that DNS name
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/cert"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/controller-runtime/pkg/webhook/conversion"
)

const finalizer = group + "/tidy"

func main() {
	run := func() error { return manage("/certs") }
	if len(os.Args) == 4 && os.Args[1] == "certificate" {
		run = func() error { return certificate(os.Args[2], os.Args[3]) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "operator:", err)
		os.Exit(1)
	}
}

func certificate(dir, name string) error {
	certificate, key, err := cert.GenerateSelfSignedCertKey(name, nil, nil)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "tls.crt"), certificate, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "tls.key"), key, 0o600)
}

func manage(certs string) error {
	ctrl.SetLogger(zap.New())
	types := runtime.NewScheme()
	if err := scheme.AddToScheme(types); err != nil {
		return err
	}
	addTypes(types)
	lease, renew, retry := 3*time.Second, 2*time.Second, 500*time.Millisecond
	mgr, err := ctrl.NewManager(ctrl.GetConfigOrDie(), ctrl.Options{
		Scheme:                        types,
		LeaderElection:                true,
		LeaderElectionID:              "operator." + group,
		LeaderElectionReleaseOnCancel: true,
		LeaseDuration:                 &lease,
		RenewDeadline:                 &renew,
		RetryPeriod:                   &retry,
		Metrics:                       server.Options{BindAddress: "0"},
		HealthProbeBindAddress:        ":8081",
		WebhookServer:                 webhook.NewServer(webhook.Options{CertDir: certs}),
	})
	if err != nil {
		return err
	}
	if err := mgr.AddReadyzCheck("webhooks", mgr.GetWebhookServer().StartedChecker()); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return err
	}
	converter := conversion.NewHubSpokeConverter(&Site{}, conversion.NewSpokeConverter(&OldSite{}, toOld, fromOld))
	err = ctrl.NewWebhookManagedBy(mgr, &Site{}).WithDefaulter(rules{}).WithValidator(rules{}).WithConverter(converter).Complete()
	if err != nil {
		return err
	}
	r := &reconciler{Client: mgr.GetClient()}
	if err := ctrl.NewControllerManagedBy(mgr).For(&Site{}).Owns(&corev1.ConfigMap{}).Complete(r); err != nil {
		return err
	}
	return mgr.Start(ctrl.SetupSignalHandler())
}

// rules are the admission webhooks.
type rules struct{}

func (rules) Default(_ context.Context, s *Site) error {
	if s.Spec.Colour == "" {
		s.Spec.Colour = "blue"
	}
	return nil
}

func (rules) ValidateCreate(_ context.Context, s *Site) (admission.Warnings, error) {
	if s.Spec.Colour == "plaid" {
		return nil, fmt.Errorf("spec.colour: plaid is not a colour")
	}
	if s.Spec.Colour == "beige" {
		return admission.Warnings{"spec.colour: beige is out of fashion"}, nil
	}
	return nil, nil
}

func (r rules) ValidateUpdate(ctx context.Context, old, s *Site) (admission.Warnings, error) {
	return r.ValidateCreate(ctx, s)
}

func (rules) ValidateDelete(_ context.Context, s *Site) (admission.Warnings, error) {
	if s.Labels["keep"] != "" {
		return nil, fmt.Errorf("the label keep is set")
	}
	return nil, nil
}

// reconciler keeps a ConfigMap with a Site's pages.
type reconciler struct{ client.Client }

func (r *reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var site Site
	if err := r.Get(ctx, req.NamespacedName, &site); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if site.DeletionTimestamp != nil {
		note := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: site.Name + "-was-here", Namespace: site.Namespace}}
		if controllerutil.RemoveFinalizer(&site, finalizer) {
			if err := client.IgnoreAlreadyExists(r.Create(ctx, note)); err != nil {
				return ctrl.Result{}, err
			}
			return ctrl.Result{}, r.Update(ctx, &site)
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(&site, finalizer) {
		if err := r.Update(ctx, &site); err != nil {
			return ctrl.Result{}, err
		}
	}
	pages := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: site.Name, Namespace: site.Namespace}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, pages, func() error {
		pages.Data = map[string]string{}
		for i := range site.Spec.Pages {
			pages.Data[fmt.Sprintf("page-%d", i+1)] = site.Spec.Host + " in " + site.Spec.Colour
		}
		return controllerutil.SetControllerReference(&site, pages, r.Scheme())
	})
	if err != nil {
		return ctrl.Result{}, err
	}
	site.Status.Pages = site.Spec.Pages
	meta.SetStatusCondition(&site.Status.Conditions, metav1.Condition{
		Type: "Ready", Status: metav1.ConditionTrue, Reason: "Written", ObservedGeneration: site.Generation})
	return ctrl.Result{}, r.Status().Update(ctx, &site)
}

package controller

import (
	"net/netip"

	"github.com/skiff-project/skiff/controller/certificates"
	"github.com/skiff-project/skiff/controller/clusterroleaggregation"
	"github.com/skiff-project/skiff/controller/cronjob"
	"github.com/skiff-project/skiff/controller/daemonset"
	"github.com/skiff-project/skiff/controller/deployment"
	"github.com/skiff-project/skiff/controller/disruption"
	"github.com/skiff-project/skiff/controller/endpoints"
	"github.com/skiff-project/skiff/controller/endpointslice"
	"github.com/skiff-project/skiff/controller/endpointslicemirroring"
	"github.com/skiff-project/skiff/controller/engine"
	"github.com/skiff-project/skiff/controller/ephemeralvolume"
	"github.com/skiff-project/skiff/controller/garbagecollector"
	"github.com/skiff-project/skiff/controller/job"
	"github.com/skiff-project/skiff/controller/legacytokens"
	"github.com/skiff-project/skiff/controller/namespace"
	"github.com/skiff-project/skiff/controller/nodeipam"
	"github.com/skiff-project/skiff/controller/nodelifecycle"
	"github.com/skiff-project/skiff/controller/podcertificates"
	"github.com/skiff-project/skiff/controller/podgc"
	"github.com/skiff-project/skiff/controller/policystatus"
	"github.com/skiff-project/skiff/controller/replicaset"
	"github.com/skiff-project/skiff/controller/replication"
	"github.com/skiff-project/skiff/controller/resourcequota"
	"github.com/skiff-project/skiff/controller/rootca"
	"github.com/skiff-project/skiff/controller/serviceaccount"
	"github.com/skiff-project/skiff/controller/servicecidrs"
	"github.com/skiff-project/skiff/controller/statefulset"
	"github.com/skiff-project/skiff/controller/storageversionmigrator"
	"github.com/skiff-project/skiff/controller/tainteviction"
	"github.com/skiff-project/skiff/controller/tokens"
	"github.com/skiff-project/skiff/controller/ttlafterfinished"
	"github.com/skiff-project/skiff/controller/volumebinding"
	"github.com/skiff-project/skiff/controller/volumeprotection"
)

// entry is one controller that can be built.
type entry struct {
	name    string                // upstream's --controllers name
	alias   string                // upstream's older name, still accepted
	account string                // its service account in kube-system; "": it writes with Config.Client
	off     func(cfg Config) bool // when set and true, cfg lacks what it needs: it is left out
	build   func(engine.Env, Config) (*engine.Controller, error)
}

// plain adapts controllers that need nothing but the environment.
func plain(build func(engine.Env) (*engine.Controller, error)) func(engine.Env, Config) (*engine.Controller, error) {
	return func(env engine.Env, _ Config) (*engine.Controller, error) { return build(env) }
}

// list is every controller of Skiff, in the order they start.
var list = []entry{
	{name: "serviceaccount-token-controller", alias: "serviceaccount-token",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return tokens.New(env, cfg.SignToken, cfg.RootCA)
		}},
	{name: "legacy-serviceaccount-token-cleaner-controller", alias: "legacy-service-account-token-cleaner", account: "legacy-service-account-token-cleaner",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return legacytokens.New(env, cfg.Client, cfg.LegacyTokenPeriod)
		}},
	{name: "serviceaccount-controller", alias: "serviceaccount", account: "service-account-controller",
		build: plain(serviceaccount.New)},
	{name: "root-ca-certificate-publisher-controller", alias: "root-ca-cert-publisher", account: "root-ca-cert-publisher",
		off: func(cfg Config) bool { return len(cfg.RootCA) == 0 },
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return rootca.New(env, cfg.RootCA)
		}},
	{name: "node-ipam-controller", alias: "nodeipam", account: "node-controller",
		off: func(cfg Config) bool { return len(cfg.ClusterCIDRs) == 0 },
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return nodeipam.New(env, ipamConfig(cfg))
		}},
	{name: "node-lifecycle-controller", alias: "nodelifecycle", account: "node-controller",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return nodelifecycle.New(env, cfg.Node)
		}},
	{name: "taint-eviction-controller", account: "node-controller", build: plain(tainteviction.New)},
	{name: "deployment-controller", alias: "deployment", account: "deployment-controller", build: plain(deployment.New)},
	{name: "replicaset-controller", alias: "replicaset", account: "replicaset-controller", build: plain(replicaset.New)},
	{name: "replicationcontroller-controller", alias: "replicationcontroller", account: "replication-controller",
		build: plain(replication.New)},
	{name: "daemonset-controller", alias: "daemonset", account: "daemon-set-controller", build: plain(daemonset.New)},
	{name: "statefulset-controller", alias: "statefulset", account: "statefulset-controller", build: plain(statefulset.New)},
	{name: "job-controller", alias: "job", account: "job-controller", build: plain(job.New)},
	{name: "cronjob-controller", alias: "cronjob", account: "cronjob-controller", build: plain(cronjob.New)},
	{name: "ttl-after-finished-controller", alias: "ttl-after-finished", account: "ttl-after-finished-controller",
		build: plain(ttlafterfinished.New)},
	{name: "disruption-controller", alias: "disruption", account: "disruption-controller", build: plain(disruption.New)},
	{name: "clusterrole-aggregation-controller", alias: "clusterrole-aggregation", account: "clusterrole-aggregation-controller",
		build: plain(clusterroleaggregation.New)},
	{name: "validatingadmissionpolicy-status-controller", account: "validatingadmissionpolicy-status-controller",
		build: plain(policystatus.New)},
	{name: "endpoints-controller", alias: "endpoint", account: "endpoint-controller", build: plain(endpoints.New)},
	{name: "endpointslice-controller", alias: "endpointslice", account: "endpointslice-controller",
		build: plain(endpointslice.New)},
	{name: "endpointslice-mirroring-controller", alias: "endpointslicemirroring", account: "endpointslicemirroring-controller",
		build: plain(endpointslicemirroring.New)},
	{name: "service-cidr-controller", account: "service-cidrs-controller", build: plain(servicecidrs.New)},
	{name: "resourcequota-controller", alias: "resourcequota", account: "resourcequota-controller",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return resourcequota.New(env, cfg.metadataFor("resourcequota-controller"), cfg.Discovery.ServerPreferredNamespacedResources)
		}},
	{name: "persistentvolume-binder-controller", alias: "persistentvolume-binder", account: "persistent-volume-binder",
		build: plain(volumebinding.New)},
	{name: "ephemeral-volume-controller", alias: "ephemeral-volume", account: "ephemeral-volume-controller",
		build: plain(ephemeralvolume.New)},
	{name: "persistentvolumeclaim-protection-controller", alias: "pvc-protection", account: "pvc-protection-controller",
		build: plain(volumeprotection.NewClaims)},
	{name: "persistentvolume-protection-controller", alias: "pv-protection", account: "pv-protection-controller",
		build: plain(volumeprotection.NewVolumes)},
	{name: "volumeattributesclass-protection-controller", account: "volumeattributesclass-protection-controller",
		build: plain(volumeprotection.NewClasses)},
	{name: "certificatesigningrequest-signing-controller", alias: "csrsigning", account: "certificate-controller",
		off: func(cfg Config) bool { return len(cfg.Authorities) == 0 },
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return certificates.NewSigning(env, cfg.Authorities, cfg.SigningDuration)
		}},
	{name: "certificatesigningrequest-approving-controller", alias: "csrapproving", account: "certificate-controller",
		build: plain(certificates.NewApproving)},
	{name: "certificatesigningrequest-cleaner-controller", alias: "csrcleaner", account: "certificate-controller",
		build: plain(certificates.NewCleaning)},
	{name: "podcertificaterequest-cleaner-controller", account: "podcertificaterequestcleaner", build: plain(podcertificates.New)},
	{name: "pod-garbage-collector-controller", alias: "podgc", account: "pod-garbage-collector",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return podgc.New(env, cfg.TerminatedPodLimit)
		}},
	{name: "namespace-controller", alias: "namespace", account: "namespace-controller",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return namespace.New(env, cfg.metadataFor("namespace-controller"), cfg.Discovery.ServerPreferredNamespacedResources)
		}},
	{name: "storage-version-migrator-controller", alias: "svm", account: "storage-version-migrator-controller",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return storageversionmigrator.New(env, cfg.metadataFor("storage-version-migrator-controller"), cfg.Discovery.ServerPreferredResources)
		}},
	{name: "garbage-collector-controller", alias: "garbagecollector", account: "generic-garbage-collector",
		build: func(env engine.Env, cfg Config) (*engine.Controller, error) {
			return garbagecollector.New(env, cfg.metadataFor("generic-garbage-collector"), cfg.Discovery.ServerPreferredResources)
		}},
}

func ipamConfig(cfg Config) nodeipam.Config {
	out := nodeipam.Config{ClusterCIDRs: cfg.ClusterCIDRs}
	for _, c := range cfg.ClusterCIDRs {
		size := cfg.NodeCIDRMaskSize
		if c.Addr().Is6() {
			size = cfg.NodeMaskSizeIPv6
		}
		out.MaskSizes = append(out.MaskSizes, size)
	}
	if cfg.ServiceCIDR.IsValid() {
		out.ServiceCIDRs = []netip.Prefix{cfg.ServiceCIDR}
	}
	return out
}

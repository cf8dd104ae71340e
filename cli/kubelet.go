package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skiff-project/skiff/cli/box"
	"github.com/skiff-project/skiff/cluster"
)

var kubeletHarmless = []harmless{
	{"pod-infra-container-image", "a pod here has no pause process"},
	{"sync-frequency file-check-frequency http-check-frequency volume-stats-agg-period cpu-manager-reconcile-period streaming-connection-idle-timeout " +
		"authentication-token-webhook-cache-ttl authorization-webhook-cache-authorized-ttl authorization-webhook-cache-unauthorized-ttl " +
		"registry-qps registry-burst event-qps event-burst runtime-cgroups kubelet-cgroups oom-score-adj max-open-files housekeeping-interval " +
		"serialize-image-pulls? node-status-max-images minimum-container-ttl-duration maximum-dead-containers maximum-dead-containers-per-container " +
		"volume-plugin-dir experimental-mounter-path config-sync-period local-storage-capacity-isolation?",
		"events are acted on at once, and pulls are not slowed down"},
	{"rotate-certificates?", "the kubeconfig's files are read again when they change; who renews them is not the kubelet"},
	{"hairpin-mode make-iptables-util-chains? iptables-masquerade-bit iptables-drop-bit non-masquerade-cidr", "the network decides, not the kubelet"},
	{"fail-swap-on? fail-cgroupv1?", "both are accepted: swap is not used by containers with a memory limit"},
	{"cgroup-driver", "the container runtime says which driver it uses"},
	{"azure-container-registry-config boot-id-file machine-id-file containerd containerd-namespace docker-root global-housekeeping-interval log-cadvisor-usage? " +
		"storage-driver-buffer-duration storage-driver-db storage-driver-host storage-driver-password storage-driver-secure? storage-driver-table storage-driver-user " +
		"container-hints enable-load-reader? event-storage-age-limit event-storage-event-limit", "they belong to cAdvisor, which is not there"},
}

// kubeletConfig is KubeletConfiguration.
var kubeletConfig = configFile{apiVersion: "kubelet.config.k8s.io/v1beta1", kind: "KubeletConfiguration", fields: `
	enableServer ! true
	staticPodPath --pod-manifest-path
	podLogsDir --pod-logs-dir
	syncFrequency ~
	fileCheckFrequency ~
	httpCheckFrequency ~
	staticPodURL =
	staticPodURLHeader =
	address --address
	port --port
	readOnlyPort --read-only-port
	tlsCertFile --tls-cert-file
	tlsPrivateKeyFile --tls-private-key-file
	tlsCipherSuites =
	tlsCurvePreferences =
	tlsMinVersion = VersionTLS12
	rotateCertificates ~
	serverTLSBootstrap =
	authentication.x509.clientCAFile --client-ca-file
	authentication.webhook.enabled ! true
	authentication.webhook.cacheTTL ~
	authentication.anonymous.enabled =
	authorization.mode = Webhook
	authorization.webhook ~
	registryPullQPS ~
	registryBurst ~
	imagePullCredentialsVerificationPolicy = NeverVerify
	preloadedImagesVerificationAllowlist =
	eventRecordQPS ~
	eventBurst ~
	enableDebuggingHandlers ! true
	enableContentionProfiling ~
	healthzPort !--healthz-port
	healthzBindAddress --healthz-bind-address
	oomScoreAdj ~
	clusterDomain --cluster-domain
	clusterDNS --cluster-dns
	streamingConnectionIdleTimeout ~
	nodeStatusUpdateFrequency --node-status-update-frequency
	nodeStatusReportFrequency --node-status-report-frequency
	nodeLeaseDurationSeconds --node-lease-duration-seconds
	imageMinimumGCAge --minimum-image-ttl-duration
	imageMaximumGCAge =
	imageGCHighThresholdPercent !--image-gc-high-threshold
	imageGCLowThresholdPercent !--image-gc-low-threshold
	volumeStatsAggPeriod ~
	kubeletCgroups ~
	systemCgroups =
	cgroupRoot --cgroup-root
	cgroupsPerQOS ! true
	cgroupDriver ~
	cpuManagerPolicy = none
	singleProcessOOMKill =
	cpuManagerPolicyOptions =
	cpuManagerReconcilePeriod ~
	memoryManagerPolicy = None
	topologyManagerPolicy = none
	topologyManagerScope = container
	topologyManagerPolicyOptions =
	qosReserved =
	runtimeRequestTimeout --runtime-request-timeout
	hairpinMode ~
	maxPods --max-pods
	podCIDR ~
	podPidsLimit ! -1
	resolvConf !--resolv-conf
	runOnce =
	cpuCFSQuota ! true
	cpuCFSQuotaPeriod = 100ms
	nodeStatusMaxImages ~
	maxOpenFiles ~
	contentType --kube-api-content-type
	kubeAPIQPS --kube-api-qps
	kubeAPIBurst --kube-api-burst
	serializeImagePulls ~
	maxParallelImagePulls ~
	evictionSoft =
	evictionSoftGracePeriod =
	evictionPressureTransitionPeriod ~
	evictionMaxPodGracePeriod ~
	evictionMinimumReclaim =
	mergeDefaultEvictionSettings ~
	podsPerCore =
	enableControllerAttachDetach ! true
	protectKernelDefaults =
	makeIPTablesUtilChains ~
	iptablesMasqueradeBit ~
	iptablesDropBit ~
	featureGates --feature-gates
	failSwapOn ~
	memorySwap.swapBehavior = NoSwap
	containerLogMaxSize --container-log-max-size
	containerLogMaxFiles --container-log-max-files
	containerLogMaxWorkers ~
	containerLogMonitorInterval ~
	configMapAndSecretChangeDetectionStrategy ~
	systemReserved =
	kubeReserved =
	reservedSystemCPUs =
	showHiddenMetricsForVersion ~
	systemReservedCgroup =
	kubeReservedCgroup =
	enforceNodeAllocatable = pods | none
	allowedUnsafeSysctls =
	defaultPodSysctls =
	volumePluginDir ~
	providerID --provider-id
	kernelMemcgNotification ~
	logging ~
	enableSystemLogHandler ! true
	enableSystemLogQuery =
	shutdownGracePeriod =
	shutdownGracePeriodCriticalPods =
	shutdownGracePeriodByPodPriority =
	crashLoopBackOff.maxContainerRestartPeriod --crash-loop-max
	reservedMemory =
	enableProfilingHandler ~
	enableDebugFlagsHandler ~
	seccompDefault =
	memoryThrottlingFactor = 0.9
	memoryReservationPolicy = None
	registerNode ! true
	tracing =
	localStorageCapacityIsolation ~
	containerRuntimeEndpoint --container-runtime-endpoint
	imageServiceEndpoint --image-service-endpoint
	failCgroupV1 ~
	userNamespaces =
`}

type kubeletFlags struct {
	opts           cluster.Kubelet
	config         string
	bootstrap      string
	hostname, bind string
	port           int
	nodeIPs        []string
	resolv         string
	labels         map[string]string
	taints         []string
	evict          []string
	healthz        string
	healthzPort    int
	logSize        string
	leaseSeconds   int32
	clusterCIDRs   []string
	serviceCIDR    string
}

func newKubelet() *program {
	p, _ := kubeletProgram()
	return p
}

func kubeletProgram() (*program, *kubeletFlags) {
	p := newProgram("kubelet", "The node agent by itself, with the embedded container runtime or any other", kubeletHarmless...)
	f := &kubeletFlags{}
	fs, o, k := p.fs, &f.opts, &f.opts.Kubelet
	fs.StringVar(&f.config, "config", "", "file with a KubeletConfiguration; flags win over it")
	fs.StringVar(&o.Connection.Kubeconfig, "kubeconfig", "", "how to reach the API server; required")
	fs.StringVar(&f.bootstrap, "bootstrap-kubeconfig", "", "may be given when --kubeconfig is there already; it is not used to ask for one")
	fs.Float32Var(&o.Connection.QPS, "kube-api-qps", 50, "requests a second to the API server")
	fs.IntVar(&o.Connection.Burst, "kube-api-burst", 100, "requests at once")
	fs.StringVar(&o.Connection.ContentType, "kube-api-content-type", "application/vnd.kubernetes.protobuf", "encoding of requests")
	fs.StringVar(&o.RuntimeEndpoint, "container-runtime-endpoint", "", "CRI socket, unix:///path (default: the embedded runtime, in this process)")
	fs.StringVar(&o.ImageEndpoint, "image-service-endpoint", "", "CRI socket of images (default: the runtime's)")
	fs.DurationVar(&o.RuntimeTimeout, "runtime-request-timeout", 2*time.Minute, "bound of one call of the runtime")
	fs.StringVar(&f.hostname, "hostname-override", "", "name of this node (default: the host name)")
	fs.StringSliceVar(&f.nodeIPs, "node-ip", nil, "this node's addresses, one or one per family (default: that of the default route)")
	fs.StringVar(&f.bind, "address", "0.0.0.0", "address to serve the node's API on")
	fs.IntVar(&f.port, "port", 10250, "port to serve it on")
	fs.StringVar(&k.RootDir, "root-dir", "/var/lib/kubelet", "folder of pods' volumes and of the embedded runtime")
	fs.StringVar(&o.CertDir, "cert-dir", "/var/lib/kubelet/pki", "folder of kubelet.crt and kubelet.key, made if missing")
	fs.StringVar(&o.CertFile, "tls-cert-file", "", "serving certificate; overrides --cert-dir")
	fs.StringVar(&o.KeyFile, "tls-private-key-file", "", "its key")
	fs.StringVar(&o.ClientCAFile, "client-ca-file", "", "authority of client certificates (default: none are accepted)")
	fs.StringVar(&k.StaticPodPath, "pod-manifest-path", "", "folder or file of static pods")
	fs.StringVar(&k.LogDir, "pod-logs-dir", "/var/log/pods", "folder of containers' logs")
	fs.StringSliceVar(&k.ClusterDNS, "cluster-dns", nil, "name servers of pods")
	fs.StringVar(&k.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster")
	fs.StringVar(&f.resolv, "resolv-conf", "/etc/resolv.conf", "the node's resolver configuration; empty: none")
	fs.StringVar(&k.CgroupRoot, "cgroup-root", "", "control group pods are under (default: the root, or the embedded runtime's)")
	fs.Int64Var(&k.MaxPods, "max-pods", 110, "pods this node takes")
	fs.StringToStringVar(&f.labels, "node-labels", nil, "labels to register with")
	fs.StringSliceVar(&f.taints, "register-with-taints", nil, "taints to register with, key=value:effect")
	fs.StringVar(&k.ProviderID, "provider-id", "", "this machine's ID at its provider")
	fs.StringSliceVar(&f.evict, "eviction-hard", nil, "when the node is under pressure: memory.available, nodefs.available, nodefs.inodesFree, pid.available")
	fs.IntVar(&k.ImageGCHighPercent, "image-gc-high-threshold", 85, "disk use at which unused images are deleted; 100: never")
	fs.IntVar(&k.ImageGCLowPercent, "image-gc-low-threshold", 80, "down to which")
	fs.DurationVar(&k.ImageMinAge, "minimum-image-ttl-duration", 2*time.Minute, "younger images are kept")
	fs.StringVar(&f.logSize, "container-log-max-size", "10Mi", "size at which a container's log is rotated")
	fs.IntVar(&k.LogMaxFiles, "container-log-max-files", 5, "files of one container's log")
	fs.DurationVar(&k.StatusPeriod, "node-status-update-frequency", 10*time.Second, "how often the node is looked at")
	fs.StringVar(&f.healthz, "healthz-bind-address", "127.0.0.1", "address of /healthz")
	fs.IntVar(&f.healthzPort, "healthz-port", 10248, "its port; 0: not served")
	f.more(p)
	p.run = func(ctx context.Context, log *slog.Logger) error {
		o.Log, o.Flags = log, p.flags()
		if err := f.settle(p); err != nil {
			return err
		}
		return o.Run(ctx)
	}
	return p, f
}

// more are flags that upstream has in its configuration file only, those of
// which one value is there, and those of the embedded runtime.
func (f *kubeletFlags) more(p *program) {
	fs, k := p.fs, &f.opts.Kubelet
	fs.DurationVar(&k.StatusReport, "node-status-report-frequency", 5*time.Minute, "the node's status is sent at least so often")
	fs.Int32Var(&f.leaseSeconds, "node-lease-duration-seconds", 40, "how long the node's lease holds")
	fs.DurationVar(&k.Backoff.CrashMax, "crash-loop-max", 5*time.Minute, "longest pause between restarts")
	for _, name := range []string{"node-status-report-frequency", "node-lease-duration-seconds", "crash-loop-max"} {
		fs.Lookup(name).Hidden = true
	}
	fs.StringSliceVar(&f.clusterCIDRs, "embedded-cluster-cidr", nil, "embedded runtime: range of pods' addresses, which is not masqueraded")
	fs.StringVar(&f.serviceCIDR, "embedded-service-cidr", "", "embedded runtime: range of Services' addresses, routed to the pods' bridge")
	fs.StringVar(&f.opts.Embedded.DataDir, "embedded-data-dir", "", "embedded runtime: its folder (default: <root-dir>/skiff)")
	p.limited("anonymous-auth", "false", "the node's API is for who is known", "false")
	p.limited("authentication-token-webhook", "true", "tokens are always reviewed", "true")
	p.limited("authorization-mode", "Webhook", "the API server is always asked", "Webhook")
	p.limited("register-node", "true", "the node always registers", "true")
	p.limited("read-only-port", "0", "everybody has to say who they are", "0")
	p.limited("cloud-provider", "", "there is no cloud provider here", "")
	p.limited("container-runtime", "", "runtimes speak CRI", "remote")
	p.limited("cgroups-per-qos", "true", "pods have control groups", "true")
	p.limited("enforce-node-allocatable", "pods", "nothing is reserved", "pods", "none", "")
	p.limited("enable-server", "true", "the node's API is always served", "true")
	p.limited("enable-debugging-handlers", "true", "kubectl logs and exec need them", "true")
	p.limited("enable-controller-attach-detach", "true", "volumes are not attached by the node", "true")
	p.limited("rotate-server-certificates", "false", "the serving certificate is --tls-cert-file or self-signed", "false")
	p.limited("protect-kernel-defaults", "false", "the kernel's settings are made to fit", "false")
	p.limited("seccomp-default", "false", "pods say their profile", "false")
	p.limited("cpu-manager-policy", "none", "cores are shared", "none")
	p.limited("memory-manager-policy", "None", "memory is not pinned", "None")
	p.limited("topology-manager-policy", "none", "nothing is pinned", "none")
	p.limited("cpu-cfs-quota", "true", "CPU limits are enforced", "true")
	p.limited("pod-max-pids", "-1", "processes of a pod are not limited", "-1", "0")
}

func (f *kubeletFlags) settle(p *program) error {
	if f.config != "" {
		c := kubeletConfig
		c.custom = map[string]func(any) error{"registerWithTaints": f.configTaints, "evictionHard": f.configEviction}
		if err := p.load(f.config, c); err != nil {
			return fmt.Errorf("--config: %w", err)
		}
	}
	o, k := &f.opts, &f.opts.Kubelet
	if o.Connection.Kubeconfig == "" {
		return errors.New("--kubeconfig is required: a kubelet without an API server is not supported")
	}
	if _, err := os.Stat(o.Connection.Kubeconfig); err != nil {
		if f.bootstrap != "" {
			return fmt.Errorf("--kubeconfig: %w (asking for a certificate by --bootstrap-kubeconfig is not supported: make the kubeconfig first, as kubeadm's kubelet-start does)", err)
		}
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	var err error
	if k.NodeName, err = nodeName(f.hostname); err != nil {
		return err
	}
	k.NodeIPs, k.NodeLabels, k.ResolvConf, k.LeaseSeconds = f.nodeIPs, f.labels, &f.resolv, f.leaseSeconds
	for _, ip := range f.nodeIPs {
		if a, err := netip.ParseAddr(ip); err != nil || a.IsUnspecified() {
			return fmt.Errorf("--node-ip: %q is not an address of this node", ip)
		}
	}
	k.ServerAddr = net.JoinHostPort(f.bind, strconv.Itoa(f.port))
	if f.healthzPort > 0 {
		o.HealthzAddr = net.JoinHostPort(f.healthz, strconv.Itoa(f.healthzPort))
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return errors.New("--tls-cert-file and --tls-private-key-file must be given together")
	}
	if k.RegisterWithTaints, err = taints(f.taints); err != nil {
		return err
	}
	size, err := resource.ParseQuantity(f.logSize)
	if err != nil {
		return fmt.Errorf("--container-log-max-size: %q: %w", f.logSize, err)
	}
	k.LogMaxSize = size.Value()
	return errors.Join(f.eviction(), f.embedded())
}

// embedded settles what the embedded runtime takes.
func (f *kubeletFlags) embedded() error {
	e := &f.opts.Embedded
	if e.DataDir == "" {
		e.DataDir = filepath.Join(f.opts.Kubelet.RootDir, "skiff")
	}
	e.Applets = box.Names()
	var err error
	if e.ClusterCIDRs, err = prefixes("embedded-cluster-cidr", f.clusterCIDRs); err != nil || f.serviceCIDR == "" {
		return err
	}
	if e.ServiceCIDR, err = netip.ParsePrefix(f.serviceCIDR); err != nil {
		return fmt.Errorf("--embedded-service-cidr: %q is not an address range such as 10.0.0.0/24", f.serviceCIDR)
	}
	return nil
}

// eviction reads --eviction-hard into the thresholds of the node's conditions.
func (f *kubeletFlags) eviction() error {
	t := &f.opts.Kubelet.Eviction
	for _, s := range f.evict {
		signal, value, ok := strings.Cut(s, "<")
		if !ok {
			return fmt.Errorf("--eviction-hard: %q is not signal<quantity", s)
		}
		if signal == "memory.available" {
			q, err := resource.ParseQuantity(value)
			if err != nil {
				return fmt.Errorf("--eviction-hard: %s: %q is not a quantity (a share of memory is not supported)", signal, value)
			}
			t.MemoryBytes = q.Value()
			continue
		}
		percent, err := strconv.ParseFloat(strings.TrimSuffix(value, "%"), 64)
		if err != nil || !strings.HasSuffix(value, "%") {
			return fmt.Errorf("--eviction-hard: %s: %q is not a percentage (quantities are not supported)", signal, value)
		}
		switch signal {
		case "nodefs.available", "imagefs.available": // one file system, the stricter of the two
			t.DiskFraction = max(t.DiskFraction, percent/100)
		case "nodefs.inodesFree", "imagefs.inodesFree":
			t.InodeFraction = max(t.InodeFraction, percent/100)
		case "pid.available":
			t.PIDFraction = percent / 100
		default:
			return fmt.Errorf("--eviction-hard: signal %q is not supported", signal)
		}
	}
	return nil
}

func (f *kubeletFlags) configEviction(v any) error {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%v is not a map", v)
	}
	if len(f.evict) > 0 {
		return nil
	}
	for signal, value := range m {
		f.evict = append(f.evict, fmt.Sprintf("%s<%v", signal, value))
	}
	return nil
}

func (f *kubeletFlags) configTaints(v any) error {
	list, ok := v.([]any)
	if !ok {
		return fmt.Errorf("%v is not a list", v)
	}
	if len(f.taints) > 0 {
		return nil
	}
	for _, item := range list {
		m, ok := item.(map[string]any)
		if !ok {
			return fmt.Errorf("%v is not a taint", item)
		}
		s := fmt.Sprintf("%v:%v", m["key"], m["effect"])
		if value, _ := m["value"].(string); value != "" {
			s = fmt.Sprintf("%v=%v:%v", m["key"], value, m["effect"])
		}
		f.taints = append(f.taints, s)
	}
	return nil
}

// taints reads key=value:effect, or key:effect.
func taints(list []string) ([]corev1.Taint, error) {
	var out []corev1.Taint
	for _, s := range list {
		left, effect, ok := strings.Cut(s, ":")
		key, value, _ := strings.Cut(left, "=")
		switch e := corev1.TaintEffect(effect); {
		case !ok || len(validation.IsQualifiedName(key)) > 0:
			return nil, fmt.Errorf("--register-with-taints: %q is not key=value:effect", s)
		case e != corev1.TaintEffectNoSchedule && e != corev1.TaintEffectPreferNoSchedule && e != corev1.TaintEffectNoExecute:
			return nil, fmt.Errorf("--register-with-taints: %q: the effect is NoSchedule, PreferNoSchedule or NoExecute", s)
		default:
			out = append(out, corev1.Taint{Key: key, Value: value, Effect: e})
		}
	}
	return out, nil
}

// nodeName is a name given, else the host's, as upstream has it.
func nodeName(given string) (string, error) {
	name := given
	if name == "" {
		host, err := os.Hostname()
		if err != nil {
			return "", err
		}
		name = host
	}
	name = strings.ToLower(strings.TrimSpace(name))
	if errs := validation.IsDNS1123Subdomain(name); len(errs) > 0 {
		return "", fmt.Errorf("--hostname-override: node name %q is not valid: %s", name, strings.Join(errs, "; "))
	}
	return name, nil
}

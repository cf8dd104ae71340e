package cli

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-project/skiff/cluster"
	"github.com/skiff-project/skiff/scheduler"
)

var rewrite = flag.Bool("rewrite", false, "rewrite docs/FLAGS.md")

// attempt runs a program whose work is never reached, and returns its error.
func attempt(t *testing.T, name, args string) error {
	t.Helper()
	for _, make := range programs() {
		if p := make(); p.name == name {
			return p.execute(t.Context(), strings.Fields(args), io.Discard, io.Discard)
		}
	}
	t.Fatalf("no program %s", name)
	return nil
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsThatAreRefused(t *testing.T) {
	kubeconfig := write(t, "kubeconfig", "")
	for _, tt := range []struct{ name, args, want string }{
		{"kube-scheduler", "--no-such-flag=1", "--no-such-flag is not a flag this kube-scheduler has"},
		{"kube-scheduler", "-z", "-z is not a flag"},
		{"kube-scheduler", "extra", `"extra": kube-scheduler takes flags only`},
		{"kube-scheduler", "--secure-port=x", `invalid argument "x" for "--secure-port"`},
		{"kube-scheduler", "--logging-format=xml", `--logging-format: "xml" is neither`},
		{"kube-scheduler", "--feature-gates=A=true", `"--feature-gates" flag: unrecognized feature gate: A`},
		{"kube-scheduler", "--tls-min-version=1.3", `--tls-min-version: unknown tls version "1.3"`},
		{"kube-scheduler", "--tls-cipher-suites=NULL", `--tls-cipher-suites: "NULL" is not a cipher suite`},
		{"kube-scheduler", "--tls-cert-file=x", "--tls-cert-file and --tls-private-key-file must be given together"},
		{"kube-scheduler", "--leader-elect-resource-lock=endpoints", "leaders hold a Lease"},
		{"kube-scheduler", "--kubeconfig=/none", "connection to the API server: stat /none"},
		{"kube-scheduler", "--config=/none", "--config: open /none"},
		{"kube-controller-manager", "--controllers=*,ttl", "--controllers: ttl is one of upstream's that is not there"},
		{"kube-controller-manager", "--controllers=nonsense --master=https://127.0.0.1:1", `"nonsense" is not a controller Skiff has`},
		{"kube-controller-manager", "--allocate-node-cidrs", "--allocate-node-cidrs needs --cluster-cidr"},
		{"kube-controller-manager", "--cluster-cidr=banana", `--cluster-cidr: "banana" is not an address range`},
		{"kube-controller-manager", "--node-cidr-mask-size=24 --node-cidr-mask-size-ipv6=64", "exclude each other"},
		{"kube-controller-manager", "--root-ca-file=/none --master=https://127.0.0.1:1", "root CA: open /none"},
		{"kube-controller-manager", "--service-account-private-key-file=/none --master=https://127.0.0.1:1", "service account key: open /none"},
		{"kube-controller-manager", "--cluster-signing-cert-file=/none --cluster-signing-key-file=/none --master=https://127.0.0.1:1", "signing authority /none"},
		{"kube-controller-manager", "--cluster-signing-cert-file=/none", "need each other"},
		{"kube-controller-manager", "--cluster-signing-kubelet-client-key-file=/none", "needs both its certificate and its key file"},
		{"kube-controller-manager", "--cluster-signing-cert-file=/c --cluster-signing-key-file=/k --cluster-signing-kubelet-client-cert-file=/c --cluster-signing-kubelet-client-key-file=/k",
			"cannot be given together with other --cluster-signing-*-file flags"},
		{"kube-controller-manager", "--cloud-provider=aws", "there is no cloud provider here"},
		{"kube-controller-manager", "--enable-garbage-collector=false", "leave garbage-collector-controller out with --controllers"},
		{"kube-proxy", "--proxy-mode=iptables", "--proxy-mode: iptables is not supported"},
		{"kube-proxy", "--proxy-mode=x", `--proxy-mode: unknown mode "x"`},
		{"kube-proxy", "--bind-address=x", `--bind-address: "x" is not an IP address`},
		{"kube-proxy", "--hostname-override=a_b", `node name "a_b" is not valid`},
		{"kube-proxy", "--healthz-bind-address=x", `--healthz-bind-address: "x" is neither`},
		{"kube-proxy", "--conntrack-min=1", "the host's conntrack settings are left alone"},
		{"kube-proxy", "--nodeport-addresses=x", "--nodeport-addresses"},
		{"kubelet", "", "--kubeconfig is required"},
		{"kubelet", "--kubeconfig=/none", "--kubeconfig: stat /none"},
		{"kubelet", "--kubeconfig=/none --bootstrap-kubeconfig=/b", "asking for a certificate by --bootstrap-kubeconfig is not supported"},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --node-ip=::", `--node-ip: "::" is not an address`},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --register-with-taints=x", `--register-with-taints: "x" is not key=value:effect`},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --register-with-taints=a=b:Never", "the effect is NoSchedule"},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --eviction-hard=memory.available<5%", "a share of memory is not supported"},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --eviction-hard=nodefs.available<1Gi", "is not a percentage"},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --eviction-hard=x<1%", `signal "x" is not supported`},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --container-log-max-size=x", "--container-log-max-size"},
		{"kubelet", "--kubeconfig=" + kubeconfig + " --embedded-service-cidr=x", `--embedded-service-cidr: "x"`},
		{"kubelet", "--rotate-server-certificates", "the serving certificate is --tls-cert-file or self-signed"},
		{"kubelet", "--anonymous-auth=true", "the node's API is for who is known"},
		{"runtime", "--listen=x", `--listen: "x" is not a path`},
		{"runtime", "--pod-cidr=x", `--pod-cidr: "x"`},
		{"kube-apiserver", "--authorization-mode=ABAC", "ABAC is not supported"},
		{"kube-apiserver", "--authorization-mode=Root", `authorization-mode "Root" is not a valid mode`},
		{"kube-apiserver", "--authorization-mode=RBAC,RBAC", "has mode specified more than once"},
		{"kube-apiserver", "--authorization-mode=Node,RBAC,Webhook", "authorization config file not passed"},
		{"kube-apiserver", "--authorization-webhook-config-file=/x", "without mode Webhook"},
		{"kube-apiserver", "--authorization-mode=RBAC --authorization-config=/x", "--authorization-config can not be specified when"},
		{"kube-apiserver", "--oidc-issuer-url=https://x", "must be specified together"},
		{"kube-apiserver", "--oidc-groups-claim=x", "must be specified together"},
		{"kube-apiserver", "--oidc-groups-claim=x --authentication-config=/x", "mutually exclusive"},
		{"kube-apiserver", "--oidc-required-claim=x", "malformed pair"},
		{"kube-apiserver", "--oidc-issuer-url=https://x --oidc-client-id=x --oidc-ca-file=/none", "--oidc-ca-file: open /none"},
		{"kube-apiserver", "--authentication-token-webhook-version=v2", "neither v1 nor v1beta1"},
		{"kube-apiserver", "--max-requests-inflight=-1", "cannot be negative"},
		{"kube-apiserver", "--shutdown-watch-termination-grace-period=-1s", "shutdown-watch-termination-grace-period, if provided, can not be a negative value"},
		{"kube-apiserver", "--etcd-servers=http://a:1 --etcd-servers-overrides=pods#http://b:1", "--etcd-servers-overrides invalid, must be of format: group/resource#servers, where servers are URLs, semicolon separated"},
		{"kube-apiserver", "--etcd-servers-overrides=/pods#http://b:1", "--etcd-servers must be specified"},
		{"kube-apiserver", "--audit-log-mode=never", "--audit-log-mode: \"never\" is none of"},
		{"kube-apiserver", "--audit-log-path=- --audit-log-truncate-max-event-size=0", "invalid audit truncate log max event size 0, must be a positive number"},
		{"kube-apiserver", "--audit-webhook-config-file=x --audit-webhook-truncate-max-batch-size=1",
			"invalid audit truncate webhook max batch size 1, must be greater than max event size (102400)"},
		{"kube-apiserver", "--enable-admission-plugins=NodeRestriction,ImagePolicyWebhook", "--enable-admission-plugins: ImagePolicyWebhook is one of upstream's that is not supported"},
		{"kube-apiserver", "--enable-admission-plugins=AlwaysPullImage", `there is no plugin "AlwaysPullImage"; it can add AlwaysPullImages, DenyServiceExternalIPs,`},
		{"kube-apiserver", "--enable-admission-plugins=PodNodeSelector --disable-admission-plugins=PodNodeSelector", "both name PodNodeSelector"},
		{"kube-apiserver", "--disable-admission-plugins=PodGroupProtection,Nonsense", `--disable-admission-plugins: there is no plugin "Nonsense"; on are NamespaceLifecycle,`},
		{"kube-apiserver", "--enable-admission-plugins=EventRateLimit", "EventRateLimit has no limits of its own: configure it"},
		{"kube-apiserver", "--admission-control-config-file=/none", "--admission-control-config-file: open /none"},
		{"kube-apiserver", "--admission-control-config-file=" + kubeconfig, "--admission-control-config-file: " + kubeconfig + `: its apiVersion and kind are " "`},
		{"kube-apiserver", "--service-cluster-ip-range=all", `"all" is not an address range`},
		{"kube-apiserver", "--service-cluster-ip-range=10.0.0.0/24,fd00::/108", "one range is supported"},
		{"kube-apiserver", "--requestheader-username-headers=X-Me", "--requestheader-username-headers: [X-Me] is not supported"},
		{"kube-apiserver", "--tracing-config-file=/x", "--tracing-config-file is not a flag"},
		{"kube-apiserver", "--kubelet-client-certificate=x", "must be given together"},
		{"kube-apiserver", "--advertise-address=x", `--advertise-address: "x"`},
		{"kube-apiserver", "--service-account-jwks-uri=http://x", "service-account-jwks-uri requires https scheme, parsed as: http://x"},
		{"kube-apiserver", "--tls-sni-cert-key=a", "expected comma separated certificate and key file paths"},
		{"kube-apiserver", "--tls-sni-cert-key=/none,/none:x", "serving certificate for names"},
		{"kube-apiserver", "--http2-max-streams-per-connection=0", "0 is not above 0"},
		{"kube-apiserver", "--cors-allowed-origins=example.com", "does not pin to start/end of host"},
		{"kube-apiserver", "--strict-transport-security-directives=x", "allowed values: max-age=expireTime"},
		{"kube-apiserver", "--token-auth-file=/none", "--token-auth-file: open /none"},
		{"kube-apiserver", "--runtime-config=batch/v1=false", "batch/v1=false: it is served"},
		{"kube-apiserver", "--etcd-compaction-interval=-1s", "is below 0"},
		{"kube-apiserver", "--endpoint-reconciler-type=x", "is none of lease, master-count, none"},
		{"kube-apiserver", "--event-ttl=1ms", "--event-ttl at least 1s"},
		{"kube-apiserver", "--request-timeout=0s", "--request-timeout and --min-request-timeout must be above 0"},
		{"kube-apiserver", "--service-node-port-range=many", `unable to parse port range "many"`},
		{"kube-apiserver", "--service-node-port-range=40000-30000", "the first not above the last"},
		{"kube-apiserver", "--service-node-port-range=65000+1000", "must be of ports from 1 to 65535"},
	} {
		if err := attempt(t, tt.name, tt.args); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %v, want %q", tt.name, tt.args, err, tt.want)
		}
	}
}

func TestConfigurationFilesThatAreRefused(t *testing.T) {
	const kubelet, proxy, sched = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
		"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n",
		"apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"
	for _, tt := range []struct{ name, text, want string }{
		{"kubelet", "kind: Pod", "it is a <nil> Pod, not a kubelet.config.k8s.io/v1beta1 KubeletConfiguration"},
		{"kubelet", kubelet + "maxPod: 1", `unknown field "maxPod"`},
		{"kubelet", kubelet + "authentication: {x509: {ca: x}}", `unknown field "authentication.x509.ca"`},
		{"kubelet", kubelet + "authentication: yes please", `unknown field "authentication"`},
		{"kubelet", kubelet + "maxPods: 1\nmaxPods: 2", `"maxPods" already set`},
		{"kubelet", kubelet + "maxPods: many", `field maxPods: many: invalid argument`},
		{"kubelet", kubelet + "systemReserved: {cpu: 100m}", "field systemReserved: cpu=100m is not supported: leave it out"},
		{"kubelet", kubelet + "enableServer: false", `field enableServer: false is not supported: leave it out or give "true"`},
		{"kubelet", kubelet + "authorization: {mode: AlwaysAllow}", `field authorization.mode: AlwaysAllow is not supported`},
		{"kubelet", kubelet + "cpuManagerPolicy: static", `field cpuManagerPolicy: static is not supported`},
		{"kubelet", kubelet + "evictionHard: {memory.available: 1%}", "a share of memory is not supported"},
		{"kubelet", kubelet + "registerWithTaints: [{key: a}]", "--register-with-taints"},
		{"kubelet", kubelet + "registerWithTaints: a", "field registerWithTaints: a is not a list"},
		{"kube-proxy", proxy + "mode: ipvs", "--proxy-mode: ipvs is not supported"},
		{"kube-proxy", proxy + "conntrack: {maxPerCore: 32768}", "field conntrack: maxPerCore=32768 is not supported"},
		{"kube-proxy", proxy + "detectLocalMode: BridgeInterface", `field detectLocalMode: BridgeInterface is not supported`},
		{"kube-scheduler", sched + "extenders: [{urlPrefix: x}]", "field extenders: urlPrefix=x is not supported"},
		{"kube-scheduler", sched + "profiles: [{plugins: {score: {disabled: [{name: x}]}}}]", "field profiles: [0].plugins: plugins are those on by default"},
		{"kube-scheduler", sched + "profiles: [{name: x}]", `field profiles: [0]: unknown field "name"`},
		{"kube-scheduler", sched + "podMaxBackoffSeconds: 60", `field podMaxBackoffSeconds: 60 is not supported`},
	} {
		args := "--config=" + write(t, "config.yaml", tt.text)
		if tt.name == "kubelet" {
			args += " --kubeconfig=" + write(t, "kubeconfig", "")
		}
		if err := attempt(t, tt.name, args); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.text, err, tt.want)
		}
	}
}

// parsed gives a program its arguments without running it.
func parsed(t *testing.T, p *program, args string) {
	t.Helper()
	if err := p.parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
}

// What kubeadm v1.37 writes into its manifests, unit and ConfigMaps.
func TestKubeadm(t *testing.T) {
	const conf = " --kubeconfig=/etc/kubernetes/c.conf --authentication-kubeconfig=/etc/kubernetes/c.conf --authorization-kubeconfig=/etc/kubernetes/c.conf" +
		" --bind-address=127.0.0.1 --leader-elect=true"
	manager := newControllerManager()
	parsed(t, manager, "--allocate-node-cidrs=true --client-ca-file=/etc/kubernetes/pki/ca.crt --cluster-cidr=10.244.0.0/16 --cluster-name=kubernetes"+
		" --cluster-signing-cert-file=/etc/kubernetes/pki/ca.crt --cluster-signing-key-file=/etc/kubernetes/pki/ca.key --controllers=*,bootstrapsigner,tokencleaner"+
		" --requestheader-client-ca-file=/etc/kubernetes/pki/front-proxy-ca.crt --root-ca-file=/etc/kubernetes/pki/ca.crt"+
		" --service-account-private-key-file=/etc/kubernetes/pki/sa.key --service-cluster-ip-range=10.96.0.0/12 --use-service-account-credentials=true"+conf)
	f := &controllerManagerFlags{clusterCIDRs: []string{"10.244.0.0/16"}, serviceCIDRs: []string{"10.96.0.0/12"}, allocate: true}
	f.common.opts = &f.opts.Component
	f.opts.Log = slog.New(slog.DiscardHandler)
	f.opts.Controllers.Enabled = []string{"*", "bootstrapsigner", "tokencleaner"}
	if err := f.settle(manager); err != nil {
		t.Fatal(err)
	}
	if c := f.opts.Controllers; !reflect.DeepEqual(c.Enabled, []string{"*"}) || c.ClusterCIDRs[0] != netip.MustParsePrefix("10.244.0.0/16") ||
		c.ServiceCIDR != netip.MustParsePrefix("10.96.0.0/12") {
		t.Errorf("%+v", c)
	}
	parsed(t, newScheduler(), conf)
	parsed(t, newAPIServer(), "--advertise-address=192.0.2.2 --allow-privileged=true --authorization-mode=Node,RBAC --client-ca-file=/etc/kubernetes/pki/ca.crt"+
		" --enable-admission-plugins=NodeRestriction,CertificateApproval,CertificateSigning,ClusterTrustBundleAttest"+
		",NodeDeclaredFeatureValidator,PodResizeValidator --enable-bootstrap-token-auth=true --kubelet-client-certificate=/etc/kubernetes/pki/apiserver-kubelet-client.crt"+
		" --kubelet-client-key=/etc/kubernetes/pki/apiserver-kubelet-client.key --kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname"+
		" --proxy-client-cert-file=/etc/kubernetes/pki/front-proxy-client.crt --proxy-client-key-file=/etc/kubernetes/pki/front-proxy-client.key"+
		" --requestheader-allowed-names=front-proxy-client --requestheader-client-ca-file=/etc/kubernetes/pki/front-proxy-ca.crt"+
		" --requestheader-extra-headers-prefix=X-Remote-Extra- --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User"+
		" --secure-port=6443 --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file=/etc/kubernetes/pki/sa.pub"+
		" --service-account-signing-key-file=/etc/kubernetes/pki/sa.key --service-cluster-ip-range=10.96.0.0/12"+
		" --tls-cert-file=/etc/kubernetes/pki/apiserver.crt --tls-private-key-file=/etc/kubernetes/pki/apiserver.key")
}

// kubeadmKubelet is what kubeadm writes, zeros and all, and a few fields more.
const kubeadmKubelet = `apiVersion: kubelet.config.k8s.io/v1beta1
authentication: {anonymous: {enabled: false}, webhook: {cacheTTL: 0s, enabled: true}, x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}}
authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: example.org
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
registerWithTaints: [{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}, {key: a, value: b, effect: NoExecute}]
evictionHard: {memory.available: 200Mi, nodefs.available: 5%}
resolvConf: /run/systemd/resolve/resolv.conf
maxPods: 20
`

func TestKubeletConfiguration(t *testing.T) {
	p, f := kubeletProgram()
	parsed(t, p, "--config="+write(t, "c.yaml", kubeadmKubelet)+" --kubeconfig="+write(t, "k", "")+
		" --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --pod-infra-container-image=registry.k8s.io/pause:3.10 --max-pods=30 --hostname-override=N1 --node-ip=192.0.2.7")
	if err := f.settle(p); err != nil {
		t.Fatal(err)
	}
	o, k := f.opts, f.opts.Kubelet
	for _, c := range []struct{ got, want any }{
		{o.ClientCAFile, "/etc/kubernetes/pki/ca.crt"}, {o.RuntimeEndpoint, "unix:///run/containerd/containerd.sock"},
		{o.HealthzAddr, "127.0.0.1:10248"}, {o.RuntimeTimeout, 2 * time.Minute}, {k.ClusterDNS, []string{"10.96.0.10"}},
		{k.ClusterDomain, "example.org"}, {k.StaticPodPath, "/etc/kubernetes/manifests"}, {k.StatusPeriod, 10 * time.Second},
		{k.ImageMinAge, 2 * time.Minute}, {*k.ResolvConf, "/run/systemd/resolve/resolv.conf"}, {k.NodeName, "n1"}, {k.NodeIPs, []string{"192.0.2.7"}},
		{k.MaxPods, int64(30)}, // the command line wins
		{k.Eviction.MemoryBytes, int64(200 << 20)}, {k.Eviction.DiskFraction, 0.05}, {k.ServerAddr, "0.0.0.0:10250"}, {k.RootDir, "/var/lib/kubelet"},
		{k.RegisterWithTaints, []corev1.Taint{{Key: "node-role.kubernetes.io/control-plane", Effect: "NoSchedule"}, {Key: "a", Value: "b", Effect: "NoExecute"}}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%v, want %v", c.got, c.want)
		}
	}
}

func TestSchedulerConfiguration(t *testing.T) {
	p, f := schedulerProgram()
	parsed(t, p, "--leader-elect-lease-duration=9s --config="+write(t, "c.yaml", `apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
clientConnection: {kubeconfig: /k, qps: 7, burst: 9}
leaderElection: {leaderElect: false, leaseDuration: 30s, renewDeadline: 20s, resourceName: mine}
profiles: [{schedulerName: one}, {schedulerName: two, plugins: {}}]
`))
	if err := f.settle(p); err != nil {
		t.Fatal(err)
	}
	want := cluster.Election{Off: true, LeaseDuration: 9 * time.Second, RenewDeadline: 20 * time.Second, RetryPeriod: 2 * time.Second, Name: "mine", Namespace: "kube-system"}
	if o := f.opts; o.Election != want || o.Connection.Kubeconfig != "/k" || o.Connection.QPS != 7 || o.Connection.Burst != 9 ||
		o.Serving.Address != "0.0.0.0:10259" || !reflect.DeepEqual(o.Profiles, []scheduler.Profile{{SchedulerName: "one"}, {SchedulerName: "two"}}) {
		t.Errorf("%+v", o)
	}
}

func TestProxyConfiguration(t *testing.T) {
	p, f := kubeProxyProgram()
	parsed(t, p, "--hostname-override=n1 --config="+write(t, "c.yaml", `apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 192.0.2.9
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: 127.0.0.1:0
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
`))
	if err := f.settle(p); err != nil {
		t.Fatal(err)
	}
	if o := f.opts; o.NodeName != "n1" || o.NodeIP.String() != "192.0.2.9" || o.ClusterCIDRs[0].String() != "10.244.0.0/16" || o.HealthzAddr != "0.0.0.0:10256" ||
		o.MetricsAddr != "" || o.Connection.Kubeconfig != "/var/lib/kube-proxy/kubeconfig.conf" || o.Connection.QPS != 5 {
		t.Errorf("%+v", o)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, make := range programs() {
		var out bytes.Buffer
		p := make()
		if err := p.execute(t.Context(), []string{"--help"}, &out, io.Discard); err != nil || !strings.Contains(out.String(), "Usage: skiff "+p.name) {
			t.Errorf("%s --help: %v\n%s", p.name, err, &out)
		}
		out.Reset()
		if err := make().execute(t.Context(), []string{"--version"}, &out, io.Discard); err != nil || out.String() != "Kubernetes "+cluster.KubernetesVersion+"\n" {
			t.Errorf("%s --version: %v %q", p.name, err, &out)
		}
	}
}

// docs/FLAGS.md is written from the programs themselves.
func TestFlagsDocument(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Flags

The components as programs of their own take upstream v1.37's flags, and the kubelet, kube-proxy and
scheduler its configuration files. A flag or field that is not here is an error that names it.

*Harmless* flags are accepted and change nothing: they tune how upstream's own code works inside - how
often, how many at once, what it logs of itself - and neither an API object nor what a client sees
depends on them. Flags marked *only* have one meaning here; any other value is an error.

Written by ` + "`go test ./cli -run TestFlagsDocument -rewrite`" + `; etcd's flags are in ` + "`skiff etcd --help`" + `.
`)
	for _, make := range programs() {
		p := make()
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n| flag | default | meaning |\n|---|---|---|\n", p.name, p.short)
		p.fs.VisitAll(func(f *pflag.Flag) {
			if _, any := f.Value.(*anyValue); !any {
				fmt.Fprintf(&b, "| `--%s` | %s | %s |\n", f.Name, strings.Trim(f.DefValue, "[]"), f.Usage)
			}
		})
		b.WriteString("\nHarmless:\n\n")
		for _, h := range p.harmless {
			fmt.Fprintf(&b, "- %s: `%s`\n", h.why, strings.ReplaceAll(strings.Join(strings.Fields(h.names), "`, `"), "?", ""))
		}
	}
	const path = "../docs/FLAGS.md"
	if *rewrite {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(path); err != nil || string(have) != b.String() {
		t.Errorf("%s is not what the programs take (%v): go test ./cli -run TestFlagsDocument -rewrite", path, err)
	}
}

// /flagz tells what was given, and what holds of the rest that matters.
func TestFlagsAsTheyAreTold(t *testing.T) {
	p, _ := apiServerProgram()
	if err := p.parse([]string{"--secure-port=7443", "--goaway-chance=0.001", "--etcd-servers=a,b"}); err != nil {
		t.Fatal(err)
	}
	flags := p.flags()
	for name, want := range map[string]string{"secure-port": "7443", "goaway-chance": "0.001", "etcd-servers": "[a,b]", "event-ttl": "1h0m0s", "etcd-prefix": "/registry"} {
		if flags[name] != want {
			t.Errorf("--%s is %q, want %q", name, flags[name], want)
		}
	}
	if v, ok := flags["permit-port-sharing"]; ok {
		t.Errorf("a flag without effect that was not given is %q", v)
	}
	o, err := apiSettings([]string{"audit-log-path=-", "max-requests-inflight=7"})
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"audit-log-path": "-", "max-requests-inflight": "7"}; !reflect.DeepEqual(o.Flags, want) {
		t.Errorf("handed on: %v", o.Flags)
	}
}

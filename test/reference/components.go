package reference

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// part is a component as this cluster runs it: the flags are kubeadm's, as
// far as they matter here, and the same for every program.
type part struct {
	name    string
	program Program
	args    []string
	before  func() error
	ready   func(context.Context) error
	after   func(context.Context) error
}

// parts lists the components in the order they are started.
func (c *Cluster) parts() []part {
	o := c.opts
	return []part{
		{name: "etcd", program: o.Etcd, args: c.etcdArgs(), ready: c.get(c.EtcdURL + "/health")},
		{name: "kube-apiserver", program: o.APIServer, args: c.apiServerArgs(), ready: c.get("https://" + c.at("kube-apiserver") + "/readyz")},
		{name: "kube-controller-manager", program: o.ControllerManager, args: c.controllerManagerArgs(), ready: c.get("https://" + c.at("kube-controller-manager") + "/healthz")},
		{name: "kube-scheduler", program: o.Scheduler, args: c.schedulerArgs(), ready: c.get("https://" + c.at("kube-scheduler") + "/healthz")},
		c.runtime(o.Runtime),
		{name: "kubelet", program: o.Kubelet, args: c.kubeletArgs(), before: c.writeKubeletConfig, ready: c.nodeReady},
		{name: "kube-proxy", program: o.Proxy, args: c.proxyArgs(), ready: c.get("http://" + c.at("kube-proxy") + "/healthz")},
		{name: "hollow", program: o.Hollow, args: []string{"--nodes=" + fmt.Sprint(o.HollowNodes), "--kubeconfig=" + c.Kubeconfig}, ready: c.nodesReady},
	}
}

func (c *Cluster) etcdArgs() []string {
	peer := "http://127.0.0.1:" + c.port("etcd-peer")
	args := []string{
		"--name=" + NodeName, "--data-dir=" + filepath.Join(c.Dir, "etcd"),
		"--listen-client-urls=" + c.EtcdURL, "--advertise-client-urls=" + c.EtcdURL,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=" + NodeName + "=" + peer,
		"--log-level=warn",
	}
	if c.opts.PlainEtcd {
		return args
	}
	a := c.Assets
	return append(args, "--client-cert-auth=true", "--trusted-ca-file="+a.EtcdCA.CertFile,
		"--cert-file="+a.EtcdServer.CertFile, "--key-file="+a.EtcdServer.KeyFile)
}

// EtcdctlArgs are the flags with which etcdctl reaches this cluster's etcd.
func (c *Cluster) EtcdctlArgs() []string {
	a := c.Assets
	return []string{"--endpoints=" + c.EtcdURL, "--cacert=" + a.EtcdCA.CertFile, "--cert=" + a.EtcdHealthcheck.CertFile, "--key=" + a.EtcdHealthcheck.KeyFile}
}

func (c *Cluster) apiServerArgs() []string {
	a := c.Assets
	args := []string{
		"--bind-address=" + c.ip, "--secure-port=" + c.port("kube-apiserver"), "--advertise-address=" + c.advertised(),
		"--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--client-ca-file=" + a.CA.CertFile, "--tls-cert-file=" + a.APIServer.CertFile, "--tls-private-key-file=" + a.APIServer.KeyFile,
		"--enable-bootstrap-token-auth=true", "--etcd-servers=" + c.EtcdURL,
		"--kubelet-client-certificate=" + a.APIServerKubeletClient.CertFile, "--kubelet-client-key=" + a.APIServerKubeletClient.KeyFile,
		"--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
		"--proxy-client-cert-file=" + a.FrontProxyClient.CertFile, "--proxy-client-key-file=" + a.FrontProxyClient.KeyFile,
		"--requestheader-client-ca-file=" + a.FrontProxyCA.CertFile, "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + a.ServiceAccountPublicKeyFile, "--service-account-signing-key-file=" + a.ServiceAccountKeyFile,
		"--service-cluster-ip-range=" + serviceCIDR,
	}
	if c.opts.PlainEtcd {
		return args
	}
	return append(args, "--etcd-cafile="+a.EtcdCA.CertFile, "--etcd-certfile="+a.APIServerEtcd.CertFile, "--etcd-keyfile="+a.APIServerEtcd.KeyFile)
}

// advertised is what the kubernetes Service leads to. A loopback address is
// not allowed there; on loopback nobody uses the Service, so one that leads
// nowhere will do.
func (c *Cluster) advertised() string {
	if c.box == nil {
		return "192.0.2.1"
	}
	return c.ip
}

func (c *Cluster) controllerManagerArgs() []string {
	a := c.Assets
	return []string{
		"--kubeconfig=" + a.ControllerManagerConf, "--authentication-kubeconfig=" + a.ControllerManagerConf, "--authorization-kubeconfig=" + a.ControllerManagerConf,
		"--bind-address=" + c.ip, "--secure-port=" + c.port("kube-controller-manager"),
		"--client-ca-file=" + a.CA.CertFile, "--root-ca-file=" + a.CA.CertFile, "--requestheader-client-ca-file=" + a.FrontProxyCA.CertFile,
		"--cluster-signing-cert-file=" + a.CA.CertFile, "--cluster-signing-key-file=" + a.CA.KeyFile,
		"--service-account-private-key-file=" + a.ServiceAccountKeyFile, "--use-service-account-credentials=true",
		"--controllers=*,bootstrapsigner,tokencleaner", "--leader-elect=true", "--cluster-name=kubernetes",
		"--allocate-node-cidrs=true", "--cluster-cidr=" + podCIDR, "--service-cluster-ip-range=" + serviceCIDR,
	}
}

func (c *Cluster) schedulerArgs() []string {
	conf := c.Assets.SchedulerConf
	return []string{
		"--kubeconfig=" + conf, "--authentication-kubeconfig=" + conf, "--authorization-kubeconfig=" + conf,
		"--bind-address=" + c.ip, "--secure-port=" + c.port("kube-scheduler"), "--leader-elect=true",
	}
}

func (c *Cluster) proxyArgs() []string {
	return []string{
		"--kubeconfig=" + c.Assets.KubeProxyConf, "--proxy-mode=nftables", "--hostname-override=" + NodeName, "--cluster-cidr=" + podCIDR,
		"--healthz-bind-address=" + c.at("kube-proxy"), "--metrics-bind-address=" + c.at("kube-proxy-metrics"),
		// The host's to change, and not ours.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0", "--oom-score-adj=0",
	}
}

func (c *Cluster) kubeletArgs() []string {
	return []string{
		"--config=" + c.kubeletConfig(), "--kubeconfig=" + c.Assets.KubeletConf, "--hostname-override=" + NodeName, "--node-ip=" + c.ip,
		"--root-dir=/var/lib/kubelet",
	}
}

func (c *Cluster) kubeletConfig() string { return filepath.Join(c.Dir, "conf", "kubelet.yaml") }

func (c *Cluster) writeKubeletConfig() error {
	a := c.Assets
	if err := os.WriteFile(filepath.Join(c.Dir, "conf", "resolv.conf"), []byte("nameserver 127.0.0.1\n"), 0o644); err != nil {
		return err
	}
	lines := []string{
		"apiVersion: kubelet.config.k8s.io/v1beta1", "kind: KubeletConfiguration",
		"address: " + c.ip, "port: " + c.port("kubelet"), "healthzBindAddress: " + c.ip, "healthzPort: " + c.port("kubelet-healthz"),
		"authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: " + a.CA.CertFile + "}}",
		"authorization: {mode: Webhook}",
		"tlsCertFile: " + a.Kubelet.CertFile, "tlsPrivateKeyFile: " + a.Kubelet.KeyFile,
		"clusterDNS: [10.96.0.10]", "clusterDomain: cluster.local", "resolvConf: " + filepath.Join(c.Dir, "conf", "resolv.conf"),
		"containerRuntimeEndpoint: unix://" + c.criSocket(), "cgroupDriver: cgroupfs", "cgroupRoot: /" + c.cgroup,
		"failSwapOn: false", "volumePluginDir: " + filepath.Join(c.Dir, "volume-plugins"),
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		lines = append(lines, "failCgroupV1: false")
	}
	if !mayLowerOOMScore() {
		lines = append(lines, "oomScoreAdj: 0")
	}
	return os.WriteFile(c.kubeletConfig(), []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

// Client is a client of the administrator.
func (c *Cluster) Client() (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return kubernetes.NewForConfig(cfg)
}

func (c *Cluster) nodeReady(ctx context.Context) error { return c.ready(ctx, 1) }

func (c *Cluster) nodesReady(ctx context.Context) error {
	n := c.opts.HollowNodes
	if !c.opts.Kubelet.absent() {
		n++
	}
	return c.ready(ctx, n)
}

// ready succeeds once n nodes are Ready and untainted.
func (c *Cluster) ready(ctx context.Context, n int) error {
	client, err := c.Client()
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	got, last := 0, "no node"
	for _, node := range nodes.Items {
		why := fmt.Sprintf("taints %v", node.Spec.Taints)
		good := len(node.Spec.Taints) == 0
		for _, cond := range node.Status.Conditions {
			if cond.Type == "Ready" && cond.Status != "True" {
				good, why = false, cond.Message
			}
		}
		if good && len(node.Status.Conditions) > 0 {
			got++
		} else {
			last = node.Name + ": " + why
		}
	}
	if got < n {
		return fmt.Errorf("%d of %d nodes are ready (%s)", got, n, last)
	}
	return nil
}

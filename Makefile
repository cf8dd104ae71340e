# Skiff: everything a newcomer types. `make run` first, `make test` second.
# Needs Go 1.26, make and (for run and test) root; nothing else.

GO         ?= go
DATA_DIR   ?= /var/lib/skiff
VERSION    := $(shell cat VERSION)
# Reproducible: no paths, no build id, no VCS stamp, no cgo.
# cli/slim says what the overlay is for; it makes the binary a quarter smaller.
SLIM        = $(shell GO="$(GO)" sh cli/slim/overlay.sh bin/.slim)
# What only commands use, and what runs seldom, is compiled without inlining, which takes 4.7 MB less and is not felt there.
COLD       := k8s.io/kubectl/... k8s.io/cli-runtime/... k8s.io/metrics/... sigs.k8s.io/kustomize/... go.etcd.io/etcd/etcdctl/... \
	go.uber.org/zap/... github.com/olekukonko/... github.com/cheggaaa/... github.com/spf13/... github.com/russross/... \
	github.com/godbus/... github.com/google/gnostic-models/... github.com/google/go-containerregistry/... \
	github.com/vishvananda/... k8s.io/client-go/applyconfigurations/... k8s.io/client-go/informers/... \
	k8s.io/client-go/kubernetes/... k8s.io/client-go/tools/clientcmd/... k8s.io/api/extensions/... \
	k8s.io/api/.../v1alpha... k8s.io/api/.../v1beta... k8s.io/apiextensions-apiserver/.../v1beta1 \
	golang.org/x/text/... go.yaml.in/... github.com/antlr4-go/... github.com/google/cel-go/parser/... github.com/google/cel-go/ext \
	k8s.io/cri-api/... k8s.io/kube-openapi/... k8s.io/apiextensions-apiserver/... k8s.io/api/resource/... k8s.io/api/autoscaling/... \
	k8s.io/api/certificates/... k8s.io/api/flowcontrol/... k8s.io/api/admissionregistration/... k8s.io/api/networking/... k8s.io/api/storage/... \
	k8s.io/api/policy/... k8s.io/api/node/... k8s.io/api/scheduling/... k8s.io/api/rbac/... k8s.io/api/authorization/... \
	k8s.io/api/authentication/... mvdan.cc/sh/... github.com/json-iterator/... google.golang.org/genproto/... net/http/pprof internal/profile \
	github.com/google/cel-go/common/stdlib k8s.io/apiserver/pkg/cel/library github.com/fxamacker/cbor/... github.com/gorilla/... \
	github.com/moby/... github.com/prometheus/common/... github.com/prometheus/procfs/... k8s.io/component-helpers/... k8s.io/streaming/... \
	$(addprefix github.com/skiff-project/skiff/,$(addsuffix /...,api bootstrap cli cluster controller dns kubelet network proxy runtime sim))
BUILD       = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false $(SLIM) $(COLD:%=-gcflags=%=-l)
KUBEVERSION := k8s.io/component-base/version
# Code off the 2 MB grid: else the kernel maps it by huge pages, and an idle
# cluster holds 24 MB more of it than it uses.
LDFLAGS    := -T 0x411000 -s -w -buildid= -X github.com/skiff-project/skiff/cluster.Version=$(VERSION) \
	-X $(KUBEVERSION).gitVersion=v1.37.2 -X $(KUBEVERSION).gitMajor=1 -X $(KUBEVERSION).gitMinor=37 -X $(KUBEVERSION).gitTreeState=clean
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PACKAGES   := ./...

.PHONY: build run test test-long test-unit test-scripts lint reproducible clean-cluster clean bench conformance conformance-report envtest store-long robustness fuzz etcd-long h2spec openapi

build: ## bin/skiff, one static binary
	@GO="$(GO)" sh runtime/embedded/build.sh
	@mkdir -p bin
	@echo "build bin/skiff"
	@$(BUILD) -ldflags '$(LDFLAGS)' -o bin/skiff ./cmd/skiff

run: build ## start a cluster and the demo
	bin/skiff up -d --data-dir $(DATA_DIR)
	bin/skiff demo --data-dir $(DATA_DIR)

test: lint test-unit test-scripts ## everything, under 15 minutes on 2 cores

lint:
	@GO="$(GO)" sh runtime/embedded/build.sh
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt -w:"; echo "$$bad"; exit 1; fi
	CGO_ENABLED=0 $(GO) vet $(PACKAGES)
	CGO_ENABLED=0 $(GO) run $(STATICCHECK) $(PACKAGES)

# Debian's stock etcd, unpacked beside, not installed: no service starts.
bin/etcd/usr/bin/etcd:
	mkdir -p bin/etcd
	cd bin/etcd && apt-get download -q -o APT::Sandbox::User=root etcd-server && dpkg-deb -x etcd-server_*.deb .

test-unit:
	@GO="$(GO)" sh runtime/embedded/build.sh
	-@[ -n "$$(command -v etcd)" ] || $(MAKE) --no-print-directory bin/etcd/usr/bin/etcd # without it the tests that need it say so
	CGO_ENABLED=0 $(GO) test $$($(GO) list $(PACKAGES) | grep -v /test/)

test-scripts: build ## txtar scripts: the real binary, real containers
	CGO_ENABLED=0 SKIFF_BINARY=$(CURDIR)/bin/skiff $(GO) test -count=1 -timeout 14m ./test/...

test-long: test extensions reproducible store-long robustness etcd-long differential h2spec envtest openapi

openapi: ## the table of types held against upstream's generator
	SKIFF_TEST_LONG=1 CGO_ENABLED=0 $(GO) test -count=1 ./api/openapi -run Upstream -v

etcd-long: ## etcd 3.7: the transcripts and snapshots of skiff etcd held against it, and the store on it
	cd test/reference/etcd && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/reference/etcd go.etcd.io/etcd/server/v3
	cd test/reference/etcd && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/reference/etcdutl go.etcd.io/etcd/etcdutl/v3
	CGO_ENABLED=0 $(GO) test -count=1 ./cli/etcd -run 'Transcripts|Snapshots' -stock $(CURDIR)/bin/reference/etcd
	SKIFF_ETCD=$(CURDIR)/bin/reference/etcd SKIFF_TEST_LONG=1 CGO_ENABLED=0 $(GO) test -count=1 -timeout 20m ./store/etcdstore

h2spec: ## the API server's HTTP/2 against the specifications, by h2spec's 145 tests
	cd test/h2spec && CGO_ENABLED=0 $(GO) build -trimpath -o $(CURDIR)/bin/h2spec github.com/summerwind/h2spec/cmd/h2spec
	SKIFF_H2SPEC=$(CURDIR)/bin/h2spec CGO_ENABLED=0 $(GO) test -count=1 ./internal/h2 -run Spec -v

store-long: ## the store: every bit of a log flipped, every boundary of ten traces a power cut
	CGO_ENABLED=0 SKIFF_TEST_LONG=1 $(GO) test -count=1 -timeout 0 -v -run 'Every' ./store/embedded

# HISTORIES=10m: for how long
robustness: build ## histories of skiff etcd under faults, checked for linearizability, for an hour
	CGO_ENABLED=0 SKIFF_BINARY=$(CURDIR)/bin/skiff SKIFF_ROBUSTNESS=$(or $(HISTORIES),1h) $(GO) test -count=1 -timeout 0 -run Histories ./test/robustness -v

reproducible: ## two builds are byte-identical
	@GO="$(GO)" sh runtime/embedded/build.sh
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/skiff.1 ./cmd/skiff
	GOFLAGS= $(BUILD) -a -ldflags '$(LDFLAGS)' -o bin/skiff.2 ./cmd/skiff
	cmp bin/skiff.1 bin/skiff.2 && rm bin/skiff.1 bin/skiff.2

FUZZ     ?= ./store/...
FUZZTIME ?= 10m
fuzz: ## every fuzz target of the packages FUZZ, one after the other, FUZZTIME each
	@n=0; for p in $$($(GO) list $(FUZZ)); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		n=$$((n+1)); echo "$$n: $$p $$f"; \
		CGO_ENABLED=0 $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s -parallel $(or $(PARALLEL),1) $$p || exit 1; \
	done; done; echo "$$n fuzz targets clean, $(FUZZTIME) each"

envtest: build ## controller-runtime's own envtest package against this binary
	cd test/envtest && CGO_ENABLED=0 SKIFF_BINARY=$(CURDIR)/bin/skiff $(GO) test -count=1 ./...

# FOCUS=/operator: one of them
extensions: build ## operators and the like, unmodified, built from their Go modules (minutes the first time), as root
	CGO_ENABLED=0 SKIFF_EXTENSIONS=1 SKIFF_BINARY=$(CURDIR)/bin/skiff $(GO) test -count=1 -timeout 60m ./test/scripts -run 'TestExtensions$(FOCUS)' -v

# LIST=tests.tsv (default: every conformance test) STAGE=1,3 FOCUS=regexp PROCS=4
conformance: build ## upstream's conformance suite against a fresh cluster of two nodes
	cd test/conformance && CGO_ENABLED=0 $(GO) run . --skiff $(CURDIR)/bin/skiff --out $(CURDIR)/bin/conformance \
		--list '$(if $(LIST),$(abspath $(LIST)))' --stage '$(STAGE)' --focus '$(FOCUS)' --procs $(or $(PROCS),4)

.PHONY: reference interop differential extensions
reference: ## upstream's Kubernetes and etcd, built from the Go module proxy into bin/reference
	CGO_ENABLED=0 $(GO) run ./test/interop --build-only

# FOCUS=regexp: only these cells, and docs/INTEROP.md stays as it is
interop: build ## each component swapped with upstream's, one at a time (as root); writes docs/INTEROP.md
	CGO_ENABLED=0 $(GO) run ./test/interop --skiff $(CURDIR)/bin/skiff --focus '$(FOCUS)' $(if $(FOCUS),,--out $(CURDIR)/docs/INTEROP.md)

# FOCUS=regexp: report only these requests; ONLY=regexp: send only those about these kinds or tables
differential: build ## the same requests to Skiff's API server and upstream's; differences that known.txt does not explain fail
	CGO_ENABLED=0 $(GO) run ./test/differential --skiff $(CURDIR)/bin/skiff --focus '$(FOCUS)' --only '$(ONLY)'

# SUITE=start,api (default: all) ROUNDS=5; BENCH holds further flags of test/bench, such as -only=skiff, or
# '-kubeconfig FILE' to measure a cluster that runs already (SUITE=api,bulk,sched,scale), whosever it is
bench: build ## Skiff against upstream, side by side; writes docs/BENCHMARKS.md
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o bin/bench ./test/bench
	bin/bench -suite '$(SUITE)' -rounds $(or $(ROUNDS),5) $(BENCH)

# The newest result of each test, whichever run it comes from; LIST names the stages.
conformance-report: ## docs/CONFORMANCE.md
	cd test/conformance && CGO_ENABLED=0 $(GO) run . --report $(CURDIR)/docs/CONFORMANCE.md --out $(CURDIR)/bin/conformance \
		--list '$(if $(LIST),$(abspath $(LIST)))'

clean-cluster: ## leaves no process, mount, netns, nftables table or file behind
	bin/skiff down --purge --data-dir $(DATA_DIR)

clean:
	rm -rf bin runtime/embedded/bin/skiff-shim

# Skiff: everything a newcomer types. `make run` first, `make test` second.
# Needs Go 1.26, make and (for run and test) root; nothing else.

GO         ?= go
DATA_DIR   ?= /var/lib/skiff
VERSION    := $(shell cat VERSION)
# Reproducible: no paths, no build id, no VCS stamp, no cgo.
BUILD      := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
LDFLAGS    := -s -w -buildid= -X github.com/skiff-project/skiff/cluster.Version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PACKAGES   := ./...

.PHONY: build run test test-long test-unit test-scripts lint reproducible clean-cluster clean bench

build: ## bin/skiff, one static binary
	@GO="$(GO)" sh runtime/embedded/build.sh
	@mkdir -p bin
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/skiff ./cmd/skiff

run: build ## start a cluster and the demo
	bin/skiff up -d --data-dir $(DATA_DIR)
	bin/skiff demo --data-dir $(DATA_DIR)

test: lint test-unit test-scripts ## everything, under 15 minutes on 2 cores

lint:
	@GO="$(GO)" sh runtime/embedded/build.sh
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt -w:"; echo "$$bad"; exit 1; fi
	CGO_ENABLED=0 $(GO) vet $(PACKAGES)
	CGO_ENABLED=0 $(GO) run $(STATICCHECK) $(PACKAGES)

test-unit:
	@GO="$(GO)" sh runtime/embedded/build.sh
	CGO_ENABLED=0 $(GO) test $$($(GO) list $(PACKAGES) | grep -v /test/)

test-scripts: build ## txtar scripts: the real binary, real containers
	CGO_ENABLED=0 SKIFF_BINARY=$(CURDIR)/bin/skiff $(GO) test -count=1 -timeout 14m ./test/...

test-long: test reproducible

reproducible: ## two builds are byte-identical
	@GO="$(GO)" sh runtime/embedded/build.sh
	$(BUILD) -ldflags '$(LDFLAGS)' -o bin/skiff.1 ./cmd/skiff
	GOFLAGS= $(BUILD) -a -ldflags '$(LDFLAGS)' -o bin/skiff.2 ./cmd/skiff
	cmp bin/skiff.1 bin/skiff.2 && rm bin/skiff.1 bin/skiff.2

clean-cluster: ## leaves no process, mount, netns, nftables table or file behind
	bin/skiff down --purge --data-dir $(DATA_DIR)

clean:
	rm -rf bin runtime/embedded/bin/skiff-shim

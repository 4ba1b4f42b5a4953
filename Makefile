# Everything starts from a bare Debian machine with Go: each goal installs what it needs (as root), or
# says which command does.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO      ?= go
FUZZTIME ?= 20s
# What runs under the race detector: everything that shares memory between goroutines and holds no KVM guest.
RACE ?= ./audit/... ./checkpoint/... ./cluster/... ./console/... ./fencing/... ./lockstep/... ./replica/... ./tests/history/... ./vmm/bus/... ./vmm/memory/... ./vmm/virtio/...

.PHONY: all build demo test unit race e2e bench lint fuzz clean setup

all: build

# One static binary.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/pollux ./cmd/pollux

# Two hosts and a witness on this machine, and a guest that outlives its host.
demo: build
	@sh tests/setup.sh demo
	bin/pollux demo

test: setup build unit race e2e

setup:
	@sh tests/setup.sh test

unit:
	$(GO) vet ./...
	$(GO) test -timeout 15m $$($(GO) list ./... | grep -v /tests/e2e)

race:
	$(GO) test -race -short -timeout 20m $(RACE)

# Real guests on real KVM, real faults. Skipped, with the reason, where the machine can't.
e2e: build
	$(GO) test -count=1 -timeout 30m -v ./tests/e2e/...

bench: build
	@sh tests/setup.sh demo
	bin/pollux bench

# The linter is built once, which takes minutes, and kept under .cache.
GOLANGCI_VERSION := v2.15.0
GOLANGCI := .cache/bin/golangci-lint-$(GOLANGCI_VERSION)

$(GOLANGCI):
	mkdir -p .cache/bin
	GOBIN=$(CURDIR)/.cache/bin GOFLAGS=-mod=mod $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv .cache/bin/golangci-lint $@

lint: $(GOLANGCI)
	GOLANGCI_LINT_CACHE=$(CURDIR)/.cache/lint $(GOLANGCI) run ./...

# Each fuzz target for FUZZTIME.
fuzz:
	@set -e; grep -rlE '^func Fuzz' --include='*_test.go' . | while read -r file; do \
		for target in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$file"); do \
			echo "$$(dirname "$$file") $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")"; \
		done; \
	done

clean:
	rm -rf bin
	$(GO) clean -testcache

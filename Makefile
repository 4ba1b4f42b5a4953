# Everything starts from a bare Debian machine with Go: each goal installs what it needs (as root), or
# says which command does.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GO      ?= go
FUZZTIME ?= 20s
# Names the skipped tests, and fails where one was skipped that this machine could have run.
REPORT  := $(GO) run ./tests/report
# What runs under the race detector: everything that shares memory between goroutines and holds no KVM guest.
RACE ?= ./audit/... ./checkpoint/... ./cluster/... ./console/... ./fencing/... ./lockstep/... ./replica/... ./tests/history/... ./vmm/bus/... ./vmm/memory/... ./vmm/virtio/...

.PHONY: all build demo demo-faults test unit race e2e bench lint fuzz model sim sim-mutants clean setup \
	lab lab-test lab-ci lab-smoke lab-kvm kvm-elsewhere

all: build

# One static binary.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/pollux ./cmd/pollux

# Two hosts and a witness on this machine, and a guest that outlives its host.
demo: build
	@sh tests/setup.sh demo
	@if [ "$$($(LAB) wanted)" = yes ]; then sh tests/setup.sh lab && $(LAB) demo; else bin/pollux demo; fi

# Every fault, unattended, ROUNDS times.
ROUNDS ?= 20
demo-faults: build
	@sh tests/setup.sh demo
	@set -e; for fault in kill power hang link isolate; do \
		echo "== $$fault"; bin/pollux demo --fault $$fault --rounds $(ROUNDS) --load -o json; \
	done

# The lab: emulated machines with KVM (tests/lab/README.md). What it needs is kept in .cache/lab.
LAB := $(GO) run ./tests/lab/cmd/lab
# Its tests, and the time that they may take in all.
LAB_TESTS ?= ./tests/lab/...
LAB_RUN   ?= .
LAB_TIME  ?= 120m
# The tests that need a KVM, for a machine that has none; and what of the lab's own tests a change must pass (LAB_CI_*).
LAB_KVM_TESTS ?= ./vmm/kvm ./vmm ./cmd/pollux ./cmd/pollux/dataplane ./lockstep ./guests/ledger ./tests/e2e
# Many rounds of every fault, with the timeouts of real machines, are too much for an emulated one.
LAB_KVM_SKIP  ?= ^TestFaults$$
LAB_CI_TESTS  ?= ./tests/lab
LAB_CI_RUN    ?= ^(TestHost|TestSmoke|TestStockKernelOutlivesItsHost)$$
LAB_CI_TIME   ?= 20m

lab:
	@sh tests/setup.sh lab
	$(LAB) build

lab-test: lab
	POLLUX_LAB_TEST=1 $(GO) test -json -count=1 -p 1 -timeout $(LAB_TIME) -run '$(LAB_RUN)' $(LAB_TESTS) | $(REPORT)

lab-ci:
	@$(MAKE) --no-print-directory lab-test LAB_TESTS='$(LAB_CI_TESTS)' LAB_RUN='$(subst $$,$$$$,$(LAB_CI_RUN))' LAB_TIME='$(LAB_CI_TIME)'

# A stock Debian kernel on `pollux vm run`.
lab-smoke: lab
	POLLUX_LAB_TEST=1 $(GO) test -count=1 -v -timeout 10m -run '^TestSmoke$$' ./tests/lab

# The tests that need a KVM, one package after the other, each on a lab host of its own.
lab-kvm: build lab
	$(GO) test -json -count=1 -p 1 -exec '$(CURDIR)/.cache/lab/bin/lab exec' -short -timeout 15m -skip '$(LAB_KVM_SKIP)' $(LAB_KVM_TESTS) | $(REPORT)

kvm-elsewhere:
	@if [ "$$($(LAB) wanted)" = yes ]; then $(MAKE) --no-print-directory lab-kvm; fi

test: setup build unit race e2e kvm-elsewhere

setup:
	@sh tests/setup.sh test

unit:
	$(GO) vet ./...
	$(GO) test -json -timeout 15m $$($(GO) list ./... | grep -v /tests/e2e) | $(REPORT)

race:
	$(GO) test -json -race -short -timeout 20m $(RACE) | $(REPORT)

# Real guests on real KVM, real faults. Skipped, with the reason, where the machine can't.
e2e: build
	$(GO) test -json -count=1 -timeout 30m ./tests/e2e/... | $(REPORT)

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

# Random schedules of the real decisions, with every kind of fault: some minutes on two cores.
SCHEDULES ?= 1000000
sim:
	$(GO) run ./tests/sim/cmd/pollux-sim --schedules $(SCHEDULES)

# Deliberate mistakes, and how soon the simulation finds each.
sim-mutants:
	$(GO) run ./tests/sim/cmd/pollux-sim --mutants

# Each fuzz target for FUZZTIME.
fuzz:
	@set -e; grep -rlE '^func Fuzz' --include='*_test.go' . | while read -r file; do \
		for target in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$file"); do \
			echo "$$(dirname "$$file") $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")"; \
		done; \
	done

# The protocol as a formal model, and the mistakes that it must find.
model:
	@sh tests/setup.sh model
	docs/model/check.sh

clean:
	rm -rf bin
	$(GO) clean -testcache

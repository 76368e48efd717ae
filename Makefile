# The front door. `make help` lists what there is; CI runs `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# rustup and Go install outside PATH on a fresh machine.
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/local/go/bin:/usr/sbin:/sbin
CACHE := $(or $(ATLAS_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/atlas-operator)
export PATH := $(PATH):$(CACHE)/tools/bin

# Where `make setup` leaves the control plane's programs; the folder's name is the hash of what builds them.
KUBE := $(CACHE)/kube/$(shell cd tests/controlplane && cat go.mod go.sum *.go | sha256sum | cut -c1-16)
HELM = $(firstword $(wildcard $(KUBEBUILDER_ASSETS)/helm $(KUBE)/helm) helm)

# `make run CLUSTER=current` uses the cluster of KUBECONFIG instead of the local one.
CLUSTER ?= local
ARGS ?=

.PHONY: help setup run test lint fmt generate bench load chaos soak neon miri clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install and build what is missing, and say so
	@tests/setup.sh all

run: ## the main job, live: a local cluster, a model, a lost card, the fallback (ARGS=--once for the tour alone)
	@tests/setup.sh run
	@target/debug/atlas-local run --cluster $(CLUSTER) $(ARGS)

test: ## everything that CI runs
	@tests/setup.sh tools
	@$(MAKE) --no-print-directory lint
	cargo build --workspace --bins $$(tests/setup.sh features)
	cargo test --workspace $$(tests/setup.sh features)

lint: ## formatting, clippy, licences, chart
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $$(tests/setup.sh features) -- -D warnings
	cargo deny --log-level error check licenses bans sources
	$(HELM) lint --strict helm/atlas-operator

fmt: ## format the code
	cargo fmt --all

generate: ## write the generated files: CRDs, chart CRDs, plain manifests
	cargo run --quiet -p atlas-crds --bin crdgen
	ATLAS_UPDATE=1 cargo test --quiet -p atlas-tests --test chart plain_manifests

bench: ## measure what docs/benchmarks.md reports (ARGS=--quick for a few minutes)
	@tests/setup.sh run
	tests/bench_cpu.py compare $(filter --quick,$(ARGS))
	tests/bench_server.py $(filter --quick,$(ARGS))
	target/debug/atlas-local bench $(if $(filter --quick,$(ARGS)),--apply-rounds 3 --kill-rounds 2 --node-rounds 1,$(ARGS))

load: ## 64 streams at a time for ten minutes, by wrk: no error, memory flat, the pool full again (ARGS=60 for a minute)
	@tests/setup.sh tools
	ATLAS_LOAD_SECONDS=$(or $(ARGS),600) cargo test --workspace $$(tests/setup.sh features) --test load -- --nocapture

chaos: ## faults under load, for long: a table, target/chaos/summary.json and a plot (ARGS="--rounds 10 --faults net-cut --peer")
	@tests/setup.sh run
	target/debug/atlas-local chaos $(ARGS)

soak: ## an hour of random faults under load (ARGS="--minutes 5"): nothing lost, memory flat
	@tests/setup.sh run
	target/debug/atlas-local soak $(ARGS)

neon: ## the CPU kernels' tests with ARM's instructions, by qemu
	@tests/setup.sh neon
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu" \
	cargo test -p atlas-kernels --target aarch64-unknown-linux-gnu --lib $(ARGS)

miri: ## the CPU cache, rounding of activations and threads under Miri
	@tests/setup.sh miri
	MIRIFLAGS="-Zmiri-disable-isolation" cargo +nightly miri test -p atlas-kernels --lib -- \
	pool:: pages:: cpu::kv int8::activations $(ARGS)

clean: ## remove build results (the cache folder stays)
	cargo clean

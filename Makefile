# `make` alone lists what there is. Nothing needs to be installed by hand but Rust and Go.

# Arguments of `make demo`: make demo ARGS="--once", make demo ARGS="--dir DIR --audit".
ARGS ?=
CARGO ?= cargo
# Where cargo puts programs, also for those who moved it.
BIN = $(or $(CARGO_TARGET_DIR),$(CARGO_BUILD_TARGET_DIR),target)/debug

.DEFAULT_GOAL := help
.PHONY: help build test bench lint crds demo ground rust

help: ## List what can be made
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

build: rust ## Build all programs
	$(CARGO) build --workspace --bins

demo: rust ## Start a cluster, the operator and a CRM for ten customers; stay until Ctrl-C (ARGS=--once: try and end)
	$(CARGO) build --workspace --bins
	@exec $(BIN)/devcluster demo $(ARGS)

# Most tests wait for a cluster most of the time: more of them at a time than there are cores.
test: export RUST_TEST_THREADS ?= 4
test: lint ground ## Check everything, on a real control plane and a real PostgreSQL
	$(CARGO) test --workspace

bench: rust ## Measure operator, relay and ledger: an hour (ARGS="onboarding --pooled 200", ARGS=--write)
	$(CARGO) bench --bench operator -- $(ARGS)
	$(if $(filter-out --write,$(ARGS)),,$(CARGO) bench --bench ledger)

lint: rust ## Check format and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

crds: rust ## Write crds/ and docs/api.md from src/api
	$(CARGO) build --workspace --bins
	$(BIN)/tenantry crds --dir crds
	$(BIN)/tenantry crds --reference > docs/api.md

# The programs of the control plane, built once (some minutes) where they aren't cached;
# devcluster says what is missing.
ground: rust
	$(CARGO) build --workspace --bins
	$(BIN)/devcluster install

rust:
	@command -v $(CARGO) >/dev/null 2>&1 || { \
	  echo "make: cargo is not there. Install Rust ($$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer) from https://rustup.rs, and a C linker (apt-get install gcc)." >&2; exit 1; }
	@command -v cc >/dev/null 2>&1 || { \
	  echo "make: cc is not there, and Rust links with it: apt-get install gcc" >&2; exit 1; }

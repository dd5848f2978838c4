# Five verbs a newcomer needs, and their parts. Each is one script or one tool; .ci/run calls the same ones.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
ON_DEBIAN := tests/debian_kernel $(addprefix tests/kernel/test_, dump.py contract_shaper.py shaper.py)
PYTEST := SLICEBW_REQUIRE_KERNEL=$${CI:+1} $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help quickstart demo test test-unit test-kernel test-debian-kernel test-api test-image test-bench bench lint format image lock clean test-cluster

help: ## what there is to make
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml requirements.lock hack/venv
	@hack/venv

quickstart: $(READY) ## 30 seconds, no Kubernetes: a slice is slowed and let go again, with real traffic
	@hack/quickstart

demo: $(READY) ## the whole story on a real control plane: apply limits, send traffic, watch kubectl get
	@hack/demo

test: test-unit test-kernel test-debian-kernel test-api test-image test-bench ## all tests but those that need a whole cluster

test-unit: $(READY) ## the pure core and the parts that need nothing
	@$(PYTEST) tests/unit tests/parity

test-kernel: $(READY) ## real HTB, nftables and packets in network namespaces (root)
	@hack/packages test
	@$(PYTEST) tests/kernel

test-debian-kernel: $(READY) ## the HTB tree on Debian's Linux 6.1 with fq_codel, which runs as a process here (root)
	@hack/packages test
	@if [ "$$(uname -m)" = x86_64 ]; then \
	  hack/debian-kernel env SLICEBW_REQUIRE_KERNEL=1 $(BIN)/pytest -p no:cacheprovider $(ON_DEBIAN); \
	else echo "left out: Debian's kernel runs as a process on amd64 only"; fi

test-api: $(READY) ## a real API server, and the agent and controller as processes (root)
	@hack/packages test
	@[ -n "$$KUBEBUILDER_ASSETS" ] || hack/kubernetes build >/dev/null
	@$(PYTEST) tests/api

test-image: $(READY) ## the container image, run by a real runtime with what the manifests give it, and no more (root)
	@hack/packages test-image
	@$(PYTEST) tests/image

test-cluster: $(READY) ## slicebw installed on a whole cluster: hack/cluster's (root), or CLUSTER_KUBECONFIG=FILE CLUSTER_IMAGE=NAME
	@[ -n "$$CLUSTER_KUBECONFIG" ] || { hack/packages test && hack/cluster prepare && \
	  hack/cluster-images workload >/dev/null && hack/image >/dev/null; }
	@$(PYTEST) tests/cluster

test-bench: $(READY) ## every benchmark, only to see that it works (root)
	@hack/packages bench
	@[ -n "$$KUBEBUILDER_ASSETS" ] || hack/kubernetes build >/dev/null
	@$(PYTEST) tests/bench

bench: $(READY) ## slicebw beside the kernel's own cost, tc and the bandwidth CNI plugin (root); BENCH="read pass" for some
	@hack/bench $(BENCH)

lint: $(READY) ## ruff, mypy --strict, import-linter, shellcheck
	@hack/lint

format: $(READY) ## let ruff write the files as lint wants them
	@$(BIN)/ruff check --fix-only --quiet operator tests hack
	@$(BIN)/ruff format operator tests hack

image: $(READY) ## the container image, into build/slicebw-image.tar (root; once a minute or two, then seconds)
	@hack/image

lock: ## choose the newest versions that pyproject.toml allows, and write requirements*.lock
	@hack/lock

clean: ## remove what was made in this folder (the cache outside it stays)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis operator/*.egg-info

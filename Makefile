# The only entry points of this checkout. Everything lands in .venv, .venv-* and .lab; `make clean` removes them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Another Python than the one that fits (tests/versions.txt).
PYTHON ?=
# Another toolbox than .venv: CORE=2.21 has that ansible-core.
export CORE ?=
ENGINE ?= reference
# reboot and dkms, which want kernels of their own, run by their names.
SCENARIO ?= default driver faults strangers lifecycle lifecycle-podman interrupted vllm
# Checks that `make test` runs beside the scenarios.
CHECKS ?= lint build unit versions
V := .venv$(addprefix -,$(CORE))/bin
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHONPATH := $(CURDIR)/.venv/collections
export LC_ALL := C.UTF-8
# Tools look for their interpreter and each other in the toolbox first.
export PATH := $(CURDIR)/$(V):$(PATH)
# Byte code lies in the toolbox, not in the tree, and is made of what is used; none of the caller's Ansible settings.
export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv$(addprefix -,$(CORE))/pycache
unexport ANSIBLE_COLLECTIONS_PATH ANSIBLE_INVENTORY ANSIBLE_ROLES_PATH

.PHONY: help demo test lint unit molecule bench build matrix lab docs clean venv tools docker machine

help: ## Show this help
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: venv docker ## From nothing to verified completions on two simulated GPU servers [ENGINE=vllm]
	$(V)/python tests/lab/demo.py --engine $(ENGINE)

test: venv tools docker ## All tests, side by side; a table tells what came of each [SCENARIO="default faults"] [CHECKS=lint] [TEST_JOBS=3]
	$(V)/python tests/suite.py $(CHECKS) $(SCENARIO)

lint: venv ## Style, types, documentation
	tests/lint.sh

unit: venv tools ## Pure functions, and modules against real local servers [WORLD="fresh-boot shanghai+bare"|today|all] [TIMES=20] [K=name] [SEED=7]
	$(V)/python tests/worlds.py $(if $(TIMES),--times=$(TIMES)) $(if $(SEED),--seed=$(SEED)) $(if $(K),-k "$(K)") $(WORLD)

molecule: venv docker $(if $(filter reboot,$(SCENARIO)),machine) ## Whole runs on systemd hosts [SCENARIO="default driver faults strangers lifecycle lifecycle-podman interrupted vllm reboot dkms"]
	$(V)/python tests/suite.py $(SCENARIO)

matrix: ## Lint, unit tests, build and a scenario with each ansible-core, and the hosts' part on their oldest Python [CORE=2.20] [SCENARIO=faults] [QUICK=1]
	@$(MAKE) --no-print-directory CORE= venv tools $(if $(QUICK),,docker)
	.venv/bin/python tests/matrix.py $(if $(QUICK),--quick) $(if $(filter file,$(origin SCENARIO)),,--scenario=$(SCENARIO)) $(CORE)

bench: venv docker ## Ratios: remote calls, wall time, how soon readiness is noticed [STAGING=1]
	$(V)/python tests/perf/$(if $(STAGING),staging,bench).py

build: venv ## Build the collection, check it as Galaxy does, install it elsewhere and read its playbook there
	tests/build.sh

docs: venv ## Regenerate the variables in README.md and the role pages
	$(V)/python tests/generate_docs.py

lab: venv docker ## Start the lab's hosts without running anything on them
	$(V)/python tests/lab/lab.py up --engine $(ENGINE)

venv: ## Install the toolbox into .venv, or .venv-2.20 [CORE=2.20] [PYTHON=/path/to/python3.13]
	@PYTHON=$(PYTHON) tests/lab/bootstrap venv

tools: ## Install what unit tests run besides Python if it is missing
	@WORLD="$(WORLD)" tests/lab/bootstrap tools

# The engine's packages may come while the toolbox does.
demo test molecule bench lab docker: export DOCKER := wanted

docker: venv ## Start a Docker engine if none runs
	@tests/lab/bootstrap docker

machine: ## Install what starts virtual machines if it is missing
	@tests/lab/bootstrap machine

clean: ## Remove the lab, its images and the toolboxes
	[ ! -x $(V)/python ] || $(V)/python tests/lab/lab.py down --all || true
	tests/lab/bootstrap stop
	rm -rf .venv .venv-* .lab .ansible dist

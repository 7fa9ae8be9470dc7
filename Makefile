# The project's commands; `make help` lists them.
#
# They need Python 3.11 or newer, make and a package index, nothing else. Each installs what it needs into .venv, once, and
# again when pyproject.toml or the tested versions have changed since.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.DELETE_ON_ERROR:

# The first interpreter that is new enough and can make virtual environments (Debian's cannot without python3-venv).
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		&& { echo $$python; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# The versions that were tested; CONSTRAINTS=/dev/null takes the newest that pyproject.toml allows.
CONSTRAINTS ?= deploy/constraints.txt
export CMA_CLIP_CHECKPOINT ?= weights/fashion

# Runs a command without its output; when it fails, shows the output and fails.
quietly = log=$$(mktemp); if ! { $(1); } >"$$log" 2>&1; then cat "$$log" >&2; rm -f "$$log"; exit 1; fi; rm -f "$$log"
install = $(call quietly,$(BIN)/python -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.$(1)')

.PHONY: help serve test lint format types test-deployment test-tools test-image test-browser soak study rules constraints clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

serve: $(VENV)/.serve ## Set up, and serve the shipped checkpoint (flags: ARGS="--port 8080")
	@exec $(BIN)/cma-clip serve $(ARGS)

test: $(VENV)/.test ## Set up, and run the tests (some of them: ARGS="tests/model -k splits")
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.test ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.test ## Put imports and formatting right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.test ## Check the types, strictly
	@$(BIN)/mypy

test-deployment: test-tools test-image ## Both of the following

test-tools: $(VENV)/.deployment ## Run nginx, Prometheus and the other tools against deploy/ (apt-get installs them)
	@tests/deployment/install-tools curl nginx promtool docker-compose
	@$(BIN)/python -m pytest -rs tests/deployment $(ARGS)

test-image: $(VENV)/.deployment ## Build the image with buildah and classify a listing in it (minutes, 30 GB of disk)
	@tests/deployment/install-tools buildah debootstrap
	@$(BIN)/python -m pytest -rs tests/deployment/image $(ARGS)

soak: $(VENV)/.test ## Load the service for minutes; fails if its memory grows or a request is lost (ARGS="--minutes 60")
	@$(BIN)/python -m benchmarks.soak --assert-flat $(ARGS)

test-browser: $(VENV)/.browser ## Click through the playground in a real Chromium (apt-get installs it)
	@tests/browser/install-chromium
	@$(BIN)/python -m pytest tests/browser $(ARGS)

.PHONY: test-research
test-research: $(VENV)/.research ## Test the study, the other experiments and the baselines
	@$(BIN)/python -m pytest tests/research tests/benchmarks $(ARGS)

study: $(VENV)/.research ## Run what the study lacks, and report (hours; ARGS="--init runs/towers/checkpoint --runs runs/study")
	@$(BIN)/python -m research.study run $(ARGS)
	@$(BIN)/python -m research.study report

rules: ## Write the alerts' expectations of the shipped checkpoint, and all rules once more for Kubernetes
	@$(PYTHON) deploy/prometheus/expected.py weights/fashion >deploy/prometheus/rules/expected.yml
	@$(PYTHON) deploy/prometheus/kubernetes.py >deploy/kubernetes/base/rules.yaml

constraints: ## Write deploy/constraints.txt anew, from the newest versions that pyproject.toml allows
	@rm -rf $(VENV)
	@$(MAKE) --no-print-directory $(VENV)/.deployment $(VENV)/.browser $(VENV)/.research CONSTRAINTS=/dev/null
	@sed -i '/^#/!d' deploy/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| grep -vE '^(nvidia|cuda|triton)' >>deploy/constraints.txt

clean: ## Remove the virtual environment, caches and build products
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with its venv module found; set PYTHON=" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON)"
	@$(call quietly,$(PYTHON) -m venv --clear $(VENV))
	@touch $@

$(VENV)/.serve: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what serving needs (the first time, minutes: PyTorch is large)"
	@$(call install,)
	@touch $@

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what training and the tests need (the first time, minutes: PyTorch is large)"
	@$(call install,[test])
	@touch $@ $(VENV)/.serve

$(VENV)/.research: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what research and its tests need"
	@$(call install,[research])
	@touch $@ $(VENV)/.test $(VENV)/.serve

$(VENV)/.deployment: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what the deployment's tests need"
	@$(call install,[deployment])
	@touch $@ $(VENV)/.test $(VENV)/.serve

$(VENV)/.browser: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what the playground's tests need"
	@$(call install,[browser])
	@touch $@ $(VENV)/.test $(VENV)/.serve

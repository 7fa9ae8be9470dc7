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

# PyTorch, which is large, is installed to serve on a GPU where there is one, or where DEVICE=cuda or CMA_CLIP_ENGINE=torch
# asks for it; on CPUs OpenVINO computes.
ifdef DEVICE
export CMA_CLIP_DEVICE := $(DEVICE)
endif
CMA_CLIP_DEVICE ?= auto
HAS_GPU = $(shell { test -e /dev/nvidia0 || nvidia-smi --list-gpus | grep -q GPU; } 2>/dev/null && echo yes)
ON_GPU := $(if $(filter auto,$(CMA_CLIP_DEVICE)),$(HAS_GPU),$(findstring cuda,$(CMA_CLIP_DEVICE)))
SERVING := $(if $(or $(ON_GPU),$(filter torch,$(CMA_CLIP_ENGINE))),gpu,cpu)
# What pip is to add to the name of the project.
EXTRA_OF_cpu :=
EXTRA_OF_gpu := [gpu]

# Runs a command without its output; when it fails, shows the output and fails.
quietly = log=$$(mktemp); if ! { $(1); } >"$$log" 2>&1; then cat "$$log" >&2; rm -f "$$log"; exit 1; fi; rm -f "$$log"
install = $(call quietly,$(BIN)/python -m pip install --disable-pip-version-check --constraint $(CONSTRAINTS) --editable '.$(1)')

# One worker per core, and one thread per worker: the tests' networks are too small for more.
pytest = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: help serve test coverage test-lowest test-research test-ray test-store test-kill lint format types
.PHONY: test-deployment test-tools test-image test-browser test-distributed test-towers test-tracking
.PHONY: soak fuzz hostile bench study rules constraints requirements sbom dist clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

serve: $(VENV)/.$(SERVING) ## Set up, and serve the shipped checkpoint (flags: ARGS="--port 8080"; on a GPU: DEVICE=cuda)
	@exec $(BIN)/cma-clip serve $(ARGS)

test: $(VENV)/.test ## Set up, and run the tests on all cores (some of them: ARGS="tests/model -k splits")
	@$(pytest) $(ARGS)

coverage: $(VENV)/.test ## The same, and fail when less of the code is run than before (page by page: htmlcov/index.html)
	@$(pytest) --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

test-lowest: $(VENV)-lowest/.test ## Run the tests with the lowest versions that pyproject.toml declares
	@$(VENV)-lowest/bin/python .ci/lowest.py check
	@# Not our faults: what a newer release deprecates, and the event loops that old releases of pytest-asyncio leave open.
	@$(subst $(BIN),$(VENV)-lowest/bin,$(pytest)) -W ignore::DeprecationWarning -W ignore::FutureWarning \
		-W ignore::ResourceWarning $(ARGS)

lint: $(VENV)/.test ## Check style, formatting, and who may import what
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(call quietly,$(BIN)/lint-imports)

format: $(VENV)/.test ## Put imports and formatting right
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.deployment $(VENV)/.browser $(VENV)/.research ## Check the types, strictly, in the tests too
	@$(BIN)/mypy

test-deployment: test-tools test-image ## Both of the following

test-tools: $(VENV)/.deployment ## Run nginx, Prometheus and the other tools against deploy/ (apt-get installs them)
	@tests/deployment/install-tools curl nginx promtool docker-compose
	@$(BIN)/python -m pytest -rs tests/deployment $(ARGS)

test-image: $(VENV)/.deployment ## Build the image with buildah and classify a listing in it (minutes, 30 GB of disk for the one with PyTorch)
	@tests/deployment/install-tools buildah debootstrap
	@$(BIN)/python -m pytest -rs tests/deployment/image $(ARGS)

soak: $(VENV)/.test ## Load the service for minutes; fails if its memory grows or a request is lost (ARGS="--minutes 60")
	@$(BIN)/python -m benchmarks.soak --assert-flat $(ARGS)

fuzz: $(VENV)/.test ## Send requests of any kind, and decode damaged images for minutes: no 500, no crash, no hang (ARGS="--minutes 60 --seed 2")
	@$(pytest) tests/api_fuzz
	@$(BIN)/python -m tests.fuzz $(ARGS)

hostile: $(VENV)/.test ## Send hostile input to a server with bounded memory; fails if one isn't answered or keeps others waiting
	@$(BIN)/python -m benchmarks.hostile
	@$(BIN)/python -m benchmarks.event_loop --assert-free

test-browser: $(VENV)/.browser ## Click through the playground in a real Chromium (apt-get installs it)
	@tests/browser/install-chromium
	@$(BIN)/python -m pytest tests/browser $(ARGS)

test-store: $(VENV)/.test ## Test the store, jobs and reviews with a real PostgreSQL (apt-get installs it), and hand in hostile tables
	@tests/deployment/install-tools pg_createcluster
	@TEST_STORE=postgresql $(BIN)/python -m pytest tests/service/test_store.py tests/service/test_jobs.py \
		tests/service/test_callbacks.py tests/service/test_purge_command.py tests/service/test_review_records.py \
		tests/service/test_reviews.py tests/service/test_reviews_command.py tests/jobs $(ARGS)

test-kill: $(VENV)/.test ## Kill replicas again and again while they compute jobs (minutes; longer: ARGS="--kills 50 --seed 7")
	@tests/deployment/install-tools pg_createcluster
	@$(BIN)/python -m tests.kill $(ARGS)

test-research: $(VENV)/.research ## Test the study, the other experiments and the baselines
	@$(pytest) tests/research tests/benchmarks $(ARGS)

test-distributed: $(VENV)/.test ## Train in several processes, end some or all of them, and resume on another number (a minute)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed $(ARGS)

test-towers: $(VENV)/.test ## Train tiny SigLIP towers, compile them, and serve them without PyTorch
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/towers $(ARGS)

test-tracking: $(VENV)/.tracking ## Follow a training in MLflow (SQLite) and in Weights & Biases (offline)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/tracking $(ARGS)

test-ray: $(VENV)/.ray ## Label on a Ray cluster of this machine whose workers are killed; labels and the store on an S3 server
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ray $(ARGS)

bench: $(VENV)/.research ## Compare with serving frameworks, each in an environment of its own (hours; minutes: ARGS=--quick)
	@$(BIN)/python -m benchmarks.serving $(ARGS)

study: $(VENV)/.research ## Run what the study lacks, and report (hours; ARGS="--init runs/towers/checkpoint --runs runs/study")
	@$(BIN)/python -m research.study run $(ARGS)
	@$(BIN)/python -m research.study report

rules: ## Write the alerts' expectations of the shipped checkpoint, and all rules once more for Kubernetes
	@$(PYTHON) deploy/prometheus/expected.py weights/fashion >deploy/prometheus/rules/expected.yml
	@$(PYTHON) deploy/prometheus/kubernetes.py >deploy/kubernetes/base/rules.yaml

constraints: ## Write deploy/constraints.txt anew, from the newest versions that pyproject.toml allows
	@rm -rf $(VENV)
	@$(MAKE) --no-print-directory $(VENV)/.deployment $(VENV)/.browser $(VENV)/.research $(VENV)/.ray $(VENV)/.tracking \
		$(VENV)/.dist \
		CONSTRAINTS=/dev/null
	@sed -i '/^#/!d' deploy/constraints.txt
	@$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools \
		| grep -vE '^(nvidia|cuda|triton)' >>deploy/constraints.txt

requirements: $(VENV)/.cpu ## Write dist/requirements.txt: what `make serve` installs, with the hash of each file, for this platform
	@mkdir -p dist
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --dry-run --ignore-installed --quiet \
		--constraint $(CONSTRAINTS) --report - '.$(EXTRA_OF_$(SERVING))' | $(BIN)/python deploy/requirements.py >dist/requirements.txt

sbom: $(VENV)/.dist ## Write dist/sbom.json: what `make serve` installs, as CycloneDX
	@rm -rf build/serving && mkdir -p dist
	@$(call quietly,$(PYTHON) -m venv build/serving)
	@$(call quietly,build/serving/bin/python -m pip install --disable-pip-version-check \
		--constraint $(CONSTRAINTS) '.$(EXTRA_OF_$(SERVING))')
	@$(BIN)/cyclonedx-py environment build/serving --pyproject pyproject.toml --output-reproducible --of JSON \
		-o dist/sbom.json

dist: $(VENV)/.dist ## Build the source distribution and the wheel, and check what is in them
	@rm -rf build dist
	@$(call quietly,$(BIN)/python -m build)
	@$(call quietly,$(BIN)/python -m pip install --no-deps --target build/installed dist/*.whl)
	@$(BIN)/python .ci/check_wheel.py build/installed

clean: ## Remove the virtual environments, caches and build products
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-bench build dist htmlcov *.egg-info
	rm -rf .coverage* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with its venv module found; set PYTHON=" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON)"
	@$(call quietly,$(PYTHON) -m venv --clear $(VENV))
	@touch $@

$(VENV)/.cpu: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what serving on CPUs needs"
	@$(call install,)
	@touch $@

$(VENV)/.gpu: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what serving on GPUs needs (the first time, minutes: PyTorch is large)"
	@$(call install,[gpu])
	@touch $@ $(VENV)/.cpu

$(VENV)/.test: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what training and the tests need (the first time, minutes: PyTorch is large)"
	@$(call install,[test])
	@touch $@ $(VENV)/.gpu $(VENV)/.cpu

$(VENV)/.research: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what research and its tests need"
	@$(call install,[research])
	@touch $@ $(VENV)/.test $(VENV)/.gpu $(VENV)/.cpu

$(VENV)/.deployment: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what the deployment's tests need"
	@$(call install,[deployment])
	@touch $@ $(VENV)/.test $(VENV)/.gpu $(VENV)/.cpu

$(VENV)/.browser: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what the playground's tests need"
	@$(call install,[browser])
	@touch $@ $(VENV)/.test $(VENV)/.gpu $(VENV)/.cpu

$(VENV)/.ray: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what the tests of clusters need"
	@$(call install,[ray-test])
	@touch $@ $(VENV)/.test $(VENV)/.gpu $(VENV)/.cpu

$(VENV)/.tracking: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what the tests of experiment tracking need"
	@$(call install,[tracking-test])
	@touch $@ $(VENV)/.test $(VENV)/.gpu $(VENV)/.cpu

$(VENV)/.dist: pyproject.toml $(CONSTRAINTS) | $(VENV)/.created
	@echo "Installing what building a release needs"
	@$(call install,[dist])
	@touch $@ $(VENV)/.cpu

# What it doesn't install itself, PyTorch above all, it takes from $(VENV): that is pinned, so the lowest is the newest.
$(VENV)-lowest/.test: pyproject.toml .ci/lowest.py | $(VENV)/.test
	@echo "Setting up $(VENV)-lowest with the lowest declared versions"
	@$(call quietly,$(BIN)/python -m venv --clear $(VENV)-lowest)
	@$(BIN)/python .ci/lowest.py constraints >$(VENV)-lowest/constraints.txt
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		>"$$($(VENV)-lowest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/newest.pth"
	@$(call quietly,$(VENV)-lowest/bin/python -m pip install --disable-pip-version-check \
		--constraint $(VENV)-lowest/constraints.txt --editable '.[test]')
	@touch $@

# Everything runs from a fresh clone with an empty HOME: uv comes from the package index into .uv/, the locked
# dependencies into .venv/, and no Python is ever downloaded. UV_CACHE_DIR is honoured.
PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .uv/bin/uv
RUN := .venv/bin
export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON := $(PYTHON)
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv
# Components are outside the checkout, so that `make clean` keeps them and checkouts share them.
ifndef STOCKADE_COMPONENTS
STOCKADE_COMPONENTS := $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/stockade/components
endif
export STOCKADE_COMPONENTS
# Prepared images are kept where `stockade up` of this user looks for them. An unset or unwritable HOME must not matter:
# then caches go below the checkout, unless they were given.
CACHE := $(shell test -n "$$HOME" && mkdir -p "$$HOME/.cache" 2>/dev/null && test -w "$$HOME/.cache" \
  && echo "$$HOME/.cache" || echo "$(CURDIR)/.stockade/cache")
export XDG_CACHE_HOME ?= $(CACHE)
export XDG_DATA_HOME ?= $(CURDIR)/.stockade/data
export XDG_CONFIG_HOME ?= $(CURDIR)/.stockade/config
SETUP := .stockade/demo/setup
# Of the Dockerfiles' base, and the Python in it.
SUITE := bookworm
WHEELS_PYTHON ?= 3.11
BASE_PACKAGES := python3,python3-venv,bubblewrap,ca-certificates

COMPONENTS := tools docker runsc opa compose compose-v2 llamacpp sglang

.DEFAULT_GOAL := help
.PHONY: help image wheels base deploy-images demo test test-long check bench clean sync sync-science
.PHONY: mcp-time components components-status components-stop $(COMPONENTS:%=components-%)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

$(UV):
	@mkdir -p $(SETUP)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is no Python 3.11, 3.12 or 3.13"; echo "fix:   make $(or $(MAKECMDGOALS),sync) PYTHON=/path/to/python3.12"; \
	  exit 2; } >&2
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --disable-pip-version-check --log $(SETUP)/pip.log -q uv==$(UV_VERSION)

sync: $(UV) ## the locked packages into .venv
	@mkdir -p $(SETUP)
	@echo "installing locked dependencies; the log is $(SETUP)/uv-sync.log"
	@$(UV) sync --frozen --extra all --inexact -v > $(SETUP)/uv-sync.log 2>&1 || { tail -20 $(SETUP)/uv-sync.log; exit 1; }

sync-science: $(UV)
	$(UV) sync --frozen --extra all --extra science -q

# The image that tests of the tier container run; made once per engine, by debootstrap. Needs root and a Docker Engine.
image: sync ## the image that tests of containers run
	@$(RUN)/stockade image ls -o name | grep -qx python || $(RUN)/stockade image build python --packages python3

# What the Dockerfiles copy: the locked packages for WHEELS_PYTHON, our own wheel, OPA with its configuration.
wheels: sync ## what the Dockerfiles copy, into .image/
	@rm -rf .image/own .image/opa && mkdir -p .image/wheels .image/own .image/opa
	$(UV) export --frozen --no-dev --extra all --no-emit-project -q -o .image/requirements.txt
	$(PYTHON) -m pip download --disable-pip-version-check -q --require-hashes --only-binary :all: \
	  --python-version $(WHEELS_PYTHON) -r .image/requirements.txt -d .image/wheels
	$(UV) build --wheel -q -o .image/own && rm -f .image/own/.gitignore
	cp deploy/opa/* controlplane/authorization/opa/server/config.yaml controlplane/authorization/opa/server/authz.rego .image/opa/
	cp -L $(STOCKADE_COMPONENTS)/bin/opa .image/opa/opa

# A base for the Dockerfiles where no registry is reachable. Needs root, debootstrap and a Docker Engine.
base: sync ## a base for the Dockerfiles, by debootstrap
	@docker image inspect stockade-base:$(SUITE) >/dev/null 2>&1 || { \
	  $(RUN)/stockade image build deploy-base --suite $(SUITE) --packages $(BASE_PACKAGES) && \
	  docker tag stockade/deploy-base:current stockade-base:$(SUITE) && $(RUN)/stockade image rm deploy-base; }

# The images that deploy/compose.yaml starts.
deploy-images: wheels base ## the images of deploy/compose.yaml; no registry is needed
	docker build -q --network none --build-arg BASE=stockade-base:$(SUITE) -t stockade:local .
	docker build -q --network none --build-arg BASE=stockade-base:$(SUITE) -t stockade-opa:local -f deploy/opa.Dockerfile .
	@for old in stockade stockade-opa; do docker image prune -f --filter label=org.opencontainers.image.title=$$old >/dev/null; done

# KEEP=1 leaves Stockade running.
demo: sync ## a fresh clone shows what it does; needs nothing but Python (KEEP=1 leaves it running)
	@$(RUN)/python examples/incident-triage/demo.py .stockade/demo $(SETUP) $(if $(KEEP),--keep)

check: sync-science ## format, lint, types, import contracts, policy tests
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/stockade policy test

test: check ## everything but what takes minutes; without a component its tests are skipped, with the reason
	$(RUN)/pytest -m "not long"

test-long: check ## and that too
	$(RUN)/pytest

bench: sync-science ## benchmarks; JSON
	for area in engine sandboxes placement policy gateway; do $(RUN)/python -m benchmarks $$area --json || exit 1; done

# The real programs: Docker Engine, gVisor, OPA, llama.cpp, SGLang. `make demo` needs none of them; tests skip what is
# not there.
components: ## install the real programs that Stockade can use; one of them: components-NAME
	@$(PYTHON) deploy/components install $(COMPONENTS)

$(COMPONENTS:%=components-%): components-%:
	@$(PYTHON) deploy/components install $*

# The packages of examples/mcp: for the Python of jails, which is the system's where there is one.
GUEST_PYTHON := $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || echo $(PYTHON))
mcp-time: $(UV) ## the packages of examples/mcp
	$(UV) pip install -q --no-config --python $(GUEST_PYTHON) --require-hashes --target $(STOCKADE_COMPONENTS)/mcp-time \
	  -r examples/mcp/requirements.txt
	chmod -R o+rX $(STOCKADE_COMPONENTS)/mcp-time

components-status: ## what is here, or what to do
	@$(PYTHON) deploy/components status

components-stop: ## end the Docker daemon that was started
	@$(PYTHON) deploy/components stop

clean: ## remove what was made here; components stay
	rm -rf .venv .uv .stockade .image .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

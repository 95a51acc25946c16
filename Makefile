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

.PHONY: image wheels base deploy-images demo test test-long check bench clean sync sync-science
.PHONY: mcp-time components components-status components-stop $(COMPONENTS:%=components-%)

$(UV):
	@mkdir -p $(SETUP)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is no Python 3.11, 3.12 or 3.13"; echo "fix:   make $(or $(MAKECMDGOALS),sync) PYTHON=/path/to/python3.12"; \
	  exit 2; } >&2
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --disable-pip-version-check --log $(SETUP)/pip.log -q uv==$(UV_VERSION)

sync: $(UV)
	@mkdir -p $(SETUP)
	@echo "installing locked dependencies; the log is $(SETUP)/uv-sync.log"
	@$(UV) sync --frozen --extra all --inexact -v > $(SETUP)/uv-sync.log 2>&1 || { tail -20 $(SETUP)/uv-sync.log; exit 1; }

sync-science: $(UV)
	$(UV) sync --frozen --extra all --extra science -q

# The image that tests of the tier container run; made once per engine, by debootstrap. Needs root and a Docker Engine.
image: sync
	@$(RUN)/stockade image ls -o name | grep -qx python || $(RUN)/stockade image build python --packages python3

# What the Dockerfiles copy: the locked packages for WHEELS_PYTHON, our own wheel, OPA with its configuration.
wheels: sync
	@mkdir -p .image/wheels .image/opa && rm -f .image/wheels/stockade-*.whl
	$(UV) export --frozen --no-dev --extra all --no-emit-project -q -o .image/requirements.txt
	$(PYTHON) -m pip download --disable-pip-version-check -q --require-hashes --only-binary :all: \
	  --python-version $(WHEELS_PYTHON) -r .image/requirements.txt -d .image/wheels
	$(UV) build --wheel -q -o .image/wheels && rm -f .image/wheels/.gitignore
	cp deploy/opa/* controlplane/authorization/opa/server/config.yaml controlplane/authorization/opa/server/authz.rego .image/opa/
	cp -L $(STOCKADE_COMPONENTS)/bin/opa .image/opa/opa

# A base for the Dockerfiles where no registry is reachable. Needs root, debootstrap and a Docker Engine.
base: sync
	@docker image inspect stockade-base:$(SUITE) >/dev/null 2>&1 || { \
	  $(RUN)/stockade image build deploy-base --suite $(SUITE) --packages $(BASE_PACKAGES) && \
	  docker tag stockade/deploy-base:current stockade-base:$(SUITE) && $(RUN)/stockade image rm deploy-base; }

# The images that deploy/compose.yaml starts.
deploy-images: wheels base
	docker build -q --network none --build-arg BASE=stockade-base:$(SUITE) -t stockade:local .
	docker build -q --network none --build-arg BASE=stockade-base:$(SUITE) -t stockade-opa:local -f deploy/opa.Dockerfile .

# KEEP=1 leaves Stockade running.
demo: sync
	@$(RUN)/python examples/incident-triage/demo.py .stockade/demo $(SETUP) $(if $(KEEP),--keep)

check: sync-science
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/stockade policy test

test: check
	$(RUN)/pytest -m "not long"

test-long: check
	$(RUN)/pytest

bench: sync-science
	for area in engine sandboxes placement policy gateway; do $(RUN)/python -m benchmarks $$area --json || exit 1; done

# The real programs: Docker Engine, gVisor, OPA, llama.cpp, SGLang. `make demo` needs none of them; tests skip what is
# not there.
components:
	@$(PYTHON) deploy/components install $(COMPONENTS)

$(COMPONENTS:%=components-%): components-%:
	@$(PYTHON) deploy/components install $*

# The packages of examples/mcp: for the Python of jails, which is the system's where there is one.
GUEST_PYTHON := $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || echo $(PYTHON))
mcp-time: $(UV)
	$(UV) pip install -q --no-config --python $(GUEST_PYTHON) --require-hashes --target $(STOCKADE_COMPONENTS)/mcp-time \
	  -r examples/mcp/requirements.txt
	chmod -R o+rX $(STOCKADE_COMPONENTS)/mcp-time

components-status:
	@$(PYTHON) deploy/components status

components-stop:
	@$(PYTHON) deploy/components stop

clean:
	rm -rf .venv .uv .stockade .image .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Everything a developer and CI need: `make help`.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP_OPTIONS := --quiet --disable-pip-version-check --no-input
JOBS ?= 2
ARGS =

# Tests see no setting of the developer's, no real service's key, and no proxy on the way to loopback.
CLEAN := env $$(env | sed -nE 's/^((BFF|OPENAI|DIFY)_[A-Za-z0-9_]*|(http|https|all|HTTP|HTTPS|ALL)_(proxy|PROXY))=.*/-u \1/p')

.PHONY: help install run test check format bench bench-short lock audit compose-env
.DEFAULT_GOAL := help

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | while IFS="$$(printf '\t')" read -r target what; do \
		printf '%-13s %s\n' "$$target" "$$what"; done

install: $(INSTALLED) ## set up .venv from the lock files, with hashes

run: $(INSTALLED) ## everything on this machine: BFF_HOST, BFF_PORT, BFF_REDIS_URL, BFF_CONFIG are honoured
	@exec $(BIN)/python -m cli.main dev $(ARGS)

test: $(INSTALLED) ## all tests, on JOBS processes; ARGS="-k word" takes some
	@$(CLEAN) $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(INSTALLED) ## lint, format, types, import contracts, lock files
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/lock.py --check

format: $(INSTALLED) ## put the code in form
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

bench: $(INSTALLED) ## measure against a pass-through proxy, some minutes
	@$(CLEAN) $(BIN)/python -m bench.run $(ARGS)

bench-short: $(INSTALLED) ## the same in about a minute
	@$(CLEAN) $(BIN)/python -m bench.run --short $(ARGS)

lock: $(INSTALLED) ## make the lock files again; ARGS=--upgrade takes the newest versions
	$(BIN)/python scripts/lock.py $(ARGS)

audit: $(INSTALLED) ## known weaknesses of what is locked; asks a public service
	$(BIN)/python -m pip_audit --disable-pip --require-hashes --requirement requirements.lock

compose-env: $(INSTALLED) ## new secrets for docker compose, in .env
	@$(BIN)/python scripts/compose_env.py

$(INSTALLED): requirements-build.lock requirements.lock requirements-dev.lock pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@# Debian keeps ensurepip in a package of its own; without it the machine's pip installs into .venv.
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV) && pip="$(BIN)/python -m pip"; \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip $(VENV) && pip="$(PYTHON) -m pip --python $(BIN)/python"; \
	else \
		echo "$(PYTHON) has neither ensurepip nor pip; on Debian: apt-get install python3-venv" >&2; exit 1; \
	fi && \
	echo "Installing what is locked into $(VENV) ..." && \
	$$pip install $(PIP_OPTIONS) --require-hashes --requirement requirements-dev.lock && \
	$$pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	@touch $(INSTALLED)

# What a checkout can do. `make` builds the virtual environment when it is missing or setup.cfg has changed.

PYTHON ?= python3
VENV := .venv
# Named after where the checkout lies: the scripts of a copied environment would run the original's code.
STAMP := $(VENV)/installed-$(shell pwd | cksum | cut -d' ' -f1)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

# `make bench ARGS=--quick`
ARGS :=

.PHONY: up down test check bench chaos venv

up: $(STAMP)
	@$(VENV)/bin/spillway up --detach

# Never builds the environment anew under what runs in it.
down:
	@test ! -x $(VENV)/bin/spillway || $(VENV)/bin/spillway down

test: $(STAMP)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(VENV)/bin/mypy
	$(VENV)/bin/flake8

bench: $(STAMP)
	@$(VENV)/bin/spillway bench $(ARGS)

chaos: $(STAMP)
	@$(VENV)/bin/spillway chaos

venv: $(STAMP)

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'make: Python 3.11 or later is needed; name it with `make PYTHON=...`' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'make: Python has no venv; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(if $(wildcard $(STAMP)),,--clear) $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

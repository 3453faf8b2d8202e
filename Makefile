# What a checkout can do. Each command installs what it needs into the virtual environment, when that is missing or
# setup.cfg has changed: `make up` no more than it takes to run the service.

PYTHON ?= python3
VENV := .venv
# Named after where the checkout lies: the scripts of a copied environment would run the original's code.
HERE := $(shell pwd | cksum | cut -d' ' -f1)
MADE := $(VENV)/installed-$(HERE)
with = $(VENV)/$(1)-$(HERE)

# Not passed over: `make up PYTHON=...` would run with the Python of before.
ifeq ($(origin PYTHON),command line)
ifneq ($(wildcard $(MADE)),)
ifneq ($(shell $(PYTHON) -V),$(shell $(VENV)/bin/python -V))
$(error $(VENV) is of $(shell $(VENV)/bin/python -V); for another one `make down` and `rm -r $(VENV)` first)
endif
endif
endif

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_ROOT_USER_ACTION = ignore

# `make bench ARGS=--quick`
ARGS :=

.PHONY: up down test test-quick check bench chaos load venv dev

up: $(call with,embedded)
	@$(VENV)/bin/spillway up --detach

# Never builds the environment anew under what runs in it.
down:
	@test ! -x $(VENV)/bin/spillway || $(VENV)/bin/spillway down

# One more than there are cores, of two: they wait for servers for a third of the time.
test: $(call with,dev)
	$(VENV)/bin/python -m pytest -n 3 --dist worksteal

# Those that need no server.
test-quick: $(call with,dev)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal tests/unit

check: $(call with,check)
	$(VENV)/bin/mypy
	$(VENV)/bin/flake8

bench: $(call with,embedded) $(call with,bench)
	@$(VENV)/bin/spillway bench $(ARGS)

chaos: $(call with,embedded) $(call with,chaos)
	@$(VENV)/bin/spillway chaos

# What loadtest/ needs: locust.
load: $(call with,load)

# What `up` needs, and what all of them need.
venv: $(call with,embedded)
dev: $(call with,dev) $(call with,check)

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'make: Python 3.11 or later is needed; name it with `make PYTHON=...`' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'make: Python has no venv; on Debian: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# An extra of setup.cfg. Wheels alone: a machine that runs the service need not have a compiler.
$(VENV)/%-$(HERE): setup.cfg pyproject.toml | $(MADE)
	@echo 'make: installing Spillway with its extra `$*` into $(VENV)'
	@$(VENV)/bin/python -m pip install --quiet --only-binary :all: --editable '.[$*]'
	@touch $@

# Each command makes the environment it needs first. PYTHON=python3.13 uses that interpreter, in an environment of its own.

VENV := $(if $(PYTHON),.venv-$(notdir $(PYTHON)),.venv)
DEMO_VENV := $(VENV)-demo
SHELL := /bin/bash
ARGS :=
# what is compiled once serves every process of a run, and the next run
unexport PYTHONDONTWRITEBYTECODE
# tests wait more than they compute: three processes for each core of the smallest machine
PROCESSES := 6
PYTEST = $(VENV)/bin/python -m pytest -n $(PROCESSES) --dist worksteal

help:            ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:            ## two worker processes, a SQLite file and a real job; installs the core dependencies only
demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/python examples/demo.py

test:            ## all tests, against real servers; ARGS="-k redis" for some of them
test: $(VENV)/.installed
	$(VENV)/bin/python -m tests.services install
	$(PYTEST) -m "not long" $(ARGS)

test-long:       ## the tests that take minutes each
test-long: $(VENV)/.installed
	$(VENV)/bin/python -m tests.services install
	$(PYTEST) -m long $(ARGS)

check:           ## style and types
check: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy tests examples benchmarks

bench:           ## what a task costs, as a table and as JSON
bench: $(VENV)/.installed
	$(VENV)/bin/python -m tests.services install
	$(VENV)/bin/python -m benchmarks $(ARGS)

constraints:     ## newest versions of every dependency into constraints.txt (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade --no-header --no-annotate \
	    --output-file constraints.txt pyproject.toml

clean:           ## remove the environments and whatever tools leave behind
	rm -rf .venv .venv-* .services .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call create,$(VENV))
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,fast,amqp,aws,gcp,memcache,mongo,otel]'
	@touch $@

$(DEMO_VENV)/.installed: pyproject.toml constraints.txt
	$(call create,$(DEMO_VENV))
	$(DEMO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# an interpreter counts only if it really runs (a shim may have nothing behind it) and can make environments
define create
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "making $(1) with $$python ($$("$$python" --version))"; \
	        exec "$$python" -m venv $(1); \
	    fi; \
	done; \
	echo "Python 3.11 or newer with its venv module is needed, and was not found (looked for: $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python))." >&2; \
	echo "On Debian: apt-get install python3 python3-venv. Elsewhere: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
	exit 1
endef

.PHONY: help demo test test-long check bench constraints clean

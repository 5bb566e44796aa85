# The commands of the README. Each sets up what it needs: a virtual environment in .venv with Triaxial and its extras.
#
#   make demo ARGS="--help"                     arguments for the demo
#   make demo PYTHON=/usr/bin/python3.12        another Python, 3.11 or later
#   make demo PIP_ARGS="--extra-index-url URL"  another build of torch: see CONTRIBUTING.md

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test rehearse check docs lock oldest gpu setup clean

PYTHON ?=
PIP_ARGS ?=
ARGS ?=
VENV := .venv
INSTALLED := $(VENV)/.installed

help: ## show this help
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

demo: $(INSTALLED) ## the whole path on this machine: pages, tokens, training, evaluation, export
	$(VENV)/bin/triaxial demo $(ARGS)

# Three files at a time, because many tests wait: for timeouts, signals, and processes that start one after the other.
# With bytecode, because the tests start hundreds of interpreters, each of which would compile our modules again.
test: $(INSTALLED) ## run all tests
	env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

rehearse: $(INSTALLED) ## the long tests that `make test` leaves out: faults at full count, large corpora
	env -u PYTHONDONTWRITEBYTECODE $(VENV)/bin/python -m pytest -m rehearse --timeout 3600 $(ARGS)

check: $(INSTALLED) ## formatting, lint, types, directions of imports, house rules
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy -p gpt -p parallel -p data_prep -p launch
	$(VENV)/bin/lint-imports
	$(VENV)/bin/python tests/house_rules.py

docs: $(INSTALLED) ## the documentation as a site with search, in site/; read it: python3 -m http.server -d site
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

lock: $(INSTALLED) ## write requirements.lock: the installed versions, with hashes
	VENV=$(VENV) .ci/lock

oldest: ## run tests with the oldest versions of the dependencies that pyproject.toml allows
	PIP_ARGS="$(PIP_ARGS)" ARGS="$(ARGS)" .ci/oldest

gpu: ## one hour on a machine with a CUDA GPU: every part in order of value, then a page in runs/gpu_day
	PIP_ARGS="$(PIP_ARGS)" ARGS="$(ARGS)" .ci/gpu

setup: $(INSTALLED) ## install into .venv and do nothing else

clean: ## remove .venv and what tools cached; runs/ and data/ stay
	rm -rf $(VENV) .venv-oldest .venv-gpu .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Print the name of the first Python from 3.11 to 3.13, for which every dependency has a wheel, else of a later one.
# Print the reason if there is none.
define FIND_PYTHON
for newest in 3.13 3.99; do
    found=
    for python in $${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        found="$$found $$python = $$version"
        [[ $$(printf '%s\n' 3.11 "$$version" "$$newest" | sort -V | sed -n 2p) == "$$version" ]] || continue
        "$$python" -c 'import venv, ensurepip' 2>/dev/null && echo "$$python" && exit
        echo "make: $$python ($$version) has no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2
        exit 1
    done
done
echo "make: Triaxial needs Python 3.11 or later, found:$${found:- none}; name one: make demo PYTHON=/path/to/python3" >&2
exit 1
endef
export FIND_PYTHON

# Write the stamp last: after an interrupted install it is missing, so the next command installs again.
$(INSTALLED): export PYTHON := $(PYTHON)
$(INSTALLED): pyproject.toml
	@rm -f $@
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
	    python=$$(bash -c "$$FIND_PYTHON") && echo "making $(VENV) with $$python" && \
	    "$$python" -m venv --clear $(VENV); \
	}
	$(VENV)/bin/python -m pip install $(PIP_ARGS) -e '.[data,quality,ray,hf,eval,plots,tensorboard,serve,onnx,deepspeed,megatron,dev]'
	@touch $@

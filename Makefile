# Every target sets up .venv by itself, once, and again when pyproject.toml or the lock changes.
# It needs make, and a Python 3.11 or 3.12 that can make virtual environments; uv brings one where
# the machine has none. Options go through: make demo ARGS="--seconds 60".

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOAN := .pushflow/uv
ARGS ?=
BENCH ?= path
SHORT ?=

# Workers are processes: a thread pool in each would fight over the same cores.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# Bytecode is kept: flows and tests are some hundred processes, and each would compile all it
# imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench chaos soak setup clean

demo: $(READY)
	$(BIN)/pushflow demo $(ARGS)

test: $(READY)
	@# Two workers for what needs no systems; then those that start brokers, one at a time. Of a
	@# selection in ARGS one of the two may have none, which pytest ends with 5.
	@status=0; \
	$(BIN)/python -m pytest -m "not system" -n 2 --dist loadfile $(ARGS) \
	  || { code=$$?; [ $$code = 5 ] || status=$$code; }; \
	$(BIN)/python -m pytest -m system $(ARGS) \
	  || { code=$$?; [ $$code = 5 ] || status=$$code; }; \
	exit $$status

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m bench.$(BENCH) $(ARGS)

chaos: $(READY)
	$(BIN)/python -m bench.chaos $(if $(SHORT),--short) $(ARGS)

soak: $(READY)
	$(BIN)/python -m bench.soak $(ARGS)

setup: $(READY)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A name on the PATH is not yet a Python: a version manager leaves stubs for versions that it does
# not have, and some distributions leave out ensurepip. So each one is tried by making the thing.
$(READY): pyproject.toml deploy/requirements.lock
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	  2>/dev/null || { rm -rf $(VENV); \
	for python in python3.12 python3.11 python3 python; do \
	  $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	    2>/dev/null && $$python -m venv $(VENV) >/dev/null 2>&1 && exit 0; \
	  rm -rf $(VENV); \
	done; \
	command -v uv >/dev/null 2>&1 && uv venv --quiet --seed --python 3.12 $(VENV) && exit 0; \
	for python in python3 python; do \
	  $$python -m pip install --quiet --target $(LOAN) uv >/dev/null 2>&1 \
	    && $(LOAN)/bin/uv venv --quiet --seed --python 3.12 $(VENV) \
	    && rm -rf $(LOAN) && exit 0; \
	  rm -rf $(LOAN); \
	done; \
	echo "pushflow needs Python 3.11 or 3.12: install one with its venv module (Debian: apt-get" \
	  "install python3 python3-venv; macOS: brew install python@3.12), then run make again." >&2; \
	exit 1; }
	@echo "setting up $(VENV): once, about a minute, mostly torch for the demo's training"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --editable '.[test]' \
	  --constraint deploy/requirements.lock
	@touch $@

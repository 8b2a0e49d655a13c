# `make demo` and `make test` set up everything they need; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements
# Our lock files pin and hash everything, so pip resolves nothing; a configured index is still used.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Neither tool needs to call home to run a pipeline.
export DVC_NO_ANALYTICS := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: help setup demo test test-slow test-docs-long gpu gpu-bundle drills-short drills lint docs lock audit deploy clean-venv

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready  ## the virtual environment, with pinned and hashed dependencies

$(VENV)/.ready: $(wildcard $(LOCK)/*.lock) pyproject.toml kdm_core/vision.py
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11 or newer" >&2; exit 1; }
	@echo "setting up $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	@# Without an NVIDIA GPU the CPU build will do (a twentieth of the size), where an index offers it.
	@{ ! command -v nvidia-smi >/dev/null && $(PIP) -r $(LOCK)/torch-cpu.lock 2>/dev/null; } \
	|| $(PIP) -r $(LOCK)/torch.lock -r $(LOCK)/cuda.lock
	$(PIP) -r $(LOCK)/base.lock -r $(LOCK)/torchcfm.lock -r $(LOCK)/docs.lock
	$(PIP) --no-build-isolation -r $(LOCK)/weights.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m kdm_core.vision
	@touch $@

lock:  ## resolve the dependencies anew (needs uv)
	$(PYTHON) $(LOCK)/update.py

audit: setup  ## the pinned dependencies against known vulnerabilities, or how old the pins are
	$(BIN)/python requirements/audit.py

demo: setup  ## the default pipeline: distil a digit teacher into two one-step students
	@$(BIN)/kdm params check
	@start=$$(date +%s); $(BIN)/dvc repro \
	&& echo "pipeline done in $$(($$(date +%s) - start)) s; look at $(CURDIR)/reports/report.html"

lint: setup  ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open $(CURDIR)/site/index.html"

# A file's tests share what is costly to make, so files are what is shared out; one thread each,
# since threads that wait for each other on busy cores are slower than none.
test drills-short: export OMP_NUM_THREADS := 1
test: lint  ## everything that is checked on every change (15 minutes on two cores)
	$(BIN)/python -m pytest -m "not slow and not drill" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: setup  ## presets in full, against the promised quality, and other tests that take long
	$(BIN)/python -m pytest -m slow

test-docs-long: setup  ## what the docs say to type, typed: whole blocks on preset smoke (10 minutes)
	$(BIN)/python -m pytest -m slow -n 2 tests/docs

gpu: setup  ## tests and measurements that only a GPU can do (25 minutes); without one it says so
	@$(BIN)/python -m benchmarks.gpu

BUNDLE_PYTHON ?= 3.12
gpu-bundle: setup  ## the same for a machine that has only Python, torch and numpy, as one archive
	@$(BIN)/python requirements/gpu_bundle.py --python $(BUNDLE_PYTHON)

drills-short: setup  ## each fault once, at a random instant by --seed, which it prints
	$(BIN)/python -m pytest -m "drill and not slow" tests/drills

drills: setup  ## faults of all kinds at random instants; writes the table of docs/reliability.md (40 min)
	$(BIN)/python -m tests.drills

deploy: setup  ## Prefect server, work pool, deployment and worker, until Ctrl-C
	$(BIN)/python -m pipeline.flow.deploy

clean-venv:
	rm -rf $(VENV)

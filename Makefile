# Everything a person or CI calls. `make quickstart` and `make test` do all the set-up they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# The first Python on the PATH that is 3.11 or 3.12; override with make PYTHON=...
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# What the benchmarks compare with, in an environment of its own.
TRL_VENV := .venv-trl
TRL := trl==1.16.0
QUICKSTART := runs/quickstart

.PHONY: setup quickstart test test-slow test-image lint bench lock

setup: $(VENV)/.complete

# torch by itself and with its dependencies: the registry's CUDA build needs its libraries even on a CPU. PIP_* variables
# are passed on, so PIP_INDEX_URL and the like name another index.
$(VENV)/.complete: requirements/cpu.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; name one with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements/cpu.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

quickstart: setup
	$(BIN)/slime-ray quickstart data $(QUICKSTART)/data
	$(BIN)/slime-ray quickstart model $(QUICKSTART)/base --data $(QUICKSTART)/data/sft.jsonl
	$(BIN)/slime-ray pipeline jobs/recipes/quickstart/pipeline.toml

test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu and not image"

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

test-image: setup
	$(BIN)/python -m pytest -m image

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Everything in docs/benchmarks.md, about half an hour. checkpoint_cost and align_real_pairs, which other pages show, are
# commands of their own.
bench: setup $(TRL_VENV)/.complete
	$(BIN)/python -m tests.benchmarks.step --trl $(TRL_VENV)/bin/python
	$(BIN)/python -m tests.benchmarks.memory
	$(BIN)/python -m tests.benchmarks.scaling
	$(BIN)/python -m tests.benchmarks.rows --json build/bench/rows.json
	$(BIN)/python -m tests.benchmarks.report

$(TRL_VENV)/.complete: requirements/trl.lock
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; name one with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(TRL_VENV)/bin/python -m pip install --quiet --no-deps --requirement requirements/trl.lock
	touch $@

# Pin what `make setup`, `make bench` and docker/Dockerfile install. torch and what it brings on CUDA are left out: see the
# rule for $(VENV)/.complete.
COMPILE := build/lock/bin/uv pip compile --universal --python-version 3.11 --constraint <(echo $(TORCH)) \
	--no-header --no-annotate --quiet
WITHOUT_TORCH := grep -vEf build/lock/torch.txt \
	| sed -E "s/ ?(;|and) \(+platform_machine == 'aarch64'.*//; s/ ?(;|and) platform_python_implementation == 'CPython' and sys_platform == 'linux'$$//"

# cuda.lock is compiled over cpu.lock, which uv keeps to as far as vllm's own pins allow: nothing of it can be run without
# a GPU, so it should differ in as little as possible from what is.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	$(COMPILE) <(echo $(TORCH)) | sed -nE 's/^((torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==).*/^\1/p' > build/lock/torch.txt
	$(COMPILE) pyproject.toml --override requirements/cpu-overrides.txt \
		--extra train --extra evaluate --extra search --extra serve-cpu --extra s3 --group dev | $(WITHOUT_TORCH) > requirements/cpu.lock
	$(COMPILE) <(echo $(TRL)) | $(WITHOUT_TORCH) > requirements/trl.lock
	cp requirements/cpu.lock build/lock/cuda.txt
	$(COMPILE) pyproject.toml --extra train --extra evaluate --extra search --extra serve --extra s3 --output-file build/lock/cuda.txt
	cat build/lock/cuda.txt | $(WITHOUT_TORCH) > requirements/cuda.lock

PYTHON ?= python3
BIN := .venv/bin
# For a CPU-only PyTorch: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: setup demo test test-all mutants versions sanitize lint docs docs-serve

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/pip install -c constraints.txt torch torchvision --index-url $(TORCH_INDEX))
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	touch $@

# ARGS stands for the real model: make demo ARGS="--task segmentation".
demo: setup
	$(BIN)/tokenreduce demo $(or $(ARGS),--model dinov2_small)

# Tests of one model stand together: a process that takes a stretch of them makes the model once.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: setup
	$(PYTEST) $(ARGS)

test-all: setup
	$(PYTEST) -m "full or not full" $(ARGS)

# Hours, not minutes: see docs/testing.md.
mutants: setup
	PYTHONHASHSEED=0 $(BIN)/python tests/mutation/run.py $(ARGS)

# Hours, and several GB for each environment: see docs/versions.md.
versions: setup
	$(BIN)/python benchmarks/versions.py $(ARGS)

# Python is not built with the sanitizers, so their runtimes are loaded first, and libstdc++ for exceptions to be seen.
SANITIZE := -fsanitize=address,undefined -fno-omit-frame-pointer -g -O1 -D_GLIBCXX_ASSERTIONS

sanitize: export TOKENREDUCE_CXXFLAGS := $(SANITIZE)
sanitize: export CXX := g++
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: export UBSAN_OPTIONS := print_stacktrace=1:halt_on_error=1
sanitize: setup
	LD_PRELOAD="$(foreach name,asan ubsan stdc++,$(shell g++ -print-file-name=lib$(name).so))" \
		$(BIN)/python -m pytest tests/ops $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tokenreduce patches
	$(BIN)/python benchmarks/make_table.py --check

# Into site/, without the network; a dead link or anchor is an error.
docs: setup
	$(BIN)/python -m mkdocs build --strict $(ARGS)

docs-serve: setup
	$(BIN)/python -m mkdocs serve $(ARGS)

PYTHON ?= python3
BIN := .venv/bin
# For a CPU-only PyTorch: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: setup demo test test-all lint

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/pip install -c constraints.txt torch torchvision --index-url $(TORCH_INDEX))
	$(BIN)/pip install -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/tokenreduce demo $(ARGS)

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

test-all: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "full or not full" $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tokenreduce patches

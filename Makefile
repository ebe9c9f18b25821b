# Each target makes the virtual environment, installs and builds what it needs, and runs; a second time it only runs.
#   PYTHON=...       the interpreter for the environment (3.11 or newer; found by itself otherwise)
#   PIP_OPTIONS=...  further options of pip install, such as an index with CPU builds of torch

VENV ?= .venv
PYTHON ?=
PIP_OPTIONS ?=
export PIP_OPTIONS

BIN := $(VENV)/bin
# installed again when one of these changes; editable, so Python files need no new installation
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help train test faults sanitize lint docs bench gpu gpu-contact gpu-tests gpu-benchmarks gpu-training gpu-tokens gpu-data wheel clean

help: ## this list
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

train: $(VENV)/.installed-train ## collect episodes, train the laptop model, evaluate it, write runs/NAME/report.html
	@[ "$${AIME_RENDERER:-raycast}" != gl ] || scripts/check_gl.sh $(BIN)/python
	@PATH="$(CURDIR)/$(BIN):$$PATH" AIME_SETUP_SECONDS=$$(cat $<) scripts/train.sh

test: $(VENV)/.installed-test ## all tests (CPU)
	@scripts/check_gl.sh $(BIN)/python
	@$(BIN)/python -m pytest -q $(ARGS)

faults: $(VENV)/.installed-test ## every broken file, command, weight and checkpoint that the tests' generators make
	@$(BIN)/python -m pytest -q -m faults $(ARGS)

sanitize: $(VENV)/.installed-test ## the C++ tests under ASan with UBSan, and under TSan
	@scripts/sanitize.sh $(CURDIR)/$(BIN)/python $(ARGS)

lint: $(VENV)/.installed-dev ## ruff, mypy --strict, clang-format, and the test of the package's floors
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lint.sh

docs: $(VENV)/.installed-dev ## the pages as a site in build/site; fails on broken links
	@$(BIN)/python -m mkdocs build --quiet --strict

bench: $(VENV)/.installed-dev ## benchmarks of kernels and environments, into bench/results/
	@scripts/check_gl.sh $(BIN)/python
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/bench.sh

gpu: ## for a CUDA machine: gpu-contact gpu-tests gpu-benchmarks gpu-training gpu-tokens; no installation, network, MuJoCo
	@PYTHON="$(PYTHON)" scripts/gpu.sh

gpu-contact gpu-tests gpu-benchmarks gpu-training gpu-tokens: gpu-%: # one stage of them, at most nine minutes
	@PYTHON="$(PYTHON)" scripts/gpu.sh $*

gpu-data: $(VENV)/.installed-train # episodes of a few MB for gpu-training, to be brought along
	@PATH="$(CURDIR)/$(BIN):$$PATH" AIME_NUM_EPISODES=$${AIME_NUM_EPISODES:-8} \
	    AIME_DATA_PATH=$${AIME_DATA_PATH:-data/gpu_cartpole_swingup.h5} scripts/collect_tier1_data.sh

wheel: ## source distribution and manylinux wheels for Python 3.11, 3.12 and 3.13, those that are here, into dist/
	@scripts/wheel.sh $(CURDIR)/build/wheel-tools $(PYTHON)

clean: ## remove the environment and everything built; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find aime kernels \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +

$(BIN)/python:
	@python=$$(scripts/find_python.sh $(PYTHON)) && echo "making $(VENV) with $$python" && "$$python" -m venv $(VENV)

$(VENV)/.installed-%: $(SOURCES) | $(BIN)/python
	@scripts/install.sh $(BIN)/python $* $@

# `make demo` and `make test` work from a clean clone: they create .venv, build the native library and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Nothing but errors, and with these the whole log of a build that failed.
PIP := $(BIN)/pip install -qq --disable-pip-version-check
TORCH := $(shell grep ^torch== constraints.txt)
BUILD_INPUTS := pyproject.toml setup.py constraints.txt CMakeLists.txt $(shell find csrc -type f)
# One thread per test process; the processes fill the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
# One process runs all tests of a file: what they share takes as long to make as to use.
BY_FILE := --dist loadfile --no-loadscope-reorder

# Its tests of more than 2^31 elements are none for an executor.
ON_PTX := tests/kernels/triton --ignore tests/kernels/triton/test_large_offsets.py tests/ops/properties/test_budget.py tests/ops/test_attention.py tests/blocks/test_padding.py tests/sim/test_block.py $(wildcard tests/sim/test_cuda_*.py)

.PHONY: demo test kernels ptx portable toolchains lint bench fuzz gpu mutants reproduction doctor clean

demo: $(READY)
	$(BIN)/diffratio demo --out out/demo

test: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto $(BY_FILE)

# Compiled kernels in the executor of tools/ptx, for both architectures
ptx: $(READY)
	rm -rf build/ptx/ran
	$(BIN)/python -m tools.ptx.forms
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto -m '' tests/ptx
	for architecture in 80 90; do \
	  DIFFRATIO_PTX=$$architecture $(ONE_THREAD) $(BIN)/python -m pytest -n auto $(ON_PTX) || exit; \
	done
	$(BIN)/python -m tools.ptx.report
	$(BIN)/python -m tools.ptx.speed

# The numerics tests under other kernels of OpenBLAS, torch, oneDNN and MKL. ARGS="--list", "--cell NAME" ...
portable: $(READY)
	$(BIN)/python -m tools.portable.run $(ARGS)

# Every supported Triton, Python and torch. ARGS="--json", "Triton 3.9.0" ...
toolchains: $(READY)
	$(BIN)/python -m tools.toolchains.toolchains $(ARGS)

# What each GPU kernel costs; the golden file: make kernels ARGS=--json > tests/golden/kernels.json
kernels: $(READY)
	@$(BIN)/python -m tools.aot.kernels $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.performance.write

fuzz: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n auto -m fuzz -o faulthandler_timeout=1800 tests

# Plants bugs in copies of the checkout: which tests see them? ARGS="--json", "NAME ..."
mutants: $(READY)
	$(BIN)/python -m tools.mutants.runner $(ARGS)

# docs/reproduction.md: fine-tunes small models by every method, goes on where it was stopped
reproduction: $(READY)
	$(BIN)/python -m benchmarks.reproduction.run
	$(BIN)/python -m benchmarks.reproduction.latency
	$(BIN)/python -m benchmarks.reproduction.tables

# On a GPU machine, with the Python that has its torch; nothing is installed. The first look is two commands, each
# under 5 minutes: this one, and ARGS="--look speed". Also "--list", "--dry-run", "--step NAME": CONTRIBUTING.md
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tools.gpu.runner $(ARGS)

doctor: $(READY)
	$(BIN)/diffratio doctor

# A CUDA build of torch that is already there is used; otherwise the pinned CPU set is installed.
$(READY): $(BUILD_INPUTS)
	@if $(PYTHON) -c "import sys, torch; sys.exit(torch.version.cuda is None)" 2>/dev/null; then \
	  echo "set-up: $(VENV) beside the installed CUDA build of torch"; \
	  options=--system-site-packages; pinned=; torch=; \
	else \
	  echo "set-up: $(VENV) with $(TORCH)"; \
	  options=; pinned="-c constraints.txt"; torch=torch; \
	fi; \
	start=$$(date +%s); \
	$(PYTHON) -m venv $$options $(VENV) && \
	$(PIP) $$pinned $$torch setuptools wheel cmake ninja && \
	echo "set-up: building the native library, installing the other packages" && \
	$(PIP) $$pinned --no-build-isolation -e ".[dev]" && \
	$(BIN)/python -c "import diffratio_kernels" && \
	echo "set-up: $$(($$(date +%s) - start)) s" && \
	touch $@

clean:
	rm -rf $(VENV) build out diffratio_kernels/_C.abi3.so *.egg-info

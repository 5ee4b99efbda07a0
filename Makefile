# make setup   environment in .venv with torch, dependencies and the compiled extension
# make demo    InterLUDE beside a supervised-only run on the embedded digits, 40 labels
# make test    C++ and Python tests
# Variables: PYTHON (default python3), VENV; what pip installs as torch and, for the tests, as DALI: TORCH, DALI
# (defaults below; DALI= leaves it out, and its tests skip); TESTERS, processes that share the Python tests.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.11 torchvision
DALI ?= nvidia-dali-cuda130>=2.1
# One thread each: threads of two processes that wait for one another on the same cores cost more than they bring.
TESTERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); [ $$cores -lt 4 ] && echo $$cores || echo 4)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

.PHONY: setup demo test cpptest lint format clean

setup: $(VENV)/.extension
	@$(BIN)/interlude-fast doctor

# Torch first, then our build against that torch: an isolated build would fetch a second one.
$(VENV)/.packages: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else \
	"interlude-fast wants Python 3.10 to 3.13, found %d.%d; choose one: make PYTHON=python3.12 ..." % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	{ echo "no virtual environment: $(PYTHON) lacks venv (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "installing torch and dependencies into $(VENV)"
	@$(PIP) install -q "setuptools>=77" ninja pybind11 $(foreach package,$(TORCH),"$(package)")
	@INTERLUDE_FAST_EXTENSION=0 $(PIP) install -q --no-build-isolation -e ".[dev]"
	@touch $@

$(VENV)/.extension: $(VENV)/.packages setup.py $(CSRC)
	@echo "building the extension (log: $(VENV)/build.log)"
	@$(PIP) install -q --no-deps --no-build-isolation -v -e . > $(VENV)/build.log 2>&1 || \
	{ grep -nE 'error|Error' $(VENV)/build.log | head -20; echo "the whole log: $(VENV)/build.log" >&2; exit 1; }
	@grep '^ *interlude-fast:' $(VENV)/build.log | sort -u || true
	@touch $@

# 624 MB that only the tests of one pipeline want; there is none but for Linux.
$(VENV)/.dali: $(VENV)/.packages
	@if [ "$$(uname -s)" = Linux ] && [ -n "$(DALI)" ]; then \
	echo "installing NVIDIA DALI for the tests into $(VENV)"; $(PIP) install -q "$(DALI)"; fi
	@touch $@

demo: setup
	$(BIN)/interlude-fast compare --dataset digits --labels 40 --methods interlude,supervised

test: setup $(VENV)/.dali cpptest
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile

cpptest: $(VENV)/.extension
	@$(BIN)/cmake -S . -B build/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) --log-level=WARNING
	@$(BIN)/cmake --build build/cmake
	@$(BIN)/ctest --test-dir build/cmake --output-on-failure

lint: $(VENV)/.extension
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)
	$(BIN)/mypy

format: $(VENV)/.extension
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

clean:
	rm -rf build *.egg-info $(VENV)/.extension interlude_fast/_C*.so

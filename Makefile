# Two targets that matter: `make book` and `make test`. Everything else is `nbutils --help`.
#   make book              measure this machine and build the book
#   make book CPU=1        the same on the processor, on a machine with a GPU
#   make book ARGS='--suite full'
# And one for who doubts the instrument: nbutils beside llama-bench, built from the source that the pinned binding carries.
#   make parity            an hour and a half on two cores; make parity ARGS=--help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# llama.cpp is compiled here. With an NVIDIA driver and a CUDA compiler it is built to use the GPU;
# on macOS it always uses Metal. pip's cache does not know for which backend a wheel was built, so it stays out.
ifndef CPU
  CUDA := $(shell command -v nvcc >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
endif
ifeq ($(CUDA),yes)
  BUILD := CMAKE_ARGS="-DGGML_CUDA=on $(CMAKE_ARGS)"
  FRESH := --no-cache-dir
endif
ifdef CPU
  override ARGS += --cpu
endif

# Tests that build whole books and open them in a browser.
BOOKS := tests/test_build.py tests/browser

.PHONY: book test parity install clean
book: install
	$(BIN)/nbutils book $(ARGS)

test: install
	$(BIN)/ruff format --check --quiet src tests conftest.py
	$(BIN)/ruff check src tests conftest.py
	$(BIN)/mypy
	$(BIN)/nbutils check-data
	@# Building books waits for kernels more than it computes: it goes on beside the other tests, and is shown after them.
	@mkdir -p _build; $(BIN)/pytest $(BOOKS) > _build/test-books.log 2>&1 & books=$$!; \
	$(BIN)/pytest $(BOOKS:%=--ignore=%); rest=$$?; \
	wait $$books; built=$$?; cat _build/test-books.log; exit $$((rest + built))
	$(BIN)/pytest --nbval notebooks -p no:cacheprovider

parity: install
	$(BUILD) $(BIN)/python tests/bench_parity.py $(ARGS)

install: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing; llama.cpp is compiled, which takes 3 to 7 minutes on two cores."
	$(BUILD) $(BIN)/pip install --disable-pip-version-check $(FRESH) --require-hashes -r requirements.lock
	$(BIN)/pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf _build book/articles book/devices book/here book/proof $(VENV)

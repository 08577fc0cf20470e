# make demo   install everything and run the main job end to end on embedded data
# make test   install everything and run the tests         make test-slow   the data-heavy ones too
# make lint   ruff and mypy strict                         make proto       regenerate serving/v1
# make bench  times of the tables and of a search over long histories, as ratios to their peers
# make bench-din   of a training step of DIN, beside one written by hand and, with PEERS=FOLDER, two libraries'
# make test-gpu, make bench-gpu   the same where torch finds a GPU (with CUDA=1); what cannot run there says so
#
# TORCH_INDEX=URL  another source of CPU wheels of torch (default: pip's own)
# CUDA=1           the CUDA builds of torch, fbgemm-gpu and torchrec instead of the CPU ones

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0

.PHONY: demo test test-slow test-gpu bench bench-din bench-gpu lint format proto clean venv

demo: $(STAMP)
	$(BIN)/recsys demo

test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -q -rs tests/gpu/test_gpu.py

bench: $(STAMP)
	$(BIN)/python -m tests.bench.bench_tables
	$(BIN)/python -m tests.bench.bench_search

bench-din: $(STAMP)
	$(BIN)/python -m tests.bench.bench_din $(if $(PEERS),--peers $(PEERS))

bench-gpu: $(STAMP)
	$(BIN)/python -m tests.bench.bench_gpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/serving/v1/*.proto

venv: $(STAMP)

# torchrec names fbgemm-gpu (the CUDA build) as its need, so on a CPU both are installed without their dependencies.
$(STAMP): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two on a fresh machine)"
ifdef CUDA
	$(PIP) -c .ci/constraints.txt $(TORCH) -e ".[train,serve,dev,cuda]"
else
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) -c .ci/constraints.txt $(TORCH) -e ".[train,serve,dev]"
	$(PIP) --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0
endif
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

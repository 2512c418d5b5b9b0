PYTHON ?= python3.11
VENV := .venv
ADAPTERS := .venv-adapters
LITERT := .venv-litert
GPU_PYTHON ?= python3
GPU_VERSION ?= 3.12
BIN := $(VENV)/bin

.PHONY: demo test slow kill fuzz gpu gpu-wheels networks house test-adapters test-litert lint types check clean

# The environment is made once and again whenever its description changes.
$(VENV)/.core: pyproject.toml constraints.txt
	@echo "Installing protege with PyTorch and what else it needs into $(VENV), once:"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e .
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores, where pip would use one
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,tensorboard,onnx,quantize,transformers]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/protege demo --out runs/demo --overwrite

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # the longest files are not kept for the end

# Tests that compile training steps: some minutes.
slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# An hour of kills: runs of every method and studies, killed at any moment and resumed, are bit for bit what others are.
kill: $(VENV)/.dev
	$(BIN)/python tests/kill.py --work runs/kills

# The tests of test_fuzz.py with other examples each time, an hour or FUZZ_SECONDS; a failing one is printed as a line
# that reproduces it.
fuzz: $(VENV)/.dev
	FUZZ_SECONDS=$${FUZZ_SECONDS:-3600} $(BIN)/python -m pytest tests/test_fuzz.py

# Ten minutes: what only a GPU can show. The machine has Python, torch and a GPU, perhaps no network: what else is needed
# are wheels that `make gpu-wheels` has collected before, where there is a package index. docs/gpu.md says more.
gpu:
	$(GPU_PYTHON) benchmarks/gpu

gpu-wheels:
	$(PYTHON) benchmarks/gpu/wheels.py gpu-wheels $(GPU_VERSION)

# docs/house.svg: the rooms of src/protege and which imports which.
house:
	$(PYTHON) docs/house.py

# torchvision, which timm needs, breaks other imports where it does not fit torch: its tests have their own environment.
$(ADAPTERS)/.ready: pyproject.toml constraints.txt
	test -x $(ADAPTERS)/bin/python || $(PYTHON) -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,timm,smp,hub,transformers,onnx,quantize,heic]'
	touch $@

test-adapters: $(ADAPTERS)/.ready
	$(ADAPTERS)/bin/python -m pytest -p no:cacheprovider tests/test_models_timm.py tests/test_models_smp.py tests/test_hub.py \
		tests/test_torchvision_transforms.py tests/test_preprocessing.py tests/test_networks.py \
		tests/test_photos_heic.py

# litert-torch wants older typing_extensions and pydantic than everything else: it has its own environment, too.
$(LITERT)/.ready: pyproject.toml constraints-litert.txt
	test -x $(LITERT)/bin/python || $(PYTHON) -m venv $(LITERT)
	$(LITERT)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-litert.txt -e '.[dev,litert]'
	touch $@

test-litert: $(LITERT)/.ready
	$(LITERT)/bin/python -m pytest -p no:cacheprovider tests/test_litert.py

# Hours: every ability on a hundred architectures, and docs/networks.md with what came of it. What is stopped goes on.
networks: $(ADAPTERS)/.ready
	$(ADAPTERS)/bin/python benchmarks/networks

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test test-adapters

clean:
	rm -rf $(VENV) $(ADAPTERS) $(LITERT) runs

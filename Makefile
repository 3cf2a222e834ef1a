# make nightly   the main job on the sandbox: a few minutes on two cores
# make test      the tests
# Both install what they need into .venv first (with uv where there is one, else with pip).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# By a path: a finder would lose to a folder named rgtg, as a clone is, in whose parent someone works.
EDITABLE := --config-settings editable_mode=compat --editable '.[dev]'

.PHONY: preferences install nightly methods chaos autoscaling test test-portable test-avx2 test-slow test-gpu check format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing what rgtg needs into $(VENV), some gigabytes: minutes, once"
	@if command -v uv >/dev/null; then \
		uv venv --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --python $(BIN)/python --constraints constraints.txt $(EDITABLE); \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --constraint constraints.txt $(EDITABLE); \
	fi
	@touch $@
	@echo "installed; next: $(BIN)/rgtg doctor, or make nightly"

nightly: install
	$(BIN)/rgtg nightly

# Every method on the sandbox, one after the other: the README's table of methods.
methods: install
	$(BIN)/rgtg evaluate --config cluster/examples/methods.yaml

# Every strategy of preference pairs on the sandbox, and what policies learn from them: hours, and it resumes.
preferences: install
	$(BIN)/python -m pip install --quiet trl
	$(BIN)/python -m pipelines.experiments.preferences

# Two at a time, but those that start Ray: it fills two cores by itself.
test: install
	$(BIN)/python -m pytest -m "not ray and not slow and not gpu" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not slow"

# What computes, under other instruction sets than this machine's own, and with two threads: a quarter of an hour. Each of
# the three libraries that multiply (ATen, oneDNN, MKL) has a variable of its own.
NUMERIC := $(BIN)/python -m pytest tests/decoding tests/models tests/training tests/evaluation -n 2 --dist loadfile \
	-m "not ray and not slow and not gpu" --durations=0 --durations-min=30
EQUAL_BITS := $(BIN)/python -m pytest tests/decoding/test_determinism.py tests/decoding/test_prefill.py \
	tests/decoding/test_search.py tests/models/test_slot_cache.py tests/models/test_packed.py -m "not gpu" \
	--durations=0 --durations-min=30
DEFAULT := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
TWO := RGTG_TEST_THREADS=2 OMP_WAIT_POLICY=passive
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

test-portable: test-avx2
	$(DEFAULT) $(NUMERIC)
	MKL_CBWR=COMPATIBLE $(NUMERIC)
	$(NUMERIC)
	$(DEFAULT) $(TWO) $(EQUAL_BITS)
	$(AVX2) $(TWO) $(EQUAL_BITS)
	$(TWO) $(EQUAL_BITS)

test-avx2: install
	$(AVX2) $(NUMERIC)

test-slow: install
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU: what holds there and what does not, in ten minutes.
test-gpu: install
	$(BIN)/python -m tests.gpu

# Kill actors, nodes, workers and drivers while they work, and compare: some ten minutes.
chaos: install
	$(BIN)/python -m tests.chaos

# Submit jobs to a cluster that grows from nothing, take a node away, stop one, and compare: some ten minutes.
autoscaling: install
	$(BIN)/python -m tests.autoscaling

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .grimp_cache .import_linter_cache

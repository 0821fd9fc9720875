# What a newcomer types. Everything is installed into $(VENV) on first use; only Python 3.10-3.12 and a network
# are needed.

PYTHON ?= python3
VENV ?= .venv
# Release and environment of `make test-fairchem2`: fairchem-core 2, which has to live apart from 1.10.
FAIRCHEM2 ?= 2.24.0
VENV_FAIRCHEM2 ?= .venv-fairchem2$(patsubst %,-%,$(filter-out 2.24.0,$(FAIRCHEM2)))
# Releases other than the supported one have a smoke test: whole trainings, and what is refused.
TESTS_FAIRCHEM2 = $(if $(filter 2.24.0,$(FAIRCHEM2)),tests/fairchem2,$(addprefix tests/fairchem2/,test_training.py test_refusals.py))
# Environment of `make test-current`: current torch and numpy, which fairchem-core's own bounds exclude.
VENV_CURRENT ?= .venv-current
TORCH_CURRENT ?= torch==2.13.0
# What `make test-current` leaves out: it takes long, and neither torch nor numpy is what it tests.
WITHOUT_TORCH = tests/sweeps/test_sweeps_slurm.py
# Processes that the tests are spread over; each takes a core and up to 2 GB.
TEST_PROCESSES ?= 2
PYTEST_FLAGS ?=
BENCH_CONFIG ?= configs/s2ef/example.yml
BENCH_FLAGS ?=

PYTEST = -n $(TEST_PROCESSES) --dist loadgroup
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

.PHONY: help demo demo-fairchem2 test test-current test-fairchem2 lint bench scatter
.DEFAULT_GOAL := help

help:
	@echo "make demo          train with and without PIWSL on the example data, and compare"
	@echo "make demo-fairchem2  the same with a model of fairchem-core 2, in an environment of its own"
	@echo "make test          run the tests"
	@echo "make test-current  run the tests with current torch and numpy 2"
	@echo "make test-fairchem2  run the tests of the callback for fairchem-core 2, in an environment of its own (FAIRCHEM2=2.10.0: of an older release)"
	@echo "make lint          ruff, mypy, yamllint"
	@echo "make bench         time of a PIWSL step against a plain one"
	@echo "make scatter       compile torch-scatter into the environment (optional)"

demo: $(VENV)/.installed-run
	$(VENV)/bin/python scripts/demo.py

demo-fairchem2: $(VENV_FAIRCHEM2)/.installed-fairchem2
	$(VENV_FAIRCHEM2)/bin/python -W ignore scripts/demo_fairchem2.py

test: $(VENV)/.installed-test $(VENV)/.installed-mace
	$(VENV)/bin/python -m pytest $(PYTEST) $(PYTEST_FLAGS)

test-current: $(VENV_CURRENT)/.installed-current
	$(VENV_CURRENT)/bin/python -m pytest $(PYTEST) $(addprefix --ignore=,$(WITHOUT_TORCH)) $(PYTEST_FLAGS)

# Apart from the other tests, whose conftest.py and settings are for fairchem-core 1.10.
test-fairchem2: $(VENV_FAIRCHEM2)/.installed-fairchem2
	PYTHONPATH=scripts $(VENV_FAIRCHEM2)/bin/python -m pytest -q -W ignore -c /dev/null --rootdir tests/fairchem2 --confcutdir tests/fairchem2 $(TESTS_FAIRCHEM2) $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/yamllint --strict .

bench: $(VENV)/.installed-run | data/aspirin
	$(VENV)/bin/piwsl bench --config-yml $(BENCH_CONFIG) $(BENCH_FLAGS)

scatter: $(VENV)/.installed-run
	$(VENV)/bin/python $(PIP_INSTALL) ninja setuptools wheel
	$(VENV)/bin/python $(PIP_INSTALL) --no-build-isolation torch-scatter

data/aspirin: | $(VENV)/.installed-run
	$(VENV)/bin/piwsl prepare --out $@ $(foreach split,train val test,--$(split)-file examples/aspirin/$(split).extxyz.gz)

# The stamps say what has been installed; they are older than pyproject.toml when it has to be done again.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV): some minutes and 6 GB, once."
	$(VENV)/bin/python $(PIP_INSTALL) -e $(if $(filter run,$*),.,".[$*]")
	@touch $@

$(VENV)/.installed-mace: requirements-mace.txt | $(VENV)/bin/python
	$(VENV)/bin/python $(PIP_INSTALL) --no-deps -r requirements-mace.txt
	@touch $@

$(VENV_CURRENT)/.installed-current: pyproject.toml requirements-current.txt | $(VENV_CURRENT)/bin/python
	@echo "Installing into $(VENV_CURRENT): some minutes, once."
	$(VENV_CURRENT)/bin/python $(PIP_INSTALL) $(TORCH_CURRENT) -r requirements-current.txt pytest pytest-xdist hypothesis
	$(VENV_CURRENT)/bin/python $(PIP_INSTALL) --no-deps fairchem-core==1.10.0
	$(VENV_CURRENT)/bin/python $(PIP_INSTALL) --no-deps -e .
	@touch $@

$(VENV_FAIRCHEM2)/.installed-fairchem2: requirements-fairchem2.txt | $(VENV_FAIRCHEM2)/bin/python
	@echo "Installing into $(VENV_FAIRCHEM2): some minutes, once."
	sed 's/^fairchem-core==.*/fairchem-core==$(FAIRCHEM2)/' requirements-fairchem2.txt >$(VENV_FAIRCHEM2)/requirements.txt
	$(VENV_FAIRCHEM2)/bin/python $(PIP_INSTALL) -r $(VENV_FAIRCHEM2)/requirements.txt pytest
	$(VENV_FAIRCHEM2)/bin/python $(PIP_INSTALL) --no-deps -e .
	@touch $@

$(VENV)/bin/python $(VENV_CURRENT)/bin/python $(VENV_FAIRCHEM2)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 13) else "Python 3.10, 3.11 or 3.12 is needed: name it, as in make PYTHON=python3.11")'
	$(PYTHON) -m venv $(@:/bin/python=)

# Two commands do all of their own set-up: `make demo` and `make test`. Both are cheap, and need no network, when run again.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --constraint constraints.txt
# Two processes share the tests: on two cores they take little more than half of the time. Each begins with a half that hangs
# together, so that what several tests share is made once, and takes from the other's when it is done.
TEST_ARGS ?= --numprocesses 2 --dist worksteal

# Each of the many processes that tests start would compile our sources anew, a second of its time.
unexport PYTHONDONTWRITEBYTECODE

# The theme announces its own future at every build.
export NO_MKDOCS_2_WARNING = 1

.PHONY: demo test check docs bench bench-smoke format clean

# torch comes first and pinned: a loose range may bring gigabytes of GPU libraries.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable '.[constrained]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[test,bench]'
	@touch $@

$(VENV)/.system: .ci/system-packages $(VENV)/.core
	.ci/install-system-packages
	@touch $@

demo: $(VENV)/.core
	$(BIN)/python -m tsumugu demo

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Among the tests both sites are built, as strictly as by `make docs`.
test: check $(VENV)/.system
	$(BIN)/python -m pytest $(TEST_ARGS)

docs: $(VENV)/.test
	$(BIN)/mkdocs build --strict --quiet
	$(BIN)/mkdocs build --strict --quiet --config-file mkdocs.ja.yml

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

bench-smoke: $(VENV)/.test
	$(BIN)/python -m benchmarks --smoke

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

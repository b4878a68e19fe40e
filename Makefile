# Two commands do everything on a machine with make and Python >= 3.11:
#   make demo    the main job on the embedded corpus, with a report      make test    lint, types and tests
# Both build the environment in .venv first; `make PYTHON=/path/to/python demo` names the Python to build it from.

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --disable-pip-version-check --progress-bar off --quiet
PIP := $(BIN)/python $(PIP_INSTALL)
OLDEST := .venv-oldest
BARE := .venv-bare
OLDEST_LOOPS := $(shell sed -n '/^dev/,/^]/s/.*"\(accelerate\|lightning\|transformers\)>=\([0-9.]*\)".*/\1==\2.0/p' pyproject.toml)
OLDEST_TORCH := $(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)

.PHONY: demo test soak test-oldest test-bare bench bench-env clean help

help:
	@sed -n '1,3s/^# //p' Makefile

demo: $(VENV)/installed
	$(BIN)/shardpipe demo

test: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy tools
	$(BIN)/pytest -n auto --dist worksteal

# What takes minutes: a run under two hundred faults, a data service under a thousand, its server under 100,000 requests.
soak: $(VENV)/installed-dev
	$(BIN)/pytest -m soak -s

# The same tests with the oldest torch that pyproject.toml admits, and the oldest of those whose loops are tried.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/pytest -n auto --dist worksteal

# A wheel without extras, in an environment of its own, as somebody has it who trains in a loop of his own.
test-bare: | $(BIN)/python
	rm -rf $(BARE) && $(BIN)/python -m venv $(BARE)
	$(BIN)/python $(PIP_INSTALL) build && $(BIN)/python -m build --wheel --outdir $(BARE)/wheel . >$(BARE)/build.log
	$(BARE)/bin/python $(PIP_INSTALL) $(BARE)/wheel/shardpipe-*.whl
	cd $(BARE) && bin/python ../tools/try_wheel.py

# SPEECH=DIR is what tools/get_speech.py has made, WORK=DIR where corpora are kept.
CORPUS := $(if $(SPEECH),--speech $(SPEECH)) $(if $(WORK),--work $(WORK))
PEERS := $(wildcard benchmarks/peers/env-*)

bench: bench-env
	@failed=; for theme in order plan flac loader busy resume remote memory scale service steps checkpoints audit $(if $(SPEECH),learning); do \
		case $$theme in order|plan) options=;; scale|audit) options="$(if $(WORK),--work $(WORK))";; *) options="$(CORPUS)";; esac; \
		echo "== bench_$$theme.py"; $(BIN)/python benchmarks/bench_$$theme.py $$options || failed="$$failed $$theme"; \
	done; [ -z "$$failed" ] || { echo "missed a target:$$failed" >&2; exit 1; }

bench-env: $(VENV)/installed-bench $(PEERS:%=%/.venv/installed)

clean:
	rm -rf $(VENV) $(OLDEST) $(BARE) benchmarks/peers/*/.venv dist build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps name what is installed, so that a second run goes straight to work; a changed pyproject.toml installs again.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing shardpipe and what it needs (PyTorch among it: a few GB, once)."
	$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing shardpipe, what it needs (PyTorch among it: a few GB, once) and the tools for tests."
	$(PIP) --editable '.[dev,train]'
	@touch $(VENV)/installed $@

$(OLDEST)/installed: pyproject.toml | $(BIN)/python
	@echo "Installing shardpipe and its tests with torch $(OLDEST_TORCH), $(OLDEST_LOOPS) (a few GB, once)."
	$(BIN)/python -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP_INSTALL) --editable '.[dev,train]' 'torch==$(OLDEST_TORCH).*' 'torchaudio==$(OLDEST_TORCH).*' $(OLDEST_LOOPS)
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed-dev
	$(PIP) --editable '.[dev,train,bench]'
	@touch $@

# Peers are no dependencies: each environment holds those that get along with each other.
benchmarks/peers/%/.venv/installed: benchmarks/peers/%/requirements.txt | $(BIN)/python
	@echo "Installing the peers of $(<D)."
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) --requirement $<
	@touch $@

$(BIN)/python:
	@found=; for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "shardpipe needs Python 3.11 or newer; tried: $(or $(PYTHON),python3 python3.13 python3.12 python3.11)." >&2; \
		echo "Install one, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; \
	fi; \
	"$$found" -m venv $(VENV) && $(BIN)/python -m pip --version >/dev/null || { \
		rm -rf $(VENV); \
		echo "$$found cannot make an environment with pip. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

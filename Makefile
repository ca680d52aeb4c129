PYTHON ?= python
PATHS = sb3_diffusion zoo tests docs setup.py
# One thread per test process: the processes of pytest-xdist already fill the cores.
PYTEST_FLAGS ?= -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -rs -m "not expensive"

.PHONY: check commit-checks format lint check-codestyle type spelling pytest expensive doc generate clean

# Everything a change must pass, cheapest first; stops at the first failure and names it. The two that keep one core busy for
# a minute each run at once.
check:
	@run() { echo "=== $$1"; $(MAKE) --no-print-directory $$1 || { echo "=== FAILED: $$1"; return 1; }; }; \
	for stage in check-codestyle lint spelling; do run $$stage || exit 1; done; \
	run type & types=$$!; \
	run doc; documentation=$$?; \
	wait $$types && [ $$documentation -eq 0 ] && run pytest

commit-checks: format lint type spelling

# What follows from the taxonomy but has to be a file; a test fails as long as it is outdated.
generate:
	$(PYTHON) docs/generate.py

format:
	$(PYTHON) -m ruff check --select I --fix $(PATHS)
	$(PYTHON) -m black $(PATHS)

lint:
	$(PYTHON) -m ruff check $(PATHS)

check-codestyle:
	$(PYTHON) -m black --check $(PATHS)

type:
	$(PYTHON) -m mypy

spelling:
	$(PYTHON) -m codespell_lib $(PATHS) README.md hyperparams

pytest:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest $(PYTEST_FLAGS)

expensive:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m expensive

doc:
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf build dist *.egg-info docs/_build .mypy_cache .pytest_cache .ruff_cache

# Everything a developer runs. PYTHON is the interpreter of the virtual environment.
PYTHON ?= .venv/bin/python
DATE := $(shell date +%Y-%m-%d)
.PHONY: setup test lint types check full clean

setup:  ## a virtual environment with the exact versions of constraints.txt, and the commit hooks
	python3.11 -m venv .venv
	.venv/bin/pip install -c constraints.txt -e ".[dev]"
	git rev-parse --git-dir >/dev/null 2>&1 && .venv/bin/pre-commit install || true

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:  ## what CI runs; lint and types are among the tests
	$(PYTHON) -m pytest -n 2 --dist worksteal --durations=20

check: lint types test

full:  ## also everything marked slow; text and JUnit results go to results/<date>/
	$(PYTHON) -m pip install -q -c constraints.txt --no-deps timm  # without torchvision, which it requires
	mkdir -p results/$(DATE)
	bash -o pipefail -c '$(PYTHON) -m pytest -n 2 --dist worksteal -m "" --durations=50 --junitxml=results/$(DATE)/junit.xml 2>&1 | tee results/$(DATE)/pytest.txt'

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find generated -mindepth 1 -maxdepth 1 ! -name README.md ! -name example -exec rm -rf {} +

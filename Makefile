.PHONY: check test lint

check:          ## all that CI runs
	CI= bash .ci/run

test:
	.venv/bin/pytest -n 3

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

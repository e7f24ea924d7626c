.PHONY: demo test lint docs bench
PY ?= python3
# Targets of one stamp each: a second call of make finds everything in its place.
.venv/test: pyproject.toml constraints.txt
	$(PY) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@
.venv/dev: .venv/test
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@
.venv/docs: .venv/test
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@
.venv/bench: .venv/test
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[bench]'
	touch $@
demo: .venv/test
	.venv/bin/sharpness run keskar
test: .venv/test
	.venv/bin/python -m pytest
lint: .venv/dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
docs: .venv/docs
	.venv/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
bench: .venv/bench
	.venv/bin/python -m benchmarks

.PHONY: check check-all lint types rooms test doctest browser docs results slow clean

check: lint types rooms test doctest  ## everything quick: under 15 minutes on 2 cores

check-all: check browser docs  ## everything CI runs: under 30 minutes on 2 cores

lint:
	ruff check .
	ruff format --check .

types:
	mypy

rooms:
	lint-imports

test:
	python -m pytest -m "not slow and not browser"

doctest:
	python -m pytest --doctest-modules --pyargs qscore

browser:
	python -m pytest -m browser

docs:
	python -m sphinx -W -b html docs docs/_build/html

results:  ## docs/results.md and its chart, from the files in docs/results
	python -m qscore reproduce --page --out docs

slow:
	python -m pytest -m slow

clean:
	rm -rf docs/_build docs/api build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

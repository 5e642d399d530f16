# `make demo` and `make test` set everything up in .venv by themselves; running them again costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs clean

$(VENV)/.ready: requirements.txt requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# make demo                            opens the web page with a sample pair
# make demo A=a.jpg B=b.jpg OUT=x.glb  writes the 3D scene, the match picture and a JSON summary
demo: $(VENV)/.ready
ifdef A
	$(BIN)/python demo.py $(A) $(B) --out $(or $(OUT),scene.glb)
else
	$(BIN)/python demo.py
endif

# make docs                            builds the documentation into docs/_build/html
docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache build dist *.egg-info

# make demo   a small town, a trained model, broken sensors, scores and a page, from nothing
# make test   the tests
# make lint   ruff
# make clean  remove the environment and what the demo made

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test test-all lint setup clean

demo: setup
	$(BIN)/dynfusion demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing dynfusion and its dependencies (about 7 GB, a few minutes) ..."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/dynfusion check libraries=install
	touch $(READY)

clean:
	rm -rf $(VENV) runs/demo towns/demo

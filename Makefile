# ovseg: every target sets up what it needs, once, in .venv/.
# Needs Python >= 3.10 with pip and venv; another one: make demo PYTHON=python3.12

PYTHON ?= python3
PYTEST_ARGS ?=
FUZZ_ARGS ?=
DETECTRON2 ?=
UV_VERSION := 0.13.8

VENV := .venv
DOCS_VENV := .venv-docs
PY := $(VENV)/bin/python
UV := $(PY) -m uv --no-progress
# content and sources of the environment: if both are those of the last set-up, nothing is to do
STATE := $(VENV)/.state
FINGERPRINT = { $(PY) -VV; ls -d $(VENV)/lib/python*/site-packages/*.dist-info; pwd; cat requirements.txt \
  pyproject.toml ovseg/environment/*.py; } 2>&1 | cksum
DEMO := output/demo
TOY := configs/toy/ovseg_toy.yaml

.DEFAULT_GOAL := help
.PHONY: help setup venv packages demo demo-toy test test-web fuzz lint types docs clean requirements
.DELETE_ON_ERROR:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup:  ## Make .venv/ with pinned requirements, Detectron2 and ovseg
	@$(PY) -c 'import uv' 2>/dev/null || $(MAKE) --no-print-directory venv
ifneq ($(origin PYTHON),file)
	@$(PY) -c "import sys; sys.exit(sys.argv[1] != str(sys.version_info[:2]))" \
	  "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" || { \
	  echo "error: $(VENV)/ has another Python than $(PYTHON): make clean removes it" >&2; exit 1; }
endif
	@{ test -z '$(DETECTRON2)' && test "$$(cat $(STATE) 2>&1)" = "$$($(FINGERPRINT))"; } \
	  || $(MAKE) --no-print-directory packages

venv:
	@$(PY) -c '' 2>/dev/null || { $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: ovseg needs Python 3.10 or newer and '$(PYTHON)' is: $$($(PYTHON) --version 2>&1);" \
	       "name another one: make PYTHON=python3.12" >&2; exit 1; }; \
	  echo "set-up 1/4: $(VENV)/ and uv"; \
	  $(PYTHON) -m venv --clear $(VENV); }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

packages:
	@rm -f $(STATE)
	@echo "set-up 2/4: requirements (the first time, a few GB come over the network)"
	@$(UV) pip install --quiet --python $(PY) -r requirements.txt
	@echo "set-up 3/4: Detectron2"
	@$(PY) tools/install_detectron2.py $(DETECTRON2)
	@echo "set-up 4/4: ovseg, editable"
	@$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation --editable .
	@$(FINGERPRINT) > $(STATE)

demo: setup  ## Segment photographs that packages contain, then evaluate the toy model
	$(PY) tools/segment_photographs.py --output $(DEMO)/photographs
	@$(MAKE) --no-print-directory demo-toy
	@echo "Photographs:"; ls -d $(CURDIR)/$(DEMO)/photographs/*.png

demo-toy: setup  ## Evaluate the shipped toy model, then segment toy scenes into words
	$(PY) train_net.py --eval-only --config-file $(TOY) --num-gpus 0 OUTPUT_DIR $(DEMO)/evaluation
	$(PY) -m ovseg.toy --output $(DEMO)/scenes --first 8 --scenes 2
	$(PY) demo.py --config-file $(TOY) --input $(DEMO)/scenes/*.png --vocabulary $(DEMO)/scenes/words.txt \
	  --output $(DEMO)/segmented
	@echo; echo "Results:"; ls -d $(CURDIR)/$(DEMO)/segmented/*.png

test: setup  ## Run the tests (PYTEST_ARGS="-n 0 -k words" for some of them)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-web: setup  ## Test the page of ovseg serve in Chromium, and its server under load
	@$(PY) -c "import shutil, sys; sys.exit(not any(map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))))" || { \
	  echo "error: there is no Chromium: on Debian, apt-get install chromium; elsewhere install Google Chrome" >&2; exit 1; }
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 0 -m browser tests/web $(PYTEST_ARGS)

fuzz: setup  ## Give damaged and odd inputs to everything that reads any (FUZZ_ARGS="coco --inputs 500")
	@$(PY) -m tests.fuzz $(FUZZ_ARGS)

lint: setup  ## Check style with ruff
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: setup  ## Check the types of the public API with pyright
	@$(PY) -m basedpyright --pythonpath $(PY)

docs: venv  ## Build the site of the documents, output/site, in .venv-docs/ (without PyTorch); a warning is an error
	@$(UV) venv --quiet --allow-existing --python $(PY) $(DOCS_VENV)
	@$(UV) pip install --quiet --python $(DOCS_VENV)/bin/python --group docs
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "open output/site/index.html"

clean:  ## Remove .venv/, .venv-docs/, the demo's output, caches and build files (not your training runs in output/)
	rm -rf $(VENV) $(DOCS_VENV) $(DEMO) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

requirements: venv  ## Compile requirements.txt anew from pyproject.toml (for maintainers)
	@$(UV) pip compile --quiet --universal --python-version 3.10 --extra dev --extra photo --extra hed --extra sam \
	  --extra demo --extra ray --extra web --extra export --upgrade --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml --output-file requirements.txt

# Two commands: `make book` and `make test`. Each installs what it needs first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
PYTHONS ?= 3.11 3.12 3.13
JUPYTERLAB := jupyterlab==4.6.6
# One thread a process: chapters and tests run side by side, and results do not depend on the number of cores.
RUN := OMP_NUM_THREADS=1 IPYTHONDIR="$(CURDIR)/tools/ipython" HF_HUB_OFFLINE=1

.PHONY: help book test determinism test-matrix new serve pdf lab sync refs lint lock clean data colab-check fuzz bench mutants

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

book: $(VENV)/ready ## Install, fetch the data, execute the chapters, build the HTML
	@$(RUN) $(BIN)/python tools/build.py

test: $(VENV)/ready ## Install, then check pairs and style, run the unit tests, run every chapter
	@$(RUN) $(BIN)/python tools/check.py

determinism: $(VENV)/ready ## Run every chapter with one thread and with two: the same checked outputs
	@for threads in 1 2; do echo "== $$threads threads" && $(RUN) OMP_NUM_THREADS=$$threads $(BIN)/python tools/check.py chapters || exit 1; done

# pyenv's stand-ins start a version only where it is chosen: all are.
test-matrix: export PYENV_VERSION ?= $(shell pyenv versions --bare 2>/dev/null | paste -sd: -)
test-matrix: $(UV) ## `make test` with each Python of the machine or of uv's; PYTHONS="3.12 /usr/bin/python3.13"
	@for python in $(PYTHONS); do \
	  if ! $(UV) python find --quiet $$python >/dev/null 2>&1 && ! $(UV) python install --quiet $$python >/dev/null 2>&1; then \
	    echo "Python $$python is not on this machine and cannot be fetched: left out"; continue; \
	  fi; \
	  echo "== Python $$python" && $(MAKE) --no-print-directory test VENV=.matrix/$$(basename $$python) PYTHON=$$python || exit 1; \
	done

new: $(VENV)/ready ## Write a chapter, its module and its test, all of which pass: make new NAME=bert
	@$(RUN) $(BIN)/python tools/new.py "$(NAME)"

serve: book ## Build, then serve the book at http://localhost:8000
	@$(BIN)/python -m http.server --directory _build/html 8000

pdf: book ## Build, then print each chapter into _build/pdf, by a browser
	@$(BIN)/python tools/pdf.py

lab: .lab/ready ## Open the notebooks in JupyterLab
	@$(RUN) .lab/bin/jupyter lab --notebook-dir notebooks

colab-check: $(VENV)/ready ## Run the notebooks as Colab would, in fresh environments; one: make colab-check NAME=vit
	@$(RUN) $(BIN)/python tools/colab_check.py $(NAME)

sync: $(VENV)/ready ## Write each chapter's .py and .ipynb from its .md
	@$(BIN)/python tools/sync.py

refs: $(VENV)/ready ## Store the outputs that `make test` compares with; one chapter's: make refs NAME=vit
	@$(RUN) $(BIN)/python tools/sync.py --refs $(NAME)

lint: $(VENV)/ready ## Format and lint, then sync
	@$(BIN)/ruff format . && $(BIN)/python tools/cells.py && $(BIN)/python tools/sync.py && $(BIN)/ruff check --fix .

data: $(VENV)/ready ## Fetch and verify the chapters' data
	@$(BIN)/python tools/build.py --data

fuzz: $(VENV)/ready ## Feed damaged files to every reader: make fuzz N=1000000 SEED=1
	@$(RUN) $(BIN)/python tools/fuzz.py --inputs $(or $(N),100000) --seed $(or $(SEED),0)

bench: $(VENV)/ready ## Compare speed and memory with the reference implementations; one part: make bench NAME=vit
	@$(RUN) $(BIN)/python -m bench $(NAME) && $(BIN)/python tools/sync.py

mutants: $(VENV)/ready ## Change the model and data files a little, again and again: do the tests notice? one: make mutants NAME=nn/mlp
	@$(RUN) $(BIN)/python tools/mutants.py $(NAME)

lock: $(UV) ## Resolve requirements.in into requirements.txt, with hashes
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	  --no-emit-index-url --custom-compile-command "make lock" requirements.in -o requirements.txt

clean: ## Remove what was built; the environments and the data stay
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Paperwalk needs Python 3.11 or newer: make PYTHON=…")'
	@echo "installing uv" && $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.8

# Touched last, so that an interrupted install is done again. Compiled once: where Python may not keep what it compiles, each
# of the many processes that tests and chapters start would compile torch again.
$(VENV)/ready: requirements.txt pyproject.toml | $(UV)
	@start=$$SECONDS; echo "installing the environment (about 7 GB, most of it torch)"; \
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.txt && \
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . && \
	touch $@ && echo "installed in $$((SECONDS - start)) s"

# JupyterLab brings forty packages that the book does not need: it has its own environment, and the book's kernel.
.lab/ready: $(VENV)/ready
	@echo "installing JupyterLab" && $(UV) venv --quiet --allow-existing --python $(PYTHON) .lab && \
	$(UV) pip install --quiet --python .lab/bin/python $(JUPYTERLAB) && \
	$(BIN)/python -m ipykernel install --prefix .lab --name python3 --display-name "Python 3" >/dev/null && \
	touch $@

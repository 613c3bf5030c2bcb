# The course's commands. `make help` lists them.
# Each target does all it needs: on a fresh machine the first one builds the environment.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
DATA   ?= data/phantom
# Two processes, a file each: every test file and every notebook stays together, in order.
PARALLEL := -n 2 --dist loadfile
# Notebooks that train: their numbers depend on the machine, so only the cells that ask for it are compared.
# The longest first, so that one process does not end long before the other.
TRAINING := $(wildcard notebooks/09_*.ipynb) $(wildcard notebooks/08_*.ipynb) $(wildcard notebooks/06_*.ipynb) \
	$(wildcard notebooks/experiment.ipynb)

# A backend that the caller's shell names would keep figures out of the notebooks.
unexport MPLBACKEND
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help course ablations test unit notebooks-test lint ladder canaries lab outputs doctor clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo "  make course DATA=/path/to/rsna-2022 runs the same notebooks on the real folder."

doctor: ## is this machine ready? (downloads nothing)
	@test -n "$(PYTHON)" || { echo "doctor: no Python was found: install Python 3.11 and call make again." >&2; exit 1; }
	@"$(PYTHON)" cspine_utils/doctor.py

# The environment is ready when this file is newer than what it was built from. A half-built one has no such file.
# Modules are compiled when they are first imported: most of the 15,000 never are.
$(READY): pyproject.toml .ci/constraints.txt
	@$(MAKE) --no-print-directory doctor
	@echo "environment: building $(VENV) (about 2 GB, one to three minutes)"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --constraint .ci/constraints.txt --editable '.[test]'
	@touch $(READY)

course: $(READY) ## environment, synthetic cohort, all notebooks in order, figures, final table
	@$(BIN)/python -m cspine_utils.course --data "$(DATA)"

test: lint unit notebooks-test ## unit tests, then the notebooks against their stored outputs

# One thread a process: with two, the threads of two processes would wait for each other on two cores.
unit notebooks-test: export OMP_NUM_THREADS := 1

lint: $(READY) ## ruff: errors, imports, formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

unit: $(READY) ## unit tests
	$(BIN)/python -m pytest tests $(PARALLEL) --durations=25

notebooks-test: $(READY) ## run every notebook again and compare it with its stored outputs
	@$(BIN)/python -m cspine_utils.course --cohort-only
	$(BIN)/python -m pytest $(PARALLEL) --nbval-current-env --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg \
		--nbval-cell-timeout=300 $(filter-out $(TRAINING),$(sort $(wildcard notebooks/*.ipynb)))
	$(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder --nbval-current-env --nbval-lax \
		--nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=600 $(TRAINING)

ablations: $(READY) ## the students' ablation, three rows; finished runs are kept, DATA=... as for course
	@$(BIN)/python -m cspine_utils.course --data "$(DATA)" --grid notebooks/profiles/ablation.yml

ladder: $(READY) ## the transformer from crops to whole necks, controls, levers (hours; what is finished is kept)
	@$(BIN)/python -m cspine_utils.ladder --table data --weights data/weights
	@$(BIN)/python -m cspine_utils.ladder --table data --controls necks-easy few-boxes
	@$(BIN)/python -m cspine_utils.ladder --table data --levers

canaries: $(READY) ## break the code on purpose and see the tests notice (a quarter of an hour)
	@$(BIN)/python tests/canaries.py

lab: $(READY) ## open JupyterLab on the notebooks (token on, this machine only)
	@$(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir=. notebooks

outputs: $(READY) ## for authors: run the notebooks in place and keep their outputs
	@$(BIN)/python -m cspine_utils.course --in-place

clean: ## remove the environment and everything that the course made
	rm -rf $(VENV) data/phantom data/prepared data/runs .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

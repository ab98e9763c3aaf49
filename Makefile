# Two commands for a visitor: `make demo` and `make test`. CONTRIBUTING.md tells about the rest.
#
#   PYTHON=python3.12           the interpreter that makes the environments
#   PIP_ARGS="..."              handed to pip, for instance an index of CPU wheels of torch
#   WORKERS=2                   processes that run the tests
#   DATA=sst2                   the set of `make headline`; ALAMBIC_DATA names the folder of those that are not built in
#   SEEDS="1 2"                 more seeds of its students, which share the teacher
#   PEERS=model2vec             other tools that it measures beside them, by commas; their environments take gigabytes

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 2
NAME ?= gpu
DATA ?= tweets
SEEDS ?=
PEERS ?=

EXTRAS = cpu,train,export,report,demo,dev
SOURCES := $(shell find model serve export compress -type f -not -name '*.pyc')
# One thread a process: the tests are many small models, and two processes share two cores.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/pytest

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo headline test test-all check fix bench gpu-benchmark gpu-models test-environments test-optimum pins clean

demo: .venv/made
	.venv/bin/compress run demo --out runs/demo

# From the teacher to the fastest students, and other tools beside them: recipe and measurement, tens of minutes.
headline: .venv/made
	set -e; for seed in '' $(SEEDS); do .venv/bin/compress run headline-$(DATA) --out runs/headline-$(DATA) $${seed:+--seed $$seed}; done
	.venv/bin/python benchmarks/headline.py $(DATA) $(if $(PEERS),--peers $(PEERS)) --json benchmarks/headline.json --picture docs/headline.svg

test: check
	$(PYTEST) -n $(WORKERS)

test-all: check
	$(PYTEST) -n $(WORKERS) -m ''

check: .venv/made
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

fix: .venv/made
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# Without the peers, whose environments take gigabytes (`.venv/bin/python benchmarks/peers.py --quick`), and what `make headline` measures.
bench: .venv/made
	set -e; for script in $(filter-out %/gpu_benchmark.py %/headline.py %/peers.py,$(wildcard benchmarks/*.py)); do .venv/bin/python $$script --quick; done

# On a machine with a GPU; NAME is what the report is called after. The models are made beforehand, where PyTorch is: `make gpu-models`.
gpu-benchmark:
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_benchmark.py measure --name $(NAME)

gpu-models: .venv/made
	.venv/bin/python benchmarks/gpu_benchmark.py prepare

# Environments of their own: serving without torch, the GPU package without a GPU, Optimum beside base.
test-environments: .venv/made .venv-serve/made .venv-gpu/made .venv-optimum/made
	$(PYTEST) environments -v

test-optimum: .venv/made .venv-optimum/made
	$(PYTEST) environments/test_optimum.py -v

# Write down what .venv holds. To refresh the pins: upgrade in .venv what you want, `make pins`, `make test-all`.
pins:
	sed -n '/^#/p' constraints.txt > constraints.new
	.venv/bin/pip list --format=freeze --exclude-editable --exclude pip | sed 's/+.*//' >> constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv .venv-* benchmarks/peers/.venv-* benchmarks/peers/work build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# $(call environment,DIRECTORY,WHAT): an environment with WHAT in it; brought up to date in place.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "alambic needs Python 3.11 or newer, and '$(PYTHON)' is not that. Name one that is: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/pip install $(PIP_ARGS) $(2)
	@touch $@
endef

.venv/made: pyproject.toml constraints.txt
	$(call environment,.venv,-c constraints.txt -e '.[$(EXTRAS)]')

# Not editable, so that what is tested is what the wheel holds.
.venv-serve/made: pyproject.toml constraints.txt $(SOURCES)
	$(call environment,.venv-serve,-c constraints.txt '.[cpu]')

# Without the CUDA libraries of [gpu]: gigabytes that a machine without a GPU has no use for.
.venv-gpu/made: pyproject.toml constraints.txt $(SOURCES)
	$(call environment,.venv-gpu,-c constraints.txt . onnxruntime-gpu==1.31.1)

.venv-optimum/made: pyproject.toml environments/optimum-constraints.txt $(SOURCES)
	$(call environment,.venv-optimum,-c environments/optimum-constraints.txt '.[optimum]')

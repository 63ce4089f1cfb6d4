"""`make demo-english`: what LoRA adds to a real LLM; stage 1 once, stage 2 with each rank on it, two corpora."""

from collections.abc import Mapping, Sequence

from speechllm_pl.recipes.comparison import Comparison, System, folder_name
from speechllm_pl.recipes.experiment import JOINT, Experiment
from speechllm_pl.recipes.preparation import SPOKEN_ENGLISH

RANKS = {"0": ("--model.instruction", "six two<|im_start|>six two<|im_end|>"), "8": ()}
"""Ranks of LoRA, and settings of stage 2 with them: an example before the audio shows a frozen LLM what to do."""
RECIPE = ("--model.bridge.stride", "2", "--model.lora_alpha", "16", "--trainer.max_epochs", "4")
"""What stage 2 has other than at size tiny: an LLM of 135 M learns faster than the tiny one, and costs more."""
SEARCHES = {"greedy": (), "joint": JOINT}
"""Options of the searches for the LLM's text, by the names of their scores."""


def choices(given: Mapping[str, str | None], overrides: Sequence[str]) -> dict[str, str]:
    """Name of the demo's folder, which follows from the options that were given and the arguments for all stages."""
    return {"name": folder_name("demo_english", given, {"size": "tiny", "llm": "smollm2"}, overrides)}


def demo_english(experiment: Experiment) -> Comparison:
    """Compare LoRA ranks in an experiment on DATA=spoken_english; on CPUs they are trained side by side, each by one
    process."""
    recipe, parts = experiment.recipe, experiment.preparation.folder / "parts"
    alone = ("--trainer.devices", "1") if recipe.trainer == "cpu" else ()
    systems = {"ctc": System("pretrain_ctc", experiment.stage_one)}
    for rank, settings in RANKS.items():
        overrides = (*RECIPE, *settings, *alone, *recipe.overrides)
        trained = experiment.finetuning(f"lora_r{rank}", lora_r=rank, overrides=overrides)
        for search, options in SEARCHES.items():
            systems[f"lora_r{rank}-{search}"] = System(f"lora_r{rank}", trained, options)
    corpora = {corpus: (parts / corpus / f"{experiment.split}.jsonl.gz", ()) for corpus in SPOKEN_ENGLISH}
    return Comparison(experiment, systems, corpora)

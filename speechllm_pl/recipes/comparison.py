"""LoRA ranks compared as steps: stage 1 once, stage 2 with each rank on it, scores on each corpus, one table."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from speechllm_pl.recipes.experiment import JOINT, Experiment
from speechllm_pl.recipes.preparation import SPOKEN_ENGLISH
from speechllm_pl.recipes.steps import Step

RANKS = {"0": ("--model.instruction", "six two<|im_start|>six two<|im_end|>"), "8": ()}
"""Ranks of LoRA, and settings of stage 2 with them: an example before the audio shows a frozen LLM what to do."""
RECIPE = ("--model.bridge.stride", "2", "--model.lora_alpha", "16", "--trainer.max_epochs", "4")
"""What stage 2 has other than at size tiny: an LLM of 135 M learns faster than the tiny one, and costs more."""
SEARCHES = {"greedy": (), "joint": JOINT}
"""Options of the searches for the LLM's text, by the names of their scores."""


@dataclass(frozen=True)
class Comparison:
    """Steps that end in `runs/NAME/scores.md`. On CPUs the ranks are trained side by side, each by one process."""

    experiment: Experiment
    """Experiment on DATA=spoken_english, whose first stage all ranks start from."""

    @cached_property
    def table(self) -> Step:
        step = self.experiment.programs.speechllm("compare", "--scores", str(self.scores))
        return replace(step, makes=self.experiment.folder / "scores.md", needs=tuple(self._scorings()))

    @property
    def scores(self) -> Path:
        """Folder of the scores, in CORPUS/SYSTEM of it."""
        return self.experiment.folder / "scores"

    def _scorings(self) -> Iterator[Step]:
        yield from self._on_each_corpus("ctc", "pretrain_ctc", (), self.experiment.stage_one)
        for rank, settings in RANKS.items():
            name = f"lora_r{rank}"
            trained = self._finetuning(name, rank, settings)
            for search, options in SEARCHES.items():
                yield from self._on_each_corpus(f"{name}-{search}", name, options, trained)

    def _finetuning(self, name: str, rank: str, settings: tuple[str, ...]) -> Step:
        recipe = self.experiment.recipe
        alone = ("--trainer.devices", "1") if recipe.trainer == "cpu" else ()
        return self.experiment.finetuning(name, lora_r=rank, overrides=(*RECIPE, *settings, *alone, *recipe.overrides))

    def _on_each_corpus(self, system: str, run: str, search: tuple[str, ...], trained: Step) -> Iterator[Step]:
        for corpus in SPOKEN_ENGLISH:
            cuts = self.experiment.preparation.folder / "parts" / corpus / f"{self.experiment.split}.jsonl.gz"
            yield self.experiment.scoring(self.scores / corpus / system, cuts, (run,), search, trained)

"""Whole experiment as steps: both stages, scores, transcripts and a report in one folder."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from speechllm_pl.recipes.preparation import Preparation
from speechllm_pl.recipes.programs import Programs
from speechllm_pl.recipes.recipe import BEST, Recipe
from speechllm_pl.recipes.steps import Step

JOINT = ("--decoder", "beam", "--ctc_weight", "0.3")
"""Decoding of experiments: the LLM and the CTC head choose the text together."""


@dataclass(frozen=True)
class Experiment:
    """Steps that end in `runs/NAME/report.html`; the tiny LLM is made beside stage 1, transcripts beside scores."""

    folder: Path
    recipe: Recipe
    """Recipe of stage 2, whose settings apply to stage 1 as well."""
    preparation: Preparation
    programs: Programs
    max_wer: str | None = None
    """Fail when a system's average WER is above this fraction."""
    split: str = "test"
    """Cuts that are evaluated, and shown in a report: SPLIT.jsonl.gz of the data."""
    settings: Path | None = None
    """Folder with a configuration file of each stage, which comes before the overrides alone."""
    before: tuple[Step, ...] = ()
    """Steps that come before stage 1, such as the preparation of other cuts."""

    @property
    def cuts(self) -> Path:
        return self.preparation.folder / f"{self.split}.jsonl.gz"

    @cached_property
    def stage_one(self) -> Step:
        recipe = replace(self.recipe, stage="pretrain_ctc", run=str(self.folder / "pretrain_ctc"), ckpt=None)
        makes = self.folder / "pretrain_ctc" / "finished.json"
        return replace(self._fit(recipe), makes=makes, after=(*self.before, self.preparation.tokenizer))

    @cached_property
    def stage_two(self) -> Step:
        return self.finetuning("finetune")

    def finetuning(self, name: str, **changes: Any) -> Step:
        """Step of a stage 2 in the folder of a name, on stage 1 of this experiment; `changes` are of the recipe."""
        encoder = str(self.folder / "pretrain_ctc" / BEST)
        recipe = replace(self.recipe, stage="finetune", run=str(self.folder / name), ckpt=encoder, **changes)
        llm = self.preparation.llm(recipe.llm)
        makes = self.folder / name / "finished.json"
        return replace(self._fit(recipe), makes=makes, needs=(self.stage_one,), after=(llm,) if llm else ())

    def _fit(self, recipe: Recipe) -> Step:
        settings = ("--config", str(self.settings / f"{recipe.stage}.yaml")) if self.settings else ()
        return self.programs.fit(replace(recipe, overrides=(*settings, *recipe.overrides)))

    @cached_property
    def scores(self) -> Step:
        return self.scoring(self.folder, self.cuts, ("pretrain_ctc", "finetune"), JOINT, self.stage_two)

    def scoring(self, output: Path, cuts: Path, runs: Sequence[str], search: Sequence[str], trained: Step) -> Step:
        """Step that scores the runs of this experiment, once they are trained, on cuts, with options of the search."""
        checkpoints = [self.folder / name / BEST for name in runs]
        trainer = "single" if self.recipe.trainer == "cpu" else self.recipe.trainer
        # On CPUs one process has scored a small test set before a second one has started.
        step = self.programs.evaluate(checkpoints, cuts, str(output), trainer, self.max_wer, search)
        made = tuple(each for each in self.before if each.makes == cuts)
        return replace(step, makes=output / "scores.json", needs=(trained, *made))

    @cached_property
    def transcripts(self) -> Step:
        """Step that transcribes three recordings of the test set: the first, another one, the last."""
        audio, makes = shlex.quote(str(self.preparation.folder / "audio" / "test")), self.folder / "transcripts.txt"
        recordings = f"$(find {audio} -name '*.flac' | sort | sed -n '1p;25p;$p')"
        step = self.programs.speechllm("transcribe", "--checkpoint", str(self.folder / "finetune" / BEST), *JOINT)
        written, partial = shlex.quote(str(makes)), shlex.quote(f"{makes}.partial")
        line = f"{step.line} {recordings} | tee {partial} && mv {partial} {written}"
        return replace(step, line=line, makes=makes, needs=(self.stage_two,))

    @cached_property
    def report(self) -> Step:
        options = ["--run", str(self.folder), "--cuts", str(self.cuts)]
        step = self.programs.speechllm("report", *options)
        return replace(step, makes=self.folder / "report.html", needs=(self.scores, self.transcripts))

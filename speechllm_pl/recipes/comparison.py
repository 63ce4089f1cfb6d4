"""Systems compared on corpora as steps: each is trained once, scored on every corpus, and a row of one table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from speechllm_pl.recipes.experiment import Experiment
from speechllm_pl.recipes.recipe import digest
from speechllm_pl.recipes.steps import Step

OF_RUNS = ("root", "size", "encoder", "llm", "augment", "stride", "lora_r", "masking")
"""Options with which runs are others."""


class System(NamedTuple):
    """A trained run of an experiment with a search for its texts."""

    run: str
    """Name of the run's folder in the experiment's."""
    trained: Step
    search: tuple[str, ...] = ()
    """Options of `evaluate`."""


def folder_name(
    name: str, given: Mapping[str, str | None], usual: Mapping[str, str | None], overrides: Sequence[str]
) -> str:
    """Name of the folder of a comparison, with a digest of all choices other than the usual ones.

    Other choices thus have runs and scores of their own, and those of an interrupted comparison are never mixed.
    """
    chosen = {name: value for name, value in given.items() if name in OF_RUNS and value not in (None, usual.get(name))}
    other = [*(f"{name}={value}" for name, value in sorted(chosen.items())), *overrides]
    return f"{name}-{digest(*other)}" if other else name


@dataclass(frozen=True)
class Comparison:
    """Steps that end in `runs/NAME/scores.md`."""

    experiment: Experiment
    systems: Mapping[str, System]
    """Systems by the names of their scores."""
    corpora: Mapping[str, tuple[Path, tuple[str, ...]]]
    """Manifest of each corpus, and further options of `evaluate` for it, by its name."""

    @cached_property
    def table(self) -> Step:
        scores = self.experiment.folder / "scores"
        step = self.experiment.programs.speechllm("compare", "--scores", str(scores))
        needs = tuple(self._scorings(scores))
        return replace(step, makes=scores.with_suffix(".md"), needs=needs)

    def _scorings(self, scores: Path) -> Iterator[Step]:
        for name, system in self.systems.items():
            for corpus, (cuts, options) in self.corpora.items():
                given = (cuts, (system.run,), (*system.search, *options), system.trained)
                yield self.experiment.scoring(scores / corpus / name, *given)

"""Systems compared on corpora as steps: each is trained once, scored on every corpus, and a row of one table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from speechllm_pl.recipes.experiment import Experiment
from speechllm_pl.recipes.steps import Step


class System(NamedTuple):
    """A trained run of an experiment with a search for its texts."""

    run: str
    """Name of the run's folder in the experiment's."""
    trained: Step
    search: tuple[str, ...] = ()
    """Options of `evaluate`."""


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

"""`make demo-speech`: recorded sentences, a pretrained encoder and a pretrained LLM, scored on dev and other voices."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from speechllm_pl.core.errors import UserError
from speechllm_pl.recipes.comparison import Comparison, System
from speechllm_pl.recipes.experiment import JOINT, Experiment
from speechllm_pl.recipes.recipe import CONF, digest

DEFAULTS = {"encoder": "whisper-tiny-en", "llm": "smollm2", "languages": "en"}
SETTINGS = CONF / "demo_speech"
"""Folder with a configuration file of each stage."""
SEARCHES = {"llm-greedy": (), "llm-joint": JOINT, "llm-guarded": (*JOINT, "--guard", "true")}
"""Options of the searches for the LLM's text, by the names of their scores."""


def choices(given: Mapping[str, str | None]) -> dict[str, str]:
    """Options of the demo: those that were given, the defaults for others, and names that follow from them.

    Raises:
        UserError: there are no recordings.
    """
    recordings = Path(os.environ.get("SPEECHLLM_DATA", "../shared/data"), "cc0-voices", "en")
    defaults = {"table": str(recordings), **DEFAULTS}
    chosen = {name: given.get(name) or default for name, default in defaults.items()}
    if not Path(chosen["table"]).exists():
        raise UserError(
            f"TABLE={chosen['table']} does not exist: give a folder or table of transcribed recordings (README, Your"
            " own data), or the folder that holds cc0-voices/en as SPEECHLLM_DATA"
        )
    changed = [value for name, value in chosen.items() if value != defaults[name]]
    name = "-".join(["demo_speech", *([digest(*changed)] if changed else [])])
    table = "" if chosen["table"] == defaults["table"] else f"-{digest(chosen['table'])}"
    return {**chosen, "name": name, "root": given.get("root") or f"data/demo_speech{table}"}


def demo_speech(experiment: Experiment, other_voices: str | None) -> Comparison:
    """Train a CTC head on frozen frames, then the LLM, and compare both.

    Args:
        other_voices: further recordings to score, a table or folder as of DATA=table.

    Raises:
        UserError: they are not there.
    """
    corpora: dict[str, tuple[Path, tuple[str, ...]]] = {experiment.split: (experiment.cuts, ())}
    if other_voices:
        if not Path(other_voices).exists():
            raise UserError(
                f"EVAL_TABLE={other_voices} does not exist: give a table, or a folder of recordings and texts"
            )
        scored = experiment.preparation.scored_alone(other_voices)
        experiment = replace(experiment, before=(scored,))
        assert scored.makes is not None
        corpora[scored.makes.parent.name] = (scored.makes, ("--long_form", "true"))
    experiment = replace(experiment, settings=SETTINGS)
    systems = {"ctc": System("pretrain_ctc", experiment.stage_one)}
    systems |= {name: System("finetune", experiment.stage_two, options) for name, options in SEARCHES.items()}
    return Comparison(experiment, systems, corpora)

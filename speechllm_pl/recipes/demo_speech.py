"""`make demo-speech`: recorded sentences, a pretrained encoder and a pretrained LLM, scored on dev and other voices."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from speechllm_pl.core.errors import UserError
from speechllm_pl.recipes.comparison import Comparison, System, folder_name
from speechllm_pl.recipes.experiment import JOINT, Experiment
from speechllm_pl.recipes.recipe import CONF, digest

DEFAULTS = {"encoder": "whisper-tiny-en", "llm": "smollm2", "languages": "en", "vocab": "48", "augment": "speed"}
OF_DATA = ("table", "languages", "size", "vocab", "piece", "prepare_args")
"""Options with which the prepared data are others."""
DEV = ("--dev-fraction", "0.1")
"""Arguments of the preparation that concern rows whose split nothing names."""
SETTINGS = CONF / "demo_speech"
"""Folder with a configuration file of each stage."""
CANDIDATES = (*JOINT, "--num_beams", "8", "--ctc_candidates", "16")
"""Joint decoding, which also ranks texts of the CTC head: training has few of the words that are said elsewhere."""
SEARCHES = {"llm-greedy": (), "llm-joint": CANDIDATES, "llm-guarded": (*CANDIDATES, "--guard", "true")}
"""Options of the searches for the LLM's text, by the names of their scores."""


def choices(given: Mapping[str, str | None], overrides: Sequence[str]) -> dict[str, str]:
    """Options of the demo: those that were given, the defaults for others, and names that follow from them.

    Args:
        overrides: arguments for both stages, which make other runs.

    Raises:
        UserError: there are no recordings.
    """
    recordings = Path(os.environ.get("SPEECHLLM_DATA", "../shared/data"), "cc0-voices", "en")
    usual = {"table": str(recordings), "size": "tiny", "root": "data/demo_speech", **DEFAULTS}
    chosen = {name: given.get(name) or usual[name] for name in ("table", *DEFAULTS)}
    table = Path(chosen["table"])
    if not table.exists():
        raise UserError(
            f"TABLE={table} does not exist: give a folder or table of transcribed recordings (README, Your"
            " own data), or the folder that holds cc0-voices/en as SPEECHLLM_DATA"
        )
    settings = {**given, **chosen}
    data = [f"{name}={settings[name]}" for name in OF_DATA if settings.get(name) not in (None, usual.get(name))]
    data += [] if chosen["table"] == usual["table"] else _contents(table)
    root = given.get("root") or f"{usual['root']}{'-' if data else ''}{digest(*data) if data else ''}"
    prepared = {"root": root, "prepare_args": " ".join([*DEV, given.get("prepare_args") or ""])}
    return {**chosen, **prepared, "name": folder_name("demo_speech", {**settings, "root": root}, usual, overrides)}


def _contents(table: Path) -> list[str]:
    """Names, sizes and times of change of all files in a folder, or of a table."""
    files = sorted(path for path in table.rglob("*") if path.is_file()) if table.is_dir() else [table]
    return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def demo_speech(experiment: Experiment, other_voices: str | None) -> Comparison:
    """Train a CTC head on frozen frames, then the LLM, and compare both on dev, on test where there is one, and others.

    Args:
        other_voices: further recordings to score, a table or folder as of DATA=table.

    Raises:
        UserError: they are not there.
    """
    tested = experiment.split != "test" or experiment.cuts.exists()  # a table need not have one
    splits = ["dev", *([experiment.split] if tested and experiment.split != "dev" else [])]
    folder = experiment.preparation.folder
    corpora: dict[str, tuple[Path, tuple[str, ...]]] = {name: (folder / f"{name}.jsonl.gz", ()) for name in splits}
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

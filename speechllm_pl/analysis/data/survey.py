"""All figures about a folder of prepared data."""

from pathlib import Path
from typing import Any

from speechllm_pl.analysis.data.audio_measures import LIMITS
from speechllm_pl.analysis.data.figures import alphabets, amounts, histograms, levels, overlaps, quarantine
from speechllm_pl.analysis.data.listening import drawn, listen
from speechllm_pl.analysis.data.listings import list_one_of_each, list_suspects
from speechllm_pl.analysis.data.prepared_data import SPLITS, PreparedData, judged_by_letters, open_splits, read_through
from speechllm_pl.analysis.data.suspects import OUTLIER, suspects
from speechllm_pl.recognition.recognizer import Recognizer


def survey(
    root: Path,
    recognizer: Recognizer | None,
    *,
    sample: int,
    seed: int,
    worst: int,
    max_duration: float,
    allow_commands: bool = False,
) -> tuple[PreparedData, dict[str, Any]]:
    """Read all transcripts twice, decode a sample of the recordings, and collect the figures.

    Args:
        recognizer: compares the transcripts of the sample with the recordings, if given.
        sample: number of recordings to decode.
        seed: of the sample.
        worst: number of utterances to list of each kind of fault.
        max_duration: seconds of audio in a batch for the recogniser.
        allow_commands: accept cuts whose audio comes from shell commands or over the network.
    """
    data, letters = read_through(open_splits(root, allow_commands=allow_commands))
    ahead = judged_by_letters(data, letters)
    heard = listen(data, drawn(data, sample, seed), recognizer, max_duration)
    found, limits = suspects(data, letters, ahead, heard, worst)
    return data, {
        "absent": [split for split in SPLITS if split not in data.splits],
        "sample": {"seed": seed, "asked": sample, "decoded": len(heard), "of": len(data)},
        "amounts": amounts(data),
        "histograms": histograms(data),
        "alphabets": alphabets(data),
        "letters": {"languages": letters.languages()},
        "overlaps": overlaps(data),
        "levels": levels(data, heard),
        "suspects": {kind: list_suspects(data, heard, each) for kind, each in found.items()},
        "limits": {"outlier": OUTLIER, "sound": LIMITS, **limits},
        "picked": list_one_of_each(data, heard, seed),
        "quarantine": quarantine(root),
    }

"""`speechllm data report`: one HTML page about prepared data, and its figures as JSON."""

import json
import sys
from pathlib import Path

from speechllm_pl.analysis.data.findings import findings, notes
from speechllm_pl.analysis.data.listings import players
from speechllm_pl.analysis.data.survey import survey
from speechllm_pl.analysis.html.data_page import data_page
from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.whole_file import write_whole


def data_report(
    root: str,
    checkpoint: str | None = None,
    output: str | None = None,
    sample: int = 4000,
    seed: int = 0,
    worst: int = 20,
    player_seconds: float = 15.0,
    max_duration: float = 60.0,
    device: str = "cpu",
    llm: str | None = None,
    allow_command_sources: bool = False,
) -> None:
    """Write an HTML page about prepared data, with players, and its figures as JSON beside it.

    All transcripts are read twice, and a sample of the recordings is decoded. Extrapolated from smaller corpora, twelve
    million utterances take about half an hour and 2.5 GB of memory.

    Args:
        root: Folder of train, dev and test manifests, as `make data` leaves it.
        checkpoint: Checkpoint of either stage, whose CTC head compares transcripts with recordings.
        output: Path of the page; default is report.html in `root`. The figures are beside it, with the suffix .json.
        sample: Number of recordings to decode, equally many of each split and language; all if there are fewer.
        seed: Seed of the sample.
        worst: Number of utterances to show of each kind of fault.
        player_seconds: Longest audio of a player in seconds; each second adds about 4 kB to the page.
        max_duration: Seconds of audio in a batch for the checkpoint.
        device: Device of the checkpoint: cpu, cuda, cuda:1.
        llm: Folder or name of the LLM, if it has moved since training.
        allow_command_sources: Run the shell commands and open the addresses that the manifests name instead of files.
            Only for manifests that you trust.
    """
    if sample < 1 or worst < 0 or seed < 0 or not player_seconds > 0 or not max_duration > 0:
        raise UserError("sample, player_seconds and max_duration must be above 0, worst and seed 0 or more")
    path = Path(output) if output else Path(root, "report.html")
    recognizer = Recognizer.load(checkpoint, llm, device) if checkpoint else None
    data, found = survey(
        Path(root),
        recognizer,
        sample=sample,
        seed=seed,
        worst=worst,
        max_duration=max_duration,
        allow_commands=allow_command_sources,
    )
    figures = {"root": root, "checkpoint": checkpoint, "players": {"seconds": player_seconds}, **found}
    figures |= {"command": sys.argv, "json": path.with_suffix(".json").name}
    figures |= {"findings": findings(figures), "notes": notes(figures)}
    content = json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_whole(path.with_suffix(".json"), content.encode())
    rows = [row for each in figures["suspects"].values() for row in each["worst"]] + figures["picked"]
    write_whole(path, data_page(figures, players(data, rows, player_seconds)).encode())
    for each in figures["findings"]:
        print(each["text"])
    print(f"report: {path} ({len(figures['findings'])} findings, figures in {path.with_suffix('.json')})")

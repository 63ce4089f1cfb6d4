"""`speechllm data report`: one HTML page about prepared data, and its figures as JSON."""

import json
import sys
from pathlib import Path

from speechllm_pl.analysis.data.findings import findings, notes
from speechllm_pl.analysis.data.listings import players
from speechllm_pl.analysis.data.survey import survey
from speechllm_pl.analysis.html.data_page import data_page
from speechllm_pl.apps.devices import device_of
from speechllm_pl.apps.program_options import DataReportOptions
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.whole_file import write_whole


def data_report(options: DataReportOptions) -> None:
    """Write an HTML page about prepared data, with players, and its figures as JSON beside it.

    All transcripts are read twice, and a sample of the recordings is decoded. Extrapolated from smaller corpora, twelve
    million utterances take about half an hour and 2.5 GB of memory.
    """
    path = Path(options.output) if options.output else Path(options.root, "report.html")
    checkpoint, seconds = options.checkpoint, options.player_seconds
    moved = (options.llm, device_of(options.device), options.encoder)
    recognizer = Recognizer.load(checkpoint, *moved) if checkpoint else None
    chosen = {name: getattr(options, name) for name in ("sample", "seed", "worst", "max_duration")}
    data, found = survey(Path(options.root), recognizer, **chosen, allow_commands=options.allow_command_sources)
    figures = {"root": options.root, "checkpoint": checkpoint, "players": {"seconds": seconds}, **found}
    figures |= {"command": sys.argv, "json": path.with_suffix(".json").name}
    figures |= {"findings": findings(figures), "notes": notes(figures)}
    content = json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_whole(path.with_suffix(".json"), content.encode())
    rows = [row for each in figures["suspects"].values() for row in each["worst"]] + figures["picked"]
    write_whole(path, data_page(figures, players(data, rows, seconds)).encode())
    for each in figures["findings"]:
        print(each["text"])
    print(f"report: {path} ({len(figures['findings'])} findings, figures in {path.with_suffix('.json')})")

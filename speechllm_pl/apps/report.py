"""`speechllm report`: one HTML page about a run."""

import sys
from pathlib import Path

from lhotse.cut import Cut

from speechllm_pl.analysis.html.run_page import run_page
from speechllm_pl.analysis.run.alignment_map import AlignmentMap, align
from speechllm_pl.analysis.run.run_folder import Run, manifest_of_tests, read_run
from speechllm_pl.apps.program_options import ReportOptions
from speechllm_pl.core.errors import UserError
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.data.utterance import read
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.whole_file import write_whole

WORDS = range(4, 9)
"""Numbers of words of utterances whose alignment fits on a page."""


def report(options: ReportOptions) -> None:
    """Write report.html, a page that needs nothing else, into the run folder."""
    found = read_run(Path(options.run))
    text = run_page(found, _alignment(found, options), options.utterances, sys.argv)
    path = found.folder / "report.html"
    write_whole(path, text.encode())
    print(f"report: {path}")


def _alignment(run: Run, options: ReportOptions) -> tuple[str, str, AlignmentMap] | str:
    """Align one utterance, or say why that is impossible: the page is useful without an alignment."""
    if "finetune" not in run.stages or not run.stages["finetune"].checkpoint.is_file():
        return "Stage 2 has no checkpoint yet, so there is nothing to align: make finetune"
    stage = run.stages["finetune"]
    manifest = Path(options.cuts) if options.cuts else manifest_of_tests(stage.checkpoint.parent.parent)
    if manifest is None:
        return "It is not known which recordings to align: give a manifest with --cuts"
    try:
        cut = suitable(list(read_cuts(manifest, allow_commands=options.allow_command_sources)))
        recognizer = Recognizer.load(stage.checkpoint, options.llm, encoder=options.encoder)
        return cut.id, _text(cut), align(recognizer, _samples(cut), _text(cut))
    except UserError as error:
        if options.cuts or options.llm or options.encoder:  # asked for by name: then it must work
            raise
        return f"No alignment: {error}"


def suitable(cuts: list[Cut]) -> Cut:
    """First utterance of 4 to 8 words, or else the one with the most words."""
    return next((cut for cut in cuts if len(_text(cut).split()) in WORDS), None) or max(
        cuts, key=lambda cut: len(_text(cut).split())
    )


def _text(cut: Cut) -> str:
    return cut.supervisions[0].text or ""


def _samples(cut: Cut):
    try:
        return read(cut)
    except UserError:
        raise
    except Exception as error:  # whatever a decoder throws
        raise UserError(f"{cut.id} cannot be read: check the paths in the manifest") from error

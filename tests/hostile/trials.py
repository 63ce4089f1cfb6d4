"""One hostile input: what is given to which command, how it may end, and how it did.

It may end with the right text, with a line that names the thing, or with the thing set aside by name.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jail import Ended, confined

from data_prep import table, tokenizer
from data_prep.machinery.command_line import run
from data_prep.tiny_llm.text_pool import read_texts
from speechllm_pl.apps import main, recognized_cuts
from speechllm_pl.core.errors import UserError
from speechllm_pl.data.batch import Batch
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.recognition.transcriber import Source, Transcriber
from speechllm_pl.recognition.transcript import Transcript

CANARY = "canary"
"""The file of the folder that what is executed would make: it is not to be there afterwards."""

HEARD = "heard.jsonl"
"""Ids and samples of what a model was given."""

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What a terminal would obey; lines, tabs and the returns of progress bars aside."""


class Trial(NamedTuple):
    """A hostile input, made."""

    kind: str  # what is wrong with it, in what: inputs are counted by what stands before a colon
    program: str  # speechllm, or one of PROGRAMS
    arguments: list[str]
    named: tuple[str, ...]  # what a refusal has to name, one of these
    judge: Callable[[Ended], tuple[str, str]]  # of status 0 → how it ended, and what is wrong with that


class Result(NamedTuple):
    kind: str
    ended: str  # text, refused, set aside; or what may not be
    problem: str  # empty if it ended as it may


def ended_well(ended: Ended) -> tuple[str, str]:
    """Check a trial in which whatever is said is right."""
    return "text", ""


def tried(make: Callable[[Path], Trial]) -> Result:
    """Make a trial in a folder of its own, run it, and judge how it ended."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        folder = Path(name)
        trial = make(folder)
        ended = confined(lambda: _main(trial, folder / HEARD), folder)
        how, problem = _judged(trial, ended, folder)
    if problem:
        command = " ".join([trial.program, *trial.arguments])
        problem = f"{trial.kind}: {problem}\n{command}\nstatus {ended.status}\n{ended.out[-500:]}\n{ended.err[-3000:]}"
    return Result(trial.kind, how, problem)


def _judged(trial: Trial, ended: Ended, folder: Path) -> tuple[str, str]:
    if (folder / CANARY).exists():
        return "executed", "what came in as data was executed"
    if ended.beyond:
        return "beyond a limit", ended.beyond
    if "Traceback (most recent call last)" in ended.err or ended.status not in (0, 2):
        return "broken", f"it ended with a traceback or status {ended.status}"
    if CONTROL.search(ended.out + ended.err):
        return "written to the terminal", "it printed control characters"
    if ended.status == 0:
        return trial.judge(ended)
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if len(errors) != 1:
        return "unexplained", f"it ended with {len(errors)} lines of error"
    if not any(name in errors[0] for name in trial.named):
        return "unnamed", f"its error names none of {trial.named}"
    return "refused", ""


def _texts() -> None:
    """What the tiny LLM is trained on."""
    read_texts([Path(sys.argv[1])])


PROGRAMS: dict[str, Callable[[], None]] = {"table": table.main, "tokenizer": tokenizer.main, "texts": _texts}
"""Those of `data_prep`."""


def _main(trial: Trial, heard: Path) -> None:
    sys.argv = [trial.program, *trial.arguments]
    if trial.program in PROGRAMS:
        run(PROGRAMS[trial.program])
    else:
        _listen(heard)
        main.main()


def _listen(heard: Path) -> None:
    """Note what models are given, for this process."""

    recognize_batch = recognized_cuts.recognize_batch

    def noting(recognizer: Recognizer, batch: Batch, options: DecodingOptions) -> recognized_cuts.RecognizedBatch:
        with heard.open("a") as file:
            for id_, length in zip(batch.ids, batch.lengths.tolist(), strict=True):
                file.write(json.dumps([id_, length]) + "\n")
        return recognize_batch(recognizer, batch, options)

    transcripts = Transcriber.transcripts

    def counted(source: Source) -> Source:
        def chunks() -> Iterator[np.ndarray]:
            length = 0
            for samples in source.chunks:
                yield samples
                length += len(samples)
            with heard.open("a") as file:
                file.write(json.dumps([source.name, length]) + "\n")

        return Source(source.name, chunks())

    def noting_transcripts(
        self: Transcriber, sources: Iterable[Source], language: str
    ) -> Iterator[Transcript | UserError]:
        return transcripts(self, map(counted, sources), language)

    recognized_cuts.recognize_batch = noting
    Transcriber.transcripts = noting_transcripts


def heard_samples(folder: Path) -> dict[str, int]:
    """Id → how many samples of it a model was given."""
    path = folder / HEARD
    return dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}

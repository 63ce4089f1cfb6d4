"""Preparation of a corpus: from DATA and its location to cuts, the CTC tokenizer and an LLM."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from speechllm_pl.core.errors import UserError
from speechllm_pl.recipes.programs import Programs
from speechllm_pl.recipes.recipe import digest, words
from speechllm_pl.recipes.steps import Step

OF_LANGUAGES = ("mls", "common_voice", "voxpopuli")
"""Published corpora of several languages, each of which can be prepared separately."""
PUBLISHED = (*OF_LANGUAGES, "librispeech")
SPOKEN_ENGLISH: dict[str, dict[str, Any]] = {
    "spoken_numbers": {"data": "spoken_numbers", "languages": "en", "arguments": ()},
    "fsdd": {"data": "fsdd", "arguments": ("--joined-train", "500")},
}
"""Corpora that DATA=spoken_english joins, by the names of their parts, and their settings."""
SMOLLM2 = Path("data/llms/smollm2")


@dataclass(frozen=True)
class Preparation:
    """Settings of a corpus from which its preparation follows. Fields' docstrings are the help of `speechllm run`."""

    programs: Programs
    data: str
    folder: Path
    """Folder of the prepared data."""
    size: str = "tiny"
    """Decides the size of the tokenizer's vocabulary."""
    table: str | None = None
    """Folder or table of DATA=table."""
    corpus: str | None = None
    """Folder in which a published corpus was unpacked."""
    fsdd: str | None = None
    """Folder of the Free Spoken Digit Dataset."""
    hours: str = "3"
    """Hours of speech that spoken_numbers synthesises."""
    languages: str | None = None
    """Languages to prepare."""
    parts: tuple[str, ...] = ()
    """Languages, or sub-folders of the table, that are prepared each by itself and then joined."""
    vocab: str | None = None
    """Pieces of the CTC tokenizer."""
    piece: str | None = None
    """Letters of its longest piece."""
    codec: str = "opus"
    """Codec in Shar: opus or flac."""
    jobs: int = 2
    """Processes that prepare data."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the program that prepares the corpus."""

    def _step(self, program: str, options: list[str], makes: Path | None, *needs: Step) -> Step:
        line = shlex.join([*self.programs.python, "-m", f"data_prep.{program}", *options])
        return Step(line, makes, needs, environment=self.programs.environment)

    @cached_property
    def cuts(self) -> Step:
        """Step that makes the train, dev and test cuts, train last; of a table without dev it is never finished."""
        makes = self.folder / "train.jsonl.gz"
        if parts := self.parts or (tuple(SPOKEN_ENGLISH) if self.data == "spoken_english" else ()):
            return self._joined(makes, parts)
        dev = self.folder / "dev.jsonl.gz"
        if self.data == "table" and self.table and makes.exists() and not dev.exists():  # other arguments may give one
            return self._step(*self._program(), dev)
        return self._prepared(makes)

    def _prepared(self, makes: Path) -> Step:
        return Step("", makes) if makes.exists() else self._step(*self._program(), makes)

    def _program(self) -> tuple[str, list[str]]:
        """Program of data_prep for the corpus, and its options.

        Raises:
            UserError: the corpus has no program, or its location is missing.
        """
        written = ["--output", str(self.folder)]
        jobs = ["--jobs", str(self.jobs)]
        languages = ["--languages", *words(self.languages)] if self.languages else []
        if self.data == "spoken_numbers":
            options = [*written, "--hours", self.hours, *jobs, *languages]
        elif self.data == "fsdd":
            shared = os.environ.get("SPEECHLLM_DATA", "../shared/data")
            options = ["--corpus", self.fsdd or f"{shared}/free-spoken-digit-dataset", *written, *jobs]
        elif self.data == "table":
            if not self.table:
                raise UserError("DATA=table needs TABLE=<folder or table>; see README, Your own data")
            options = ["--table", self.table, *written, "--copy-audio", *jobs, *self._only_language]
        elif self.data in PUBLISHED:
            if not self.corpus:
                raise UserError(
                    f"DATA={self.data} needs CORPUS=<folder in which it was unpacked>, or your own train, dev and"
                    f" test.jsonl.gz in {self.folder}; see docs/data.md"
                )
            options = ["--corpus", self.corpus, *written, *jobs, *(languages if self.data in OF_LANGUAGES else [])]
        else:
            raise UserError(
                f"{self.folder}/train.jsonl.gz does not exist: put train, dev and test.jsonl.gz (Lhotse cuts) into"
                f" {self.folder}"
            )
        return self.data, [*options, *self.arguments]

    def part(self, name: str) -> Step:
        """Step that prepares a part of the corpus, a language or a sub-folder of the table, as a separate corpus.

        Raises:
            UserError: the corpus has no parts.
        """
        of_its_own: dict[str, Any]
        if self.data == "spoken_english" and name in SPOKEN_ENGLISH:
            of_its_own = SPOKEN_ENGLISH[name]
        elif self.data in ("spoken_numbers", *OF_LANGUAGES):
            of_its_own = {"languages": name}
        elif self.data == "table":
            of_its_own = {"table": f"{self.table}/{name}" if self.table else None}
        else:
            raise UserError(f"DATA={self.data} cannot be prepared in parts: leave PARTS out")
        folder = self.folder / "parts" / name
        return replace(self, folder=folder, parts=(), **of_its_own)._prepared(folder / "train.jsonl.gz")

    def _joined(self, makes: Path, parts: Sequence[str]) -> Step:
        """Step that joins the parts by concatenating their gzip files. Train comes last, as it marks the end."""
        steps = tuple(self.part(name) for name in parts)
        folders = shlex.join(str(self.folder / "parts" / name) for name in parts)
        joined, folder = shlex.quote(str(self.folder / ".joined")), shlex.quote(str(self.folder))
        line = (
            f"for split in dev test train; do found=$(find {folders} -maxdepth 1 -name $split.jsonl.gz);"
            f' test -z "$found" || {{ cat $found >{joined} && mv {joined} {folder}/$split.jsonl.gz; }}; done'
        )
        return Step(line, makes, steps)

    @cached_property
    def tokenizer(self) -> Step:
        """Step that trains the CTC tokenizer."""
        makes = self.folder / "tokenizer.model"
        tiny = self.size == "tiny"
        pieces = self.vocab or ("64" if self.data == "fsdd" else "256" if tiny else "1547")
        sizes = ["--vocab-size", pieces, "--max-piece-length", self.piece or ("4" if tiny else "16")]
        return self._step("tokenizer", [*self._manifest, *sizes, "--output", str(makes)], makes, self.cuts)

    def scored_alone(self, table: str) -> Step:
        """Step that prepares recordings of any length from a table or folder as a test set beside the corpus."""
        name = f"{Path(table).stem}-{digest(os.path.normpath(table))}"
        folder = self.folder / "other" / name
        options = ["--table", table, "--output", str(folder), "--copy-audio", "--jobs", str(self.jobs)]
        options += ["--only-split", "test", "--max-seconds", "inf", *self._only_language]
        paths = (path for path in (Path(table), *Path(table).rglob("*")) if path.exists())
        newest = max(paths, key=lambda path: path.stat().st_mtime_ns)
        return self._step("table", options, folder / "test.jsonl.gz", Step("", newest))

    def texts_alone(self, text: str, makes: Path) -> Step:
        """Step that makes a manifest of sentences without audio, as long as the corpus's speakers would take."""
        options = ["--text", text, "--like", *self._manifest[1:], "--output", str(makes)]
        return self._step("text_alone", [*options, *self._only_language], makes, Step("", Path(text)), self.cuts)

    @cached_property
    def tiny_llm(self) -> Step:
        """Step that makes the tiny LLM of the transcripts."""
        folder = self.folder / "llm"
        options = [*self._manifest, "--output", str(folder)]
        step = self._step("tiny_llm", options, folder / "config.json", self.cuts)
        return replace(step, environment=self.programs.training_environment)

    @cached_property
    def smollm2(self) -> Step:
        """Step that makes the folder of SmolLM2 that conf/llm/smollm2.yaml names."""
        return self._step("smollm2", ["--output", str(SMOLLM2)], SMOLLM2 / "config.json")

    def llm(self, name: str | None) -> Step | None:
        """Step that makes the LLM of a recipe; None if it is not made here."""
        if name in (None, str(self.folder / "llm")):
            return self.tiny_llm
        return self.smollm2 if name == "smollm2" else None

    @cached_property
    def shar(self) -> Step:
        """Step that packs the training cuts into Lhotse Shar."""
        written = ["--output", str(self.folder / "shar" / "train")]
        options = [*self._manifest, *written, "--codec", self.codec, "--jobs", str(self.jobs)]
        return self._step("shar", options, None, self.cuts)

    @property
    def _only_language(self) -> list[str]:
        """Option that names the language, if there is one alone, of rows that name none."""
        return ["--language", *words(self.languages)] if len(words(self.languages)) == 1 else []

    @property
    def _manifest(self) -> list[str]:
        return ["--manifest", str(self.folder / "train.jsonl.gz")]

"""Files of transcripts: their names, which are there already, and their content."""

import json
import os
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.formats import FORMATS
from speechllm_pl.recognition.transcript import Transcript
from speechllm_pl.storage.whole_file import replace_atomically

FIELDS = ("folder", "name", "suffix")
"""Fields of a template: folder as of `below_given`, name without and suffix of the audio file."""

SOURCES = ".sources.jsonl"
"""File beside transcripts: of each its path without suffix, its audio file's, how it was made, and its suffixes, in a
line. Earlier versions wrote the first two."""


class TranscriptFiles:
    """Output files of each audio file.

    Args:
        folder: where the files are written.
        template: path below it without its suffix, with `FIELDS`.
        formats: formats to write.
        below: path of each audio file as of `below_given`.
        made: checkpoint and options of the transcripts, by name, as plain values.

    Raises:
        UserError: the template has another field, or gives two audio files one name, of which the other may have been
            transcribed before.
    """

    def __init__(
        self, folder: Path, template: str, formats: Sequence[str], below: Mapping[Path, Path], made: Mapping[str, Any]
    ):
        self.formats, self._made = formats, made
        _check(template)
        self._stems = {path: folder / _filled(template, shorter) for path, shorter in below.items()}
        self._folder = folder
        self._sources, self._made_before = _noted(folder / SOURCES)
        twice = [stem for stem, count in Counter(self._stems.values()).items() if count > 1]
        if twice:
            raise UserError(
                f"several audio files would be written to {twice[0]}.{formats[0]}: put {{folder}}, {{name}} and"
                " {suffix} into --output_template, or give them apart and each another --output_dir"
            )
        for path in below:
            self._refuse_anothers(path)

    def of(self, path: Path) -> list[Path]:
        """Output files of an audio file."""
        stem = self._stems[path]
        return [stem.with_name(f"{stem.name}.{suffix}") for suffix in self.formats]

    def are_there(self, path: Path) -> bool:
        """Whether all of them exist and are not older than the audio file."""
        changed = path.stat().st_mtime
        return all(file.is_file() and file.stat().st_mtime >= changed for file in self.of(path))

    def made_otherwise(self, path: Path) -> str:
        """By what other checkpoint and options its files were made; empty if by these, or if it is not known."""
        for file in self.of(path):
            before = self._made_before.get(os.path.relpath(file, self._folder), self._made)
            names = [name for name in {**before, **self._made} if before.get(name) != self._made.get(name)]
            if names:
                values = ((name, *(made.get(name, "default") for made in (before, self._made))) for name in names)
                return ", ".join(f"{name} {value}, now {new}" for name, value, new in values)
        return ""

    def _refuse_anothers(self, path: Path) -> None:
        """Refuse an audio file if there are transcripts in its place that are another's."""
        stem, own = self._stems[path], os.path.realpath(path)
        source = self._sources.get(os.path.relpath(stem, self._folder), own)
        there = [file for suffix in FORMATS if (file := stem.with_name(f"{stem.name}.{suffix}")).exists()]
        if source != own and there:
            raise UserError(
                f"{there[0]} is the transcript of {source}, not of {path}: give another --output_dir, or both in one"
                f" command; if the audio was moved, delete {self._folder / SOURCES}"
            )

    def _note_source(self, path: Path) -> None:
        """Add the audio file to those of the folder; several processes may do so at a time."""
        line = [os.path.relpath(self._stems[path], self._folder), os.path.realpath(path), self._made, *self.formats]
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / SOURCES).open("ab", buffering=0) as file:
            file.write(f"{json.dumps(line)}\n".encode())

    def write(self, path: Path, transcript: Transcript, recording: str) -> None:
        """Write them with the name of the recording, each whole or not at all.

        Raises:
            UserError: one cannot be written.
        """
        target = self._folder / SOURCES
        try:
            self._note_source(path)
            for suffix, target in zip(self.formats, self.of(path), strict=True):
                with replace_atomically(target) as file:
                    for part in FORMATS[suffix](transcript, str(path), recording):
                        file.write(part.encode(errors="backslashreplace"))
        except OSError as error:
            remedy = "free space, or give another --output_dir"
            raise UserError(f"{target} cannot be written ({error.strerror}): {remedy}") from error


def _noted(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Audio file of each transcript in a folder, and how each of its files was made, as far as that was noted."""
    sources, made_before = {}, {}
    try:
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            name, source, *rest = json.loads(line)
            sources[name] = source
            made_before |= {f"{name}.{suffix}": rest[0] for suffix in rest[1:]}
        return sources, made_before
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it, or give another --output_dir") from error


def _check(template: str) -> None:
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise UserError(
            f"--output_template {template!r} is no template ({error}): write {{folder}}/{{name}}"
        ) from error
    if other := sorted(fields - {*FIELDS}):
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise UserError(f"--output_template has {{{other[0]}}}, which is unknown: give one of {known}")


def _filled(template: str, below: Path) -> str:
    return template.format(folder=below.parent, name=below.stem, suffix=below.suffix.removeprefix("."))


def below_given(inputs: Sequence[tuple[Path, Path]]) -> dict[Path, Path]:
    """Path of each audio file below the folder that was given, or below the deepest folder common to several.

    Args:
        inputs: audio files, each with the folder in which it was found.
    """
    common = os.path.commonpath([os.path.abspath(root) for _, root in inputs])
    return {path: Path(os.path.relpath(path, common)) for path, _ in inputs}


def recording_names(below: Mapping[Path, Path]) -> dict[Path, str]:
    """Name of each recording inside a transcript: its path of `below_given`, with the suffix where others share it."""
    count = Counter(path.with_suffix("") for path in below.values())
    return {
        path: str(shorter.with_suffix("") if count[shorter.with_suffix("")] == 1 else shorter)
        for path, shorter in below.items()
    }

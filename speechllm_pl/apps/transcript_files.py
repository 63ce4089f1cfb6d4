"""Files of transcripts: their names, which are there already, and their content."""

import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.formats import FORMATS
from speechllm_pl.recognition.transcript import Transcript
from speechllm_pl.storage.whole_file import replace_atomically

FIELDS = ("folder", "name", "suffix")
"""Fields of a template: folder below the one that was given, name without and suffix of the audio file."""


class TranscriptFiles:
    """Output files of each audio file.

    Args:
        folder: where the files are written.
        template: path below it without its suffix, with `FIELDS`.
        formats: formats to write.
        inputs: audio files, each with the folder in which it was found.

    Raises:
        UserError: the template has another field, or gives two audio files one name.
    """

    def __init__(self, folder: Path, template: str, formats: Sequence[str], inputs: Sequence[tuple[Path, Path]]):
        self.formats = formats
        _check(template)
        self._stems = {path: folder / _filled(template, path, root) for path, root in inputs}
        twice = [stem for stem, count in Counter(self._stems.values()).items() if count > 1]
        if twice:
            raise UserError(
                f"several audio files would be written to {twice[0]}.{formats[0]}: put {{folder}}, {{name}} or"
                " {suffix} into --output_template, or give them apart"
            )

    def of(self, path: Path) -> list[Path]:
        """Output files of an audio file."""
        stem = self._stems[path]
        return [stem.with_name(f"{stem.name}.{suffix}") for suffix in self.formats]

    def are_there(self, path: Path) -> bool:
        """Whether all of them exist and are not older than the audio file."""
        changed = path.stat().st_mtime
        return all(file.is_file() and file.stat().st_mtime >= changed for file in self.of(path))

    def write(self, path: Path, transcript: Transcript) -> None:
        """Write them, each whole or not at all.

        Raises:
            UserError: one cannot be written.
        """
        for suffix, target in zip(self.formats, self.of(path), strict=True):
            try:
                with replace_atomically(target) as file:
                    for part in FORMATS[suffix](transcript, path.stem):
                        file.write(part.encode(errors="backslashreplace"))
            except OSError as error:
                remedy = "free space, or give another --output_dir"
                raise UserError(f"{target} cannot be written ({error.strerror}): {remedy}") from error


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


def _filled(template: str, path: Path, root: Path) -> str:
    return template.format(folder=path.parent.relative_to(root), name=path.stem, suffix=path.suffix.removeprefix("."))

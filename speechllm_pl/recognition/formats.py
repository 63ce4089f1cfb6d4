"""Write a transcript as plain text, JSON, subtitles or a table, piece by piece."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from speechllm_pl.recognition.transcript import Transcript
from speechllm_pl.recognition.word_times import Word

CUE_SECONDS = 7.0
LINE_CHARACTERS = 42
CUE_PAUSE_SECONDS = 0.8
"""A cue is shown no longer, has at most two lines of so many characters, and no longer pause between two words."""


@dataclass(frozen=True)
class Cue:
    """Words that are shown together."""

    start_seconds: float
    end_seconds: float
    text: str


def cues(words: Iterable[Word]) -> Iterator[Cue]:
    """Divide a transcript's words into cues; a word that exceeds the limits has one of its own."""
    shown: list[Word] = []
    for word in words:
        if shown and _is_full(shown, word):
            yield _cue(shown)
            shown = []
        shown.append(word)
    if shown:
        yield _cue(shown)


def _is_full(shown: list[Word], word: Word) -> bool:
    lines = _lines(" ".join(each.text for each in [*shown, word])).split("\n")
    return (
        max(map(len, lines)) > LINE_CHARACTERS
        or word.end_seconds - shown[0].start_seconds > CUE_SECONDS
        or word.start_seconds - shown[-1].end_seconds > CUE_PAUSE_SECONDS
    )


def _cue(words: list[Word]) -> Cue:
    return Cue(words[0].start_seconds, words[-1].end_seconds, " ".join(word.text for word in words))


def _lines(text: str) -> str:
    """The text on one line, or broken at the space nearest to its middle if it is longer."""
    spaces = [place for place, character in enumerate(text) if character == " "]
    if len(text) <= LINE_CHARACTERS or not spaces:
        return text
    middle = min(spaces, key=lambda place: abs(2 * place + 1 - len(text)))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def as_txt(transcript: Transcript, file: str, name: str) -> Iterator[str]:
    """The text on one line."""
    yield transcript.text + "\n"


def json_row(transcript: Transcript, file: str, name: str) -> dict[str, Any]:
    """All that is known, with times in seconds."""
    return {
        "file": file,
        "recording": name,
        "seconds": round(transcript.seconds, 3),
        "language": transcript.language,
        "decoded_by": transcript.decoded_by,
        "text": transcript.text,
        "pieces": [asdict(piece) for piece in transcript.pieces],
    }


def as_json(transcript: Transcript, file: str, name: str) -> Iterator[str]:
    """`json_row`, with a piece a line."""
    row = json_row(transcript, file, name)
    pieces = row.pop("pieces")
    yield json.dumps(row, ensure_ascii=False)[:-1] + ', "pieces": [\n'
    for number, piece in enumerate(pieces):
        yield (",\n" if number else "") + json.dumps(piece, ensure_ascii=False)
    yield "]}\n"


def as_srt(transcript: Transcript, file: str, name: str) -> Iterator[str]:
    """SubRip subtitles."""
    for number, cue in enumerate(cues(transcript.words), 1):
        times = f"{_clock(cue.start_seconds, ',')} --> {_clock(cue.end_seconds, ',')}"
        yield ("\n" if number > 1 else "") + f"{number}\n{times}\n{_lines(cue.text)}\n"


def as_vtt(transcript: Transcript, file: str, name: str) -> Iterator[str]:
    """WebVTT subtitles (W3C), with the characters escaped that have a meaning there."""
    yield "WEBVTT\n"
    for cue in cues(transcript.words):
        times = f"{_clock(cue.start_seconds, '.')} --> {_clock(cue.end_seconds, '.')}"
        yield f"\n{times}\n{_escaped(_lines(cue.text))}\n"


def as_tsv(transcript: Transcript, file: str, name: str) -> Iterator[str]:
    """A row a cue: start and end in milliseconds, text; tabs between them."""
    yield "start\tend\ttext\n"
    for cue in cues(transcript.words):
        yield f"{round(cue.start_seconds * 1000)}\t{round(cue.end_seconds * 1000)}\t{cue.text}\n"


def as_ctm(transcript: Transcript, file: str, name: str) -> Iterator[str]:
    """NIST's time-marked conversation format: recording, channel, start, duration, word, confidence."""
    recording = "_".join(name.split())  # its fields are separated by spaces
    for word in transcript.words:
        times = f"{word.start_seconds:.2f} {word.end_seconds - word.start_seconds:.2f}"
        yield f"{recording} 1 {times} {word.text} {word.confidence:.2f}\n"


FORMATS: dict[str, Callable[[Transcript, str, str], Iterator[str]]] = {
    "txt": as_txt,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
    "ctm": as_ctm,
}
"""Writers by suffix: from a transcript, its audio file and the name of its recording to the parts of their content."""


def _clock(seconds: float, point: str) -> str:
    """`01:02:03,450` for 3723.45 s."""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    whole, thousandths = divmod(rest, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

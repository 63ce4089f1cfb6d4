"""Write a transcript as plain text, JSON, subtitles or a table, piece by piece."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from speechllm_pl.recognition.transcript import Transcript
from speechllm_pl.recognition.word_times import Word

CUE_SECONDS = 7.0
CUE_CHARACTERS = 84
CUE_PAUSE_SECONDS = 0.8
"""A cue is shown no longer, has no more characters (two lines of 42), and no longer pause between two of its words."""


@dataclass(frozen=True)
class Cue:
    """Words that are shown together."""

    start_seconds: float
    end_seconds: float
    text: str


def cues(words: Sequence[Word]) -> Iterator[Cue]:
    """Divide a transcript's words into cues; a word that exceeds the limits has one of its own."""
    shown: list[Word] = []
    for word in words:
        if shown and _is_full(shown, word):
            yield _cue(shown)
            shown = []
        shown.append(word)
    if shown:
        yield _cue(shown)


def _is_full(shown: Sequence[Word], word: Word) -> bool:
    characters = sum(len(each.text) + 1 for each in shown) + len(word.text)
    return (
        characters > CUE_CHARACTERS
        or word.end_seconds - shown[0].start_seconds > CUE_SECONDS
        or word.start_seconds - shown[-1].end_seconds > CUE_PAUSE_SECONDS
    )


def _cue(words: Sequence[Word]) -> Cue:
    return Cue(words[0].start_seconds, words[-1].end_seconds, " ".join(word.text for word in words))


def as_txt(transcript: Transcript, name: str) -> str:
    """The text on one line."""
    return transcript.text + "\n"


def as_json(transcript: Transcript, name: str) -> str:
    """All that is known, with times in seconds."""
    known = {"recording": name, "text": transcript.text, "decoded_by": transcript.decoded_by, **asdict(transcript)}
    return json.dumps(known, ensure_ascii=False, indent=2) + "\n"


def as_srt(transcript: Transcript, name: str) -> str:
    """SubRip subtitles."""
    blocks = (
        f"{number}\n{_clock(cue.start_seconds, ',')} --> {_clock(cue.end_seconds, ',')}\n{cue.text}\n"
        for number, cue in enumerate(cues(transcript.words), 1)
    )
    return "\n".join(blocks)


def as_vtt(transcript: Transcript, name: str) -> str:
    """WebVTT subtitles (W3C), with the characters escaped that have a meaning there."""
    blocks = (
        f"{_clock(cue.start_seconds, '.')} --> {_clock(cue.end_seconds, '.')}\n{_escaped(cue.text)}\n"
        for cue in cues(transcript.words)
    )
    return "\n".join(["WEBVTT\n", *blocks])


def as_tsv(transcript: Transcript, name: str) -> str:
    """A row a cue: start and end in milliseconds, text; tabs between them."""
    rows = (
        f"{round(cue.start_seconds * 1000)}\t{round(cue.end_seconds * 1000)}\t{cue.text}\n"
        for cue in cues(transcript.words)
    )
    return "".join(["start\tend\ttext\n", *rows])


def as_ctm(transcript: Transcript, name: str) -> str:
    """NIST's time-marked conversation format: recording, channel, start, duration, word, confidence."""
    recording = "_".join(name.split())  # its fields are separated by spaces
    rows = (
        f"{recording} 1 {word.start_seconds:.2f} {word.end_seconds - word.start_seconds:.2f} {word.text}"
        f" {word.confidence:.2f}\n"
        for word in transcript.words
    )
    return "".join(rows)


FORMATS: dict[str, Callable[[Transcript, str], str]] = {
    "txt": as_txt,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
    "tsv": as_tsv,
    "ctm": as_ctm,
}
"""By suffix, what makes a file's content of a transcript and the name of its recording."""


def _clock(seconds: float, point: str) -> str:
    """`01:02:03,450` for 3723.45 s."""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    whole, thousandths = divmod(rest, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

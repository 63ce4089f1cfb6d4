"""Lines of a manifest or of a Shar folder: their cuts and their faults.

Ordinary lines are not deserialised one by one: `glance` reads what is needed.
"""

import json
import math
from typing import NamedTuple

from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from speechllm_pl.core.audio.sources import REMEDY, runs_in_shell, unsafe_source
from speechllm_pl.core.cut_fields import LONGEST_SECONDS, agree, wrong_field
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import UNKNOWN_LANGUAGE


def cut_from_line(line: bytes, place: str, *, allow_commands: bool = False, shar: bool = False) -> Cut:
    """Deserialise a cut and check it.

    Args:
        allow_commands: accept a cut whose audio is not a file.
        shar: whether the line is of a Shar folder, which has the audio.

    Raises:
        UserError: it is no cut that can be trained on, or its audio no file; `place` says where it stands.
    """
    wrong = ""
    try:
        fields = json.loads(line)
        if not allow_commands and (unsafe := unsafe_source(fields, shar=shar)):
            raise UserError(told(unsafe, place))
        wrong = wrong_field(fields)
        cut = deserialize_item(fields)
        lasts = 0 < cut.duration < math.inf
    except UserError:
        raise
    except Exception as error:  # lhotse raises whatever the missing field leads to
        why = wrong and f", {wrong}"
        raise UserError(
            f"{place}: not a Lhotse cut{why}: mend or delete this line, or prepare the data again"
        ) from error
    if len(getattr(cut, "supervisions", ())) != 1:
        raise UserError(f"{place}: cut {getattr(cut, 'id', '?')} must have exactly one supervision")
    if not lasts:
        raise UserError(f"{place}: cut {cut.id} lasts {cut.duration} seconds: delete this line")
    if wrong:
        raise UserError(f"{place}: {wrong}: mend or delete this line")
    return cut


def told(unsafe: str, place: str) -> str:
    return unsafe and f"{place}: {unsafe}: {REMEDY}"


class Glance(NamedTuple):
    """Fields of an ordinary line, read without deserialising its cut."""

    fields: tuple  # names and types of those that it has
    id: str
    duration: float
    text: str
    language: str


def glance(line: bytes) -> Glance | None:
    """Read a line without deserialising its cut; None if it is not an ordinary cut."""
    try:
        cut = json.loads(text := line.decode())
        (supervision,) = cut["supervisions"]
        recording = cut.get("recording") or {}
        kinds = _kinds_of_audio(recording)
        fields = cut["type"], _form(cut), _form(supervision), _form(recording), kinds
        hash(fields)  # a type that is a list has none
        halves = "\\ud" in text or "\\uD" in text  # perhaps of surrogate pairs
        if kinds is not None and not _holds_more(cut.get("custom") or {}) and not halves and _in_range(cut, recording):
            language = supervision.get("language") or UNKNOWN_LANGUAGE
            return Glance(fields, cut["id"], cut["duration"], supervision.get("text") or "", language)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
        pass
    return None


def _form(fields: dict) -> tuple:
    """Names and types of the fields. Lines with the same form as a checked one need no check of types."""
    return tuple(fields), tuple(map(type, fields.values()))


def _in_range(cut: dict, recording: dict) -> bool:
    """Whether values of the right types are possible."""
    return (
        cut["id"] != ""
        and cut["start"] >= 0
        and 0 < cut["duration"] <= LONGEST_SECONDS
        and (not recording or (recording["id"] != "" and recording["num_samples"] > 0 and agree(recording)))
    )


def _kinds_of_audio(recording: dict) -> tuple | None:
    """Type of each source, and whether a shell would read its name: lines that agree in it are equally safe.

    None if there is more to check, such as transforms with recordings of their own.
    """
    if any(_holds_more(transform["kwargs"]) for transform in recording.get("transforms") or ()):
        return None
    return tuple((source["type"], runs_in_shell(source["source"])) for source in recording.get("sources", ()))


def _holds_more(fields: dict) -> bool:
    return any(isinstance(value, dict | list) for value in fields.values())

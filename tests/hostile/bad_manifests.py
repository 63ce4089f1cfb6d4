"""Lhotse manifests with values of any kind, commands, and damage: through `evaluate` and what is trained on texts."""

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import Bench
from hypothesis import strategies as st
from jail import Ended
from lhotse import Recording, SupervisionSegment
from odd_values import VALUES, WRAPPINGS, Wrapping, damaged, wrapped
from trials import CANARY, Trial, heard_samples

PLACES: list[tuple[str | int, ...]] = [
    *[
        (name,)
        for name in ("id", "start", "duration", "channel", "type", "supervisions", "recording", "custom", "tracks")
    ],
    *[("supervisions", 0, name) for name in ("id", "start", "duration", "text", "language", "speaker", "custom")],
    *[("recording", name) for name in ("id", "sources", "sampling_rate", "num_samples", "duration", "transforms")],
    *[("recording", "sources", 0, name) for name in ("type", "channels", "source")],
    ("supervisions", 0),
    ("recording", "sources", 0),
]
"""Of a cut, where something else may stand."""

RUN = f"touch {CANARY}"
COMMAND = {"type": "command", "channels": [0], "source": RUN}


def _commanded(cut: dict, how: str) -> None:
    """Bring a command in."""
    source, recording = cut["recording"]["sources"][0], copy.deepcopy(cut["recording"])
    if how == "source":
        source.update(COMMAND)
    elif how == "pipe":
        source.update(type="url", source=f"pipe:{RUN}")
    elif how == "name":
        source.update(source=f"x; {RUN}; .sph")
    elif how == "room":
        reverb = {"name": "ReverbWithImpulseResponse", "kwargs": {"rir": recording | {"sources": [COMMAND]}}}
        cut["recording"]["transforms"] = [reverb]
    elif how == "custom":
        cut["custom"] = {"target": recording | {"sources": [COMMAND]}}
    else:
        inner = {key: value for key, value in copy.deepcopy(cut).items() if key != "type"}
        inner["recording"]["sources"] = [COMMAND]
        cut.clear()
        cut.update(id="mixed", type="MixedCut", tracks=[{"cut": inner, "type": "MonoCut", "offset": 0.0}])


COMMANDS = ("source", "pipe", "name", "room", "custom", "track")
RAW = (
    "",
    "[]",
    "null",
    "7",
    '"cut"',
    "{",
    "{}",
    "[" * 100_000,
    '{"id":' * 50_000,
    '{"id": "a", "id": "b"}',
    "9" * 5000,
)
"""Lines that are no cut."""


class Line(NamedTuple):
    """The good cut, changed; or a line as it stands."""

    changes: tuple[tuple[tuple[str | int, ...], Any], ...] = ()  # places, and what is put there
    dropped: tuple[str, ...] = ()
    command: str = ""
    raw: str | None = None
    repeated: bool = False  # has the id of the good one


class Manifest(NamedTuple):
    lines: tuple[Line, ...]
    suffix: str
    wrapping: Wrapping
    command: str

    @property
    def kind(self) -> str:
        kinds = [
            ("commands", any(line.command for line in self.lines)),
            ("damaged", bool(self.wrapping.cut or self.wrapping.flipped)),
            ("encoding", self.wrapping.name != "utf-8" or not self.suffix.startswith(".jsonl")),
            ("no cut", any(line.raw is not None for line in self.lines)),
            ("repeated id", any(line.repeated for line in self.lines)),
            ("wrong values", any(line.changes or line.dropped for line in self.lines)),
        ]
        return next((kind for kind, holds in kinds if holds), "nothing wrong")


def _lines() -> st.SearchStrategy[Line]:
    changes = st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2).map(tuple)
    names = st.sampled_from([place[0] for place in PLACES])
    return st.one_of(
        changes.map(lambda each: Line(changes=each)),
        changes.map(lambda each: Line(changes=each)),
        st.lists(names, min_size=1, max_size=2).map(lambda each: Line(dropped=tuple(map(str, each)))),
        st.sampled_from(COMMANDS).map(lambda each: Line(command=each)),
        (st.sampled_from(RAW) | st.text(max_size=10)).map(lambda each: Line(raw=each)),
        st.just(Line(repeated=True)),
        st.just(Line()),
    )


INPUTS = st.builds(
    Manifest,
    st.lists(_lines(), min_size=1, max_size=2).map(tuple),
    st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.gz", ".jsonl but gzipped", ".gz but plain"]),
    WRAPPINGS,
    st.sampled_from(["evaluate", "evaluate", "tokenizer", "texts"]),
)


def trial(bench: Bench, manifest: Manifest, folder: Path) -> Trial:
    """The manifest, after a good cut, on its way through its command."""
    good = _cut(bench, "good")
    lines = [json.dumps(good), *(_written(bench, number, line) for number, line in enumerate(manifest.lines))]
    path = folder / f"cuts{'.jsonl.gz' if '.gz' in manifest.suffix else '.jsonl'}"
    path.write_bytes(_packed("".join(f"{line}\n" for line in lines), manifest))
    if manifest.command == "evaluate":
        arguments = ["--cuts", str(path), "--checkpoint", str(bench.ctc), "--output", str(folder / "out")]
        judge = _judge(folder, path)
        return Trial(f"{manifest.kind}: evaluate", "speechllm", ["evaluate", *arguments], (str(path),), judge)
    arguments = [str(path)]
    if manifest.command == "tokenizer":
        arguments = ["--manifest", str(path), "--output", str(folder / "model"), "--vocab-size", "64"]
    named = (str(path), "a vocabulary of 64 cannot hold")
    return Trial(f"{manifest.kind}: {manifest.command}", manifest.command, arguments, named, lambda ended: ("text", ""))


def _packed(text: str, manifest: Manifest) -> bytes:
    if manifest.suffix in (".jsonl", ".gz but plain"):
        return wrapped(text, manifest.wrapping)
    content = gzip.compress(wrapped(text, Wrapping(manifest.wrapping.name)), mtime=0)
    return damaged(content, manifest.wrapping)


def _cut(bench: Bench, id_: str) -> dict:
    cut = Recording.from_file(bench.good, recording_id=id_).to_cut().with_id(id_)
    cut.supervisions = [SupervisionSegment(id_, id_, 0, cut.duration, text="one two", language="en")]
    return json.loads(json.dumps(cut.to_dict()))


def _written(bench: Bench, number: int, line: Line) -> str:
    if line.raw is not None:
        return line.raw.replace("\n", " ")
    cut = _cut(bench, "good" if line.repeated else f"bad-{number}")
    if line.command:
        _commanded(cut, line.command)
    for places, value in line.changes:
        _put(cut, places, value)
    for name in line.dropped:
        cut.pop(name, None)
    return json.dumps(cut)


def _put(cut: Any, places: tuple[str | int, ...], value: Any) -> None:
    """Put a value at a place, if that is still there."""
    *outer, last = places
    for place in outer:
        inside = cut.get(place) if isinstance(cut, dict) else cut[:1] if isinstance(cut, list) else None
        cut = inside[0] if isinstance(cut, list) and inside else inside
    if isinstance(cut, dict) and isinstance(last, str):
        cut[last] = value
    elif isinstance(cut, list) and cut:
        cut[0] = value


def _judge(folder: Path, path: Path) -> Callable[[Ended], tuple[str, str]]:
    """Every line was heard, as long as it says, or is told."""

    def judge(ended: Ended) -> tuple[str, str]:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        cuts = [json.loads(line) for line in text.splitlines()]
        heard = heard_samples(folder)
        scores = json.loads((folder / "out" / "scores.json").read_text())
        unread = scores["ctc"]["unreadable"]
        if sorted([*heard, *unread]) != sorted(cut["id"] for cut in cuts):
            return "lost", f"heard were {[*heard]}, told unread {unread}"
        for cut in cuts:
            if (
                cut["id"] in heard
                and abs(heard[cut["id"]] - 16_000 * cut.get("duration", 0)) > 1600
                and "tracks" not in cut
            ):
                return "silent partial", f"heard were {heard[cut['id']]} samples of {cut['duration']} s"
        return ("set aside", "") if unread else ("text", "")

    return judge

"""Tables of a user's own data with cells, columns and encodings of any kind: through `data_prep.table`."""

import csv
import gzip
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import Bench
from hypothesis import strategies as st
from jail import Ended
from odd_values import TEXTS, VALUES, WRAPPINGS, Wrapping, wrapped
from trials import CONTROL, Trial

from speechllm_pl.data.manifest import read_manifest

COLUMNS = ("id", "path", "text", "language", "speaker", "split", "start", "end", "PATH", "sentence", "other", "")
TIMES = st.sampled_from(["0", "0.1", "-1", "inf", "-inf", "nan", "1e400", "0,5", "1_0", "99", "0x1", "١"])
PATHS = st.sampled_from(
    ["good.wav", "good", "missing.wav", "/dev/zero", "x; touch canary; .sph", "fifo.wav", "..", "\0", "a" * 300]
)
CELLS = st.one_of(TEXTS, TIMES, PATHS, st.sampled_from(["en", "xx", "train", "dev", "one two"]))

GOOD = ("path", "text", "language", "id")
USUAL = {"path": "good.wav", "text": "one two", "language": "en", "start": "0", "end": "0.5"}
OF_COLUMN = {"path": PATHS, "id": PATHS, "start": TIMES, "end": TIMES}
"""What may be wrong with a column above all."""


class Table(NamedTuple):
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    format: str
    wrapping: Wrapping

    @property
    def kind(self) -> str:
        if self.wrapping.cut or self.wrapping.flipped:
            return "damaged"
        if self.wrapping.name != "utf-8":
            return "encoding"
        return "cells" if self.header[: len(GOOD)] == GOOD else "columns"


FORMATS = ("tsv", "csv", "csv with ;", "jsonl")


@st.composite
def _tables(draw: st.DrawFn) -> Table:
    more = tuple(draw(st.lists(st.sampled_from(COLUMNS), max_size=3)))
    timed = (*GOOD, "start", "end")
    header = draw(st.sampled_from([timed, timed, (*GOOD, *more), more]))
    format = draw(st.sampled_from(FORMATS))
    cells = VALUES if format == "jsonl" else CELLS
    rows = draw(st.lists(_rows(header, cells), max_size=3))
    return Table(header, tuple(rows), format, draw(WRAPPINGS))


@st.composite
def _rows(draw: st.DrawFn, header: tuple[str, ...], cells: st.SearchStrategy[Any]) -> tuple[Any, ...]:
    """Rows as they should be but for up to three cells: where all is wrong, only the first thing is looked at."""
    row = [USUAL[name] if name in USUAL else draw(cells) for name in header]
    row += draw(st.sampled_from([[], [], [], ["more"]]))
    for place in draw(st.lists(st.integers(0, len(row) - 1), max_size=3)) if row else ():
        name = header[place] if place < len(header) else ""
        row[place] = draw(OF_COLUMN.get(name, cells))
    return tuple(row[: len(row) - draw(st.sampled_from([0, 0, 0, 1]))])


INPUTS = _tables()


def trial(bench: Bench, table: Table, folder: Path) -> Trial:
    """The table, beside a recording that its rows may name."""
    (folder / "good.wav").symlink_to(bench.good)
    path, output = folder / f"table.{table.format.split()[0]}", folder / "out"
    if table.header[: len(GOOD)] == GOOD:
        table = table._replace(
            rows=(("good.wav", "one two", "en", "good", *[""] * (len(table.header) - len(GOOD))), *table.rows)
        )
    text = _text(table)
    path.write_bytes(wrapped(text, table.wrapping))
    arguments = ["--table", str(path), "--output", str(output), "--jobs", "1"]
    return Trial(
        f"{table.kind}: {table.format}", "table", arguments, (str(path), str(output)), _judge(table, path, output)
    )


def _text(table: Table) -> str:
    if table.format == "jsonl":
        rows = [dict(zip(table.header, row, strict=False)) for row in table.rows]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if table.format == "tsv":
        return "".join("\t".join(map(str, row)) + "\n" for row in (table.header, *table.rows))
    file = io.StringIO()
    writer = csv.writer(file, delimiter=";" if ";" in table.format else ",", lineterminator="\n")
    writer.writerows([table.header, *table.rows])
    return file.getvalue()


def _judge(table: Table, path: Path, output: Path) -> Callable[[Ended], tuple[str, str]]:
    """Each row is kept or in the quarantine, and what is kept can be read and lies in its recording."""

    def judge(ended: Ended) -> tuple[str, str]:
        quarantine = (output / "quarantine.tsv").read_text()
        rejected = quarantine.split("\n")[1:-1]
        if CONTROL.search(quarantine):
            return "written to the quarantine", "it has control characters"
        manifests = [*output.glob("*.jsonl.gz")]
        kept = [json.loads(line) for each in manifests for line in gzip.decompress(each.read_bytes()).splitlines()]
        for manifest in manifests:
            read_manifest(manifest)
        content = path.read_bytes()
        lines = sum(bool(line.strip()) for line in content.split(b"\n"))
        one_a_line = table.format.startswith(("tsv", "jsonl")) or b'"' not in content
        if one_a_line and len(kept) + len(rejected) not in (lines - (table.format != "jsonl"), lines):
            return "lost", f"{len(kept)} kept and {len(rejected)} in the quarantine, of {lines} lines"
        for cut in kept:
            end = cut["start"] + cut["duration"]
            if not (math.isfinite(end) and 0 <= cut["start"] < end <= cut["recording"]["duration"] + 0.1):
                return "beyond its recording", f"{cut['id']} is kept from {cut['start']} to {end}"
        return ("set aside", "") if rejected else ("text", "")

    return judge

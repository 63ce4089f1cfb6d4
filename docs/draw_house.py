"""Draws house.svg: the packages on their floors, and which of them import which. Run it without arguments.

Floors are import-linter's layers in pyproject.toml, imports are read by grimp, which import-linter uses as well. An
arrow is left out where a longer way of arrows says it: with all of them the picture would say nothing.
"""

import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import grimp

ROOT = Path(__file__).parent.parent
DRAWING = ROOT / "docs" / "house.svg"
HOUSE, BESIDE = "speechllm_pl", "data_prep"

WIDTH, MARGIN = 920, 20  # pixels, as all below
GAP, BETWEEN_FLOORS, LANE = 24, 44, 20
PADDING, LINE = 12, 17
CHARACTER = 6.6
"""Of the width, on average, of 12 px system fonts."""

STYLE = """
    text { font-size: 12px; fill: #444 } .name { font-size: 16px; font-weight: 600; fill: #222 }
    .room { font-weight: 600 } .count { fill: #777 }
    .plain { fill: #eef3fb; stroke: #3b6fb6; stroke-width: 1.5 }
    .lightning { fill: #fdf1e3; stroke: #d98324; stroke-width: 1.5 }
    .beside { stroke-dasharray: 5 3 }
    .arrow { stroke: #555; stroke-width: 1.5; fill: none }
"""


LEGEND = "Arrows are imports; what follows from others is left out. Orange: imports Lightning. Dashed: stands beside."


@dataclass
class Box:
    """A package, or a lane in which an arrow passes a floor."""

    package: str | None
    modules: dict[str, list[str]]
    """By room, a package inside the package; "" is the package itself."""
    knows_lightning: bool = False
    left: float = 0.0
    right: float = 0.0

    @property
    def centre(self) -> float:
        return (self.left + self.right) / 2

    @property
    def weight(self) -> int:
        return sum(len(name) + 2 for names in self.modules.values() for name in names)

    def lines(self) -> list[tuple[str, str]]:
        """Rows of text as (room, modules), as wide as the box."""
        rows = []
        for room, names in sorted(self.modules.items()):
            head = f"{room}/ " if room else ""
            wrapped = textwrap.wrap(head + ", ".join(names), int((self.right - self.left - 2 * PADDING) / CHARACTER))
            rows += [("", row) for row in wrapped]
            if room:
                rows[-len(wrapped)] = (head, wrapped[0].removeprefix(head))
        return rows


def floors() -> list[list[str]]:
    """Packages of each floor, from the top."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if HOUSE + ".core" in each.get("layers", ()))
    return [[package.strip(" ()") for package in layer.replace(":", "|").split("|")] for layer in layers]


def needed(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Imports between packages without those that others imply."""

    def below(package: str) -> set[str]:
        return imports[package].union(*map(below, imports[package]))

    return {package: direct - set().union(*map(below, direct)) for package, direct in imports.items()}


def draw() -> str:
    """The drawing, from the imports as they are."""
    graph = grimp.build_graph(HOUSE, BESIDE, include_external_packages=True, cache_dir=None)
    levels = {package: level for level, row in enumerate(floors()) for package in row}
    packages = [*levels, BESIDE]
    members = {package: sorted({package} | graph.find_descendants(package)) for package in packages}
    imported = {
        package: set().union(*map(graph.find_modules_directly_imported_by, members[package])) for package in packages
    }
    home = {module: package for package in packages for module in members[package]}
    imports = {package: {home[name] for name in imported[package] if name in home} - {package} for package in packages}
    levels[BESIDE] = min(levels[package] for package in imports[BESIDE]) - 1
    rows: list[list[Box]] = [[] for _ in range(max(levels.values()) + 1)]
    boxes = {}
    for package in packages:
        boxes[package] = Box(package, _rooms(package, members[package]), "lightning" in imported[package])
        rows[levels[package]].append(boxes[package])
    ways = list(_ways(needed(imports), levels, boxes, rows))
    _place(rows, ways)
    return _svg(rows, ways)


def _rooms(package: str, modules: Iterable[str]) -> dict[str, list[str]]:
    rooms: dict[str, list[str]] = defaultdict(list)
    names = [module.removeprefix(package).removeprefix(".") for module in modules]
    for name in filter(None, names):
        room, _, module = name.rpartition(".")
        if module != "__main__" and not any(other.startswith(name + ".") for other in names):
            rooms[room].append(module)
    return rooms


def _ways(
    imports: dict[str, set[str]], levels: dict[str, int], boxes: dict[str, Box], rows: list[list[Box]]
) -> Iterator[list[Box]]:
    """Boxes through which each arrow goes, from floor to floor, with lanes between its ends."""
    for package, below in imports.items():
        for other in sorted(below, key=lambda name: (levels[name], name)):
            lanes = [Box(None, {}) for _ in range(levels[package] + 1, levels[other])]
            for level, lane in enumerate(lanes, start=levels[package] + 1):
                rows[level].append(lane)
            yield [boxes[package], *lanes, boxes[other]]


def _place(rows: list[list[Box]], ways: list[list[Box]]) -> None:
    """Side by side below what leads to them, or right of the middle where nothing does."""
    above: dict[int, list[Box]] = defaultdict(list)
    for way in ways:
        for upper, lower in pairwise(way):
            above[id(lower)].append(upper)
    for row in rows:
        row.sort(key=lambda box: fmean([upper.centre for upper in above[id(box)]] or [0.75 * WIDTH]))
        lanes = sum(box.package is None for box in row)
        room = WIDTH - 2 * MARGIN - GAP * (len(row) - 1) - LANE * lanes
        total = sum(box.weight + 60 for box in row if box.package)
        left = float(MARGIN)
        for box in row:
            box.left = left
            box.right = left + (room * (box.weight + 60) / total if box.package else LANE)
            left = box.right + GAP


def _svg(rows: list[list[Box]], ways: list[list[Box]]) -> str:
    tops, parts, y = {}, [], float(MARGIN)
    heights = [2 * PADDING + 10 + LINE * max(len(box.lines()) for box in row if box.package) for row in rows]
    for row, height in zip(rows, heights, strict=True):
        for box in row:
            tops[id(box)] = (y, y + height)
            parts += _box(box, y, height) if box.package else ()
        y += height + BETWEEN_FLOORS
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" font-family="system-ui, sans-serif"'
        ' role="img" aria-label="Packages on their floors; arrows, which all go down, are imports">\n'
        f"  <style>{STYLE}  </style>\n"
        '  <defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#555"/></marker></defs>\n'
        f'  <rect width="{WIDTH}" height="{y:.0f}" fill="#fff"/>\n'
        + "\n".join(f"  {part}" for part in [*parts, *_arrows(ways, tops)])
        + f'\n  <text x="{MARGIN}" y="{y - 20:.0f}">{LEGEND}</text>\n</svg>\n'
    )


def _box(box: Box, y: float, height: float) -> Iterator[str]:
    kind = ("lightning" if box.knows_lightning else "plain") + (" beside" if box.package == BESIDE else "")
    name = (box.package or "").removeprefix(HOUSE + ".")
    count = sum(map(len, box.modules.values()))
    place = f'x="{box.left:.0f}" y="{y:.0f}" width="{box.right - box.left:.0f}" height="{height:.0f}"'
    yield f'<rect class="{kind}" {place} rx="6"/>'
    x, line = box.left + PADDING, y + PADDING + 10
    title = f'<tspan class="name">{name}</tspan><tspan class="count" dx="8">{count}</tspan>'
    yield f'<text x="{x:.0f}" y="{line:.0f}">{title}</text>'
    for row, (room, modules) in enumerate(box.lines(), start=1):
        head = f'<tspan class="room">{room.strip()}</tspan> ' if room else ""
        yield f'<text x="{x:.0f}" y="{line + 2 + LINE * row:.0f}">{head}{modules}</text>'


def _arrows(ways: list[list[Box]], tops: dict[int, tuple[float, float]]) -> Iterator[str]:
    """Straight down where boxes overlap and in lanes, else curves between the ends that are nearest."""
    for way in ways:
        path = ""
        for upper, lower in pairwise(way):
            x, x_below = _ends(upper, lower)
            y, y_below = tops[id(upper)][1], tops[id(lower)][0]
            middle = (y + y_below) / 2
            path += f"{'L' if path else 'M'}{x:.0f} {y:.0f} C{x:.0f} {middle:.0f} {x_below:.0f} {middle:.0f} "
            path += f"{x_below:.0f} {y_below:.0f} "
        yield f'<path class="arrow" marker-end="url(#head)" d="{path.strip()}"/>'


def _ends(upper: Box, lower: Box) -> tuple[float, float]:
    left, right = max(upper.left, lower.left), min(upper.right, lower.right)
    if right - left >= LANE:
        return (left + right) / 2, (left + right) / 2
    inset = LANE / 2
    if upper.centre < lower.centre:
        return upper.right - inset, lower.left + inset
    return upper.left + inset, lower.right - inset


if __name__ == "__main__":
    DRAWING.write_text(draw(), encoding="utf-8")
    print(DRAWING.relative_to(ROOT))

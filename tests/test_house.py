"""The drawing of the house is what the imports say."""

import ast
import runpy
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "draw_house.py"


@pytest.fixture(scope="module")
def house():
    return runpy.run_path(str(SCRIPT))


def test_the_drawing_is_up_to_date(house):
    drawn = (ROOT / "docs" / "house.svg").read_text(encoding="utf-8")
    assert drawn == house["draw"](), "modules or imports have changed; draw them: .venv/bin/python docs/draw_house.py"


def test_every_package_has_a_floor(house):
    packages = {f"speechllm_pl.{path.parent.name}" for path in (ROOT / "speechllm_pl").glob("*/__init__.py")}
    assert set(chain(*house["floors"]())) == packages


def test_an_import_that_others_imply_is_left_out(house):
    imports = {"roof": {"floor", "cellar"}, "floor": {"stairs"}, "stairs": {"cellar"}, "cellar": set()}
    found = house["needed"](imports)
    assert found == {"roof": {"floor"}, "floor": {"stairs"}, "stairs": {"cellar"}, "cellar": set()}


OUTSIDE = ("open", "read_text", "read_bytes", "write_text", "write_bytes", "is_available", "print")
"""Functions that reach a file, a device or a terminal."""


def test_core_calls_nothing_that_reaches_outside():
    """What it imports is import-linter's to say."""
    for path in (ROOT / "speechllm_pl" / "core").rglob("*.py"):
        calls = (node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        names = {getattr(call, "id", getattr(call, "attr", "")) for call in calls}
        assert not names & set(OUTSIDE), path

"""The drawing of the house is what the imports say."""

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

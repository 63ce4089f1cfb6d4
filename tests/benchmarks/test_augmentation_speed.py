"""The benchmark of augmentation runs, and knows every augmentation that is shipped."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_every_shipped_augmentation_is_measured() -> None:
    program = ROOT / "benchmarks" / "augmentation_speed.py"
    done = subprocess.run(
        [sys.executable, program, "--utterances", "3"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    shipped = {
        name
        for path in (ROOT / "conf" / "augment").glob("*.yaml")
        for name in (f"AUGMENT={path.stem}", *re.findall(r"class_path: .*\.(\w+)", path.read_text()))
    }
    measured = set(re.findall(r"^  ([A-Z][\w=]+) +[\d,]+$", done.stdout, flags=re.MULTILINE))
    assert measured == shipped - {"AddNoise"}
    assert re.search(r"^ +50 utterances .* 100%  100%  100%$", done.stdout, flags=re.MULTILINE)

"""What docs/data.md tells people to type works, and its figures agree with --help."""

import importlib
import re
from pathlib import Path

import pytest
from forwarded import lines

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "data.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL) for line in block.splitlines()]
CORPORA = ("mls", "common_voice", "voxpopuli", "librispeech")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_make_knows(command: str) -> None:
    data = re.search(r"DATA=(\w+)", command)
    assert data
    preparing = "make data" in command
    found = lines(command, prepared=not preparing)
    assert found
    assert any(f"data_prep.{data[1]} --corpus" in line for line in found) or not preparing


def test_options_that_the_guide_names_exist(capsys: pytest.CaptureFixture) -> None:
    shown = ""
    for name in (*CORPORA, "table"):
        with pytest.raises(SystemExit):
            importlib.import_module(f"data_prep.{name}").main(["--help"])
        shown += capsys.readouterr().out
    own = GUIDE.split("## Shar")[0]
    of_others = {"--voices", "--folder", "--recordings", "--utterances", "--root", "--subset", "--lang", "--help"}
    options = set(re.findall(r"--[a-z]+(?:-[a-z]+)*", own)) - of_others
    assert options >= {"--check", "--strict", "--limited", "--fold", "--train", "--subsets", "--max-seconds"}
    assert {option for option in options if option not in shown} == set()


@pytest.mark.parametrize(("name", "formats"), [("mls", (1, 2)), ("voxpopuli", (3,)), ("common_voice", (4,))])
def test_the_time_in_the_help_is_that_of_the_measured_rates(name: str, formats: tuple[int, ...]) -> None:
    (row,) = [line for line in GUIDE.splitlines() if line.startswith("| decoding: hours of audio in an hour")]
    rates = [float(cell.replace(",", "")) for cell in row.split("|")[2:-1]]
    told = importlib.import_module(f"data_prep.{name}").__doc__.split("\nTime ")[1]
    for column in formats:
        assert f"{3600 / rates[column - 1]:.1f} s" in told

"""What README.md and two guides tell people to type works: commands parse; paths, targets and variables exist."""

import argparse
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
from forwarded import forwarded, lines
from lightning.pytorch.cli import LightningCLI

from speechllm_pl.apps.main import main
from speechllm_pl.apps.run import DEFAULTS, NUMBERS, OPTIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OF_DOCS = "".join((ROOT / "docs" / name).read_text() for name in ("running.md", "transcribing.md"))
GUIDES = README + OF_DOCS
MAKEFILE = (ROOT / "Makefile").read_text()
RULES = set(re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, flags=re.MULTILINE))
MADE = ("data", "runs", "my", "a")
"""First parts of paths that do not come with a clone."""
NO_VARIABLES = {"PROGRAM", "PART", "SIDE_BY_SIDE"}
"""Options of `speechllm run` that make does not have by this name."""
OF_MAKE = {"ARGS", "FILES", "VENV", "CONTAINER"}
"""Variables that are no options of `speechllm run`."""


def commands() -> list[str]:
    """Every command in the bash blocks, with continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDES, flags=re.DOTALL)
    typed = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+# .*", "", line).strip() for line in typed]
    return [line for line in found if line]


def speechllm_commands(command: str) -> list[list[str]]:
    """The arguments of every `speechllm` that a command comes to."""
    found = [re.sub(r"\$\(find.*", "one.flac", line) for line in lines(command, prepared="make data " not in command)]
    return [shlex.split(line)[1:] for line in found if line.startswith("speechllm ")]


class Parsed(Exception):
    """Ends a program whose arguments have been parsed."""


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch):
    """Parses the arguments of `speechllm` as the command itself does, and stops before it acts."""

    def stop(*_, **__) -> None:
        raise Parsed

    parse_arguments = LightningCLI.parse_arguments

    def parse_and_stop(self: LightningCLI, parser, arguments) -> None:
        parse_arguments(self, parser, arguments)
        raise Parsed

    monkeypatch.setattr(LightningCLI, "parse_arguments", parse_and_stop)
    firsts = ("evaluate.read_cuts", "transcribe.find_audio", "transcribe._transcriber", "report.read_run")
    for first in (*firsts, "data_report.survey", "compare.Path"):
        monkeypatch.setattr(f"speechllm_pl.apps.{first}", stop)

    def parses(arguments: list[str]) -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["speechllm", *arguments])
        with pytest.raises(Parsed):
            main()

    return parses


@pytest.fixture
def parses_python(monkeypatch: pytest.MonkeyPatch):
    """Parses the arguments of `python -m data_prep.NAME` or `python benchmarks/NAME.py` as the program itself does, and
    stops before it acts."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *arguments) -> None:
        parse_args(self, *arguments)
        raise Parsed

    def parses(arguments: list[str]) -> None:
        program, *options = arguments if arguments[0] != "-m" else arguments[1:]
        monkeypatch.syspath_prepend(ROOT / Path(program).parent)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        monkeypatch.setattr(sys, "argv", [program, *options])
        with pytest.raises(Parsed):
            import_module(Path(program).stem if program.endswith(".py") else program).main()

    return parses


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(parses, parses_python, command: str) -> None:
    last = re.sub(r"^([A-Z_]+=\S+ )+(?=speechllm )", "", command.split(" | ")[-1])  # which hears arecord
    program, *arguments = shlex.split(last)
    if program == "python":
        parses_python(arguments)
        return
    if program == "speechllm" and arguments[0] != "run":
        parses(arguments)
        return
    assert program in ("make", "speechllm")
    if arguments == ["test"]:
        assert forwarded(command)
        return
    assert lines(command, prepared="make data " not in command)
    for parsed in speechllm_commands(command):
        parses(parsed)


def test_training_targets_print_the_command_that_they_run() -> None:
    for target in ("pretrain-ctc", "finetune", "evaluate", "transcribe", "report"):
        *_, arguments = speechllm_commands(f"make {target} FILES=one.wav")
        assert arguments[0] in ("fit", "evaluate", "transcribe", "report")


def test_inline_commands_name_targets_and_programs_that_exist() -> None:
    code = re.findall(r"`([^`\n]+)`", GUIDES)
    targets = {words[1] for words in map(str.split, code) if words[0] == "make" and len(words) > 1}
    assert targets
    assert targets <= RULES
    for command in code:
        if command.startswith("python -m "):
            module = command.split()[2].replace(".", "/")
            assert (ROOT / f"{module}.py").is_file()


def test_paths_exist() -> None:
    code = re.findall(r"`([^`\n]+)`", GUIDES)
    named = {word for text in (*code, *commands()) for word in re.findall(r"(?<![\w$/.])[\w.-]+/[\w./*-]*", text)}
    linked = set(re.findall(r"\]\((?!https?:)([^)]+)\)", README))
    beside = re.findall(r"\]\((?!https?:)([^)#]+)\)", OF_DOCS)
    assert [path for path in beside if not (ROOT / "docs" / path).exists()] == []
    paths = {path for path in named | linked if path.split("/")[0] not in MADE and "NAME" not in path}
    assert "conf/finetune.yaml" in paths
    assert [path for path in sorted(paths) if not list(ROOT.glob(path.rstrip("/")))] == []


def test_the_file_map_is_complete() -> None:
    listing = README.split("## Where things are")[1].split("```")[1]
    named = re.findall(r"^( *)(\w+)/", listing, flags=re.MULTILINE)
    top = {name for indent, name in named if not indent}
    floors = {name for indent, name in named if indent}
    assert all((ROOT / name).is_dir() for name in top)
    inside = {path.name for path in (ROOT / "speechllm_pl").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert floors == inside


def test_variables_are_those_of_the_makefile() -> None:
    rows = [
        (name, default)
        for names, default in re.findall(r"^\| (`[A-Z_]+`(?:, `[A-Z_]+`)*) \|.*\| (.*)\|$", GUIDES, flags=re.MULTILINE)
        for name in re.findall("[A-Z_]+", names)
    ]
    options = {name.upper() for name in (*OPTIONS, *NUMBERS)} - NO_VARIABLES
    assert sorted(name for name, _ in rows) == sorted(options | OF_MAKE)
    for name, default in rows:
        assert name in options or f"$({name})" in MAKEFILE
        stated = re.fullmatch(r"`([\w.-]+)`", default.strip())
        if stated:
            (own,) = re.findall(rf"^{name} +\??= (.*)$", MAKEFILE, flags=re.MULTILINE) or [DEFAULTS[name.lower()]]
            assert stated[1] == str(own)

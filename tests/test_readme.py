"""What README.md and docs/running.md tell people to type works: commands parse; paths, targets and variables exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI

from speechllm_pl.apps.main import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = README + (ROOT / "docs" / "running.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
RULES = set(re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, flags=re.MULTILINE))
MADE = ("data", "runs", "my", "a")
"""First parts of paths that do not come with a clone."""


def commands() -> list[str]:
    """Every command in the bash blocks, with continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDES, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+# .*", "", line).strip() for line in lines]
    return [line for line in found if line]


def dry_run(command: str) -> str:
    """What `make` would run, with the environment that is active and so without installing anything."""
    files = [f"data/{data}/{name}" for data in ("mls", "table") for name in ("train.jsonl.gz", "tokenizer.model")]
    prepared = [option for file in files for option in ("-o", file)]
    done = subprocess.run(
        [*shlex.split(command), "-n", "VENV=", *prepared],  # -o: as if the reader had put it there
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def speechllm_commands(text: str) -> list[list[str]]:
    """The arguments of every `speechllm` in what make would run."""
    lines = re.sub(r"\$\(find.*", "one.flac'", text.replace("\\\n", " ")).splitlines()
    echoed = [line for line in lines if line.startswith("echo 'speechllm ")]
    return [shlex.split(shlex.split(line.split("; speechllm")[0])[1])[1:] for line in echoed]


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch):
    """Parses the arguments of `speechllm` as the command itself does, and stops before it acts."""

    class Parsed(Exception):
        pass

    def stop(*_, **__) -> None:
        raise Parsed

    parse_arguments = LightningCLI.parse_arguments

    def parse_and_stop(self: LightningCLI, parser, arguments) -> None:
        parse_arguments(self, parser, arguments)
        raise Parsed

    monkeypatch.setattr(LightningCLI, "parse_arguments", parse_and_stop)
    firsts = {"evaluate": "read_cuts", "transcribe": "find_audio", "report": "read_run", "data_report": "open_splits"}
    for module, first in firsts.items():
        monkeypatch.setattr(f"speechllm_pl.apps.{module}.{first}", stop)

    def parses(arguments: list[str]) -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["speechllm", *arguments])
        with pytest.raises(Parsed):
            main()

    return parses


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(parses, command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "speechllm":
        parses(arguments)
        return
    assert program == "make"
    printed = dry_run(command)
    assert printed.strip()
    for parsed in speechllm_commands(printed):
        if parsed[0] == "evaluate":  # takes the checkpoints that there are, and a clone has none yet
            parsed = ["[some.ckpt]" if argument == "[]" else argument for argument in parsed]
        parses(parsed)


def test_training_targets_print_the_command_that_they_run() -> None:
    for target in ("pretrain-ctc", "finetune", "evaluate", "transcribe", "report"):
        (arguments,) = speechllm_commands(dry_run(f"make {target} FILES=one.wav"))
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
    rows = re.findall(r"^\| `([A-Z_]+)` \|.*\| (.*)\|$", GUIDES, flags=re.MULTILINE)
    assert {"DATA", "SIZE", "TRAINER", "ARGS"} <= {name for name, _ in rows}
    for name, default in rows:
        assert f"$({name})" in MAKEFILE or f"$(or $({name})" in MAKEFILE
        stated = re.fullmatch(r"`([\w.]+)`", default.strip())
        if stated:
            assert re.search(rf"^{name} +\??= {re.escape(stated[1])}$", MAKEFILE, flags=re.MULTILINE)


def test_help_lists_every_public_target() -> None:
    declared = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", MAKEFILE, flags=re.MULTILINE)
    assert declared
    targets = {target for target in declared[1].replace("\\", " ").split() if target in RULES}
    printed = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    listed = {line.split()[0] for line in printed.splitlines() if line.strip()}
    internal = {"experiment", "needs", "command", "part"}  # behind demo and fsdd, and conf/slurm
    assert listed == targets - internal

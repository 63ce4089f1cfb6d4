"""Commands are dispatched by name, without the libraries that the named one does not need; mistakes end in one line."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from speechllm_pl.apps.main import COMMANDS, PROGRAMS, with_underscores

HEAVY = {"torch", "lightning", "transformers", "lhotse", "numpy"}
LIGHT = ([], ["--help"], ["data"], ["data", "--help"], ["fti"], ["trancribe", "a.wav"], ["data", "reprot"])
MISTAKES = (
    ["evaluate", "--max_wre", "3"],
    ["evaluate", "--checkpoint", "x", "--cuts", "y", "--decoder", "beem"],
    ["transcribe", "--checkpoint", "x", "--max_seconds", "long", "a.wav"],
    ["transcribe", "--checkpoint", "x", "--max_new_tokens", "0", "a.wav"],
    ["average", "--run", "x", "--last", "1", "--best", "1"],
    ["plan", "--utilisation", "2"],
)


def heavy_imports(arguments: list[str]) -> str:
    """Heavy modules that `speechllm` with these arguments imports, after what it prints on both streams."""
    code = (
        "import sys; from speechllm_pl.apps.main import main; sys.argv = ['speechllm', *sys.argv[1:]]\n"
        f"try: main()\nfinally: print('imported', *({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    return done.stderr + done.stdout


@pytest.mark.parametrize("arguments", LIGHT, ids=lambda arguments: " ".join(arguments) or "nothing")
def test_help_and_answers_to_typos_import_nothing_that_takes_seconds(arguments: list[str]) -> None:
    told = heavy_imports([*arguments])
    assert told.splitlines()[-1] == "imported", told
    assert "Traceback" not in told


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_a_program_imports_nothing_that_takes_seconds(program: str) -> None:
    usage, *_, imported = heavy_imports([*program.split(), "--help"]).splitlines()
    assert (usage.startswith(f"usage: speechllm {program}"), imported) == (True, "imported")


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_mistakes_in_options_are_told_before_anything_that_takes_seconds_is_imported(arguments: list[str]) -> None:
    error, imported = heavy_imports(arguments).splitlines()
    assert (error.startswith("error: "), imported) == (True, "imported")


def test_help_lists_every_command_with_a_whole_sentence(speechllm) -> None:
    for arguments in (["--help"], ["-h"], []):
        status, out, _ = speechllm(*arguments)
        assert status == 0
        for command in ("fit", "validate", "test", "predict", "evaluate", "transcribe", "report", "data report"):
            assert f"    {command} " in out
    for sentence in COMMANDS.values():
        assert sentence[0].isupper()
        assert sentence.endswith(".")


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_help_says_of_a_program_is_what_the_program_says(name: str, speechllm) -> None:
    function = name.replace(" ", "_")
    program = getattr(import_module(f"speechllm_pl.apps.{function}"), function)
    assert (inspect.getdoc(program) or "").splitlines()[0] == PROGRAMS[name]
    assert PROGRAMS[name] in " ".join(speechllm(*name.split(), "--help").out.split())


@pytest.mark.parametrize(
    ("command", "option"),
    [("fit", "--trainer.max_epochs"), ("evaluate", "--cuts"), ("transcribe", "--format"), ("report", "--run")],
)
def test_help_of_a_command_lists_its_options(speechllm, command: str, option: str) -> None:
    status, out, _ = speechllm(command, "--help")
    assert (status, option in out) == (0, True)


def test_hyphens_in_the_names_of_options_are_underscores_and_values_stay() -> None:
    given = ["fit", "--model.lora-r", "a-b", "--max-wer=0-1", "-x-y", "--", "--as-it-is"]
    assert with_underscores(given) == ["fit", "--model.lora_r", "a-b", "--max_wer=0-1", "-x-y", "--", "--as-it-is"]


def test_the_names_of_sources_are_the_users() -> None:
    given = ["fit", "--data.train.mls-de", "x", "--data.train.my-own.weight=2", "--data.max-duration=3"]
    assert with_underscores(given) == [*given[:4], "--data.max_duration=3"]


def test_options_of_earlier_versions_have_their_present_names() -> None:
    given = ["fit", "--model.stride", "3", "--model.stride=3", "--model.strides", "--", "--model.stride"]
    present = ["fit", "--model.bridge.stride", "3", "--model.bridge.stride=3", *given[4:]]
    assert with_underscores(given) == present


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fti"], "Did you mean fit?"),
        (["trancribe", "a.wav"], "Did you mean transcribe?"),
        (["data", "reprot"], "Did you mean data report?"),
        (["transcribe", "--chekpoint", "x", "a.wav"], "Did you mean checkpoint?"),
        (["transcribe", "--checkpoint", "x", "--max-second", "3", "a.wav"], "Did you mean max_seconds?"),
        (["transcribe", "--checkpoint", "none.ckpt", "--max-seconds", "3", "a.wav"], "a.wav"),
        (["transcribe", "a.wav"], "checkpoint"),
        (["evaluate", "--checkpoint", "x", "--cut", "y"], "cuts"),
        (["evaluate", "--checkpoint", "[]", "--cuts", "y"], "no checkpoint"),
        (["report"], "run"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_mistakes_end_in_one_line(speechllm, arguments: list[str], named: str) -> None:
    assert named in speechllm(*arguments).error()

"""`speechllm run` prints what it runs, and gives the programs what it was given."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechllm_pl.apps.run import NUMBERS, OPTIONS, SWITCHES

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("speechllm")
STARTED = "import sys; sys.argv = sys.argv[1:]; from speechllm_pl.apps.main import main; main()"


@pytest.fixture
def last_words(speechllm):
    """The words of the last line that a target comes to."""

    def words(*arguments: str) -> list[str]:
        done = speechllm("run", arguments[0], "--dry-run", *arguments[1:])
        assert done.status == 0, done.err
        return shlex.split(done.out.splitlines()[-1])

    return words


def test_checkpoints_are_chosen_by_name(last_words) -> None:
    words = last_words("evaluate", "--ckpt", "a.ckpt,b.ckpt", "--data", "fsdd", "--split", "dev", "--max-wer", "0.2")
    assert words[:6] == ["speechllm", "evaluate", "--checkpoint", "[a.ckpt,b.ckpt]", "--cuts", "data/fsdd/dev.jsonl.gz"]
    assert words[-2:] == ["--max_wer", "0.2"]
    words = last_words("transcribe", "--ckpt", "a.ckpt", "--", "one.wav")
    assert words == ["speechllm", "transcribe", "--checkpoint", "a.ckpt", "one.wav"]
    words = last_words("data-report", "--data", "fsdd", "--ckpt", "a.ckpt", "--output", "x.html", "--", "--seed", "3")
    given = ["--root", "data/fsdd", "--checkpoint", "a.ckpt", "--output", "x.html", "--seed", "3"]
    assert words == ["speechllm", "data", "report", *given]


def test_the_runs_of_the_settings_are_taken_by_default(
    last_words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    runs = [f"runs/{stage}/fsdd-tiny/checkpoints/best.ckpt" for stage in ("pretrain_ctc", "finetune")]
    given = ("--data", "fsdd")
    monkeypatch.chdir(tmp_path)
    assert f"[{runs[0]}]" in last_words("evaluate", *given)
    assert runs[1] in last_words("transcribe", *given)
    for run in runs:
        (tmp_path / run).parent.mkdir(parents=True)
        (tmp_path / run).touch()
    assert f"[{runs[0]},{runs[1]}]" in last_words("evaluate", *given)
    assert last_words("report") == ["speechllm", "report", "--run", "runs/demo"]


@pytest.mark.parametrize(("trainer", "devices"), [("cpu", "auto"), ("ddp", "auto"), ("fsdp", "auto"), ("single", None)])
def test_an_evaluation_takes_every_device_unless_one_is_asked_for(
    last_words, trainer: str, devices: str | None
) -> None:
    words = last_words("evaluate", "--ckpt", "a.ckpt", "--trainer", trainer)
    assert (words[words.index("--devices") + 1] if "--devices" in words else None) == devices
    assert "--device" not in words


@pytest.mark.parametrize("given", [(), ("--run", "runs/mine")])
def test_the_line_that_is_printed_is_run_with_the_status_that_it_has(tmp_path: Path, given: tuple[str, ...]) -> None:
    """A program of the same name stands for the command that is started."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    for name in ("data/table/train.jsonl.gz", "data/table/tokenizer.model"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "speechllm").write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\nexit 3\n")
    (tmp_path / "speechllm").chmod(0o755)
    options = ["--data", "table", "--program", "./speechllm", *given, "--", "--x", "it's [1, 2]"]
    done = subprocess.run(
        [COMMAND, "run", "pretrain-ctc", *options], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    printed, run = done.stdout.splitlines()
    assert done.returncode == 3
    assert shlex.split(printed)[:2] == ["./speechllm", "fit"]
    assert run == "".join(f"<{word}>" for word in shlex.split(printed)[1:])
    assert run.endswith("<--x><it's [1, 2]>")


def test_a_mistake_is_one_line(speechllm) -> None:
    assert "invalid choice: 'finetun'" in speechllm("run", "finetun").error()
    assert "--dta" in speechllm("run", "finetune", "--dta", "x").error()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pretrain-ctc", "--slurm", "--trainer=ddp", "--gpus=a100"], "GPUS=a100: give their number on a node"),
        (["pretrain-ctc", "--slurm", "--trainer=ddp", "--gpus=a100:0"], "a100:8"),
        (["pretrain-ctc", "--slurm", "--trainer=ddp", "--gpus=-1"], "GPUS=-1"),
        (["data", "--parts=en de", "--part=9"], "--part 9: there are 2, en, de"),
        (["data", "--part=1"], "--part 1: --parts names none"),
        (["data", "--parts=en de", "--part=0"], "'0' is no whole number of at least 1"),
        (["finetune", "--slurm", "--nodes="], "--nodes: '' is no whole number of at least 1"),
        (["finetune", "--slurm", "--nodes=two"], "--nodes: 'two' is no whole number of at least 1"),
        (["data", "--jobs=0"], "--jobs: '0'"),
        (["data", "--parts=it's"], "--parts: No closing quotation: it's"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_odd_value_is_refused_in_one_line_that_says_what_to_give(speechllm, arguments: list[str], told: str) -> None:
    assert told in speechllm("run", *arguments, "--dry-run").error()


def test_steps_side_by_side_may_be_without_a_number(speechllm) -> None:
    assert speechllm("run", "data", "--side-by-side=", "--dry-run").status == 0


def test_a_program_in_a_folder_of_any_name_is_run(tmp_path: Path) -> None:
    """Every step starts its program there, also when it is not told where it is."""
    programs = tmp_path / "my (own) programs" / "bin"
    programs.mkdir(parents=True)
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (programs / "python").write_text("#!/bin/sh\nmkdir -p data/fsdd; touch data/fsdd/train.jsonl.gz data/fsdd/$2\n")
    (programs / "speechllm").write_text(f'#!/bin/sh\nexec {sys.executable} -c \'{STARTED}\' "$0" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    given = ["run", "data", "--data", "fsdd"]
    done = subprocess.run([programs / "speechllm", *given], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "fsdd" / "data_prep.fsdd").is_file()
    line = subprocess.run(
        [programs / "speechllm", "run", "report", "--dry-run"],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    ).stdout  # fmt: skip
    assert shlex.split(line) == [str(programs / "speechllm"), "report", "--run", "runs/demo"]


def test_the_line_of_a_target_sets_its_environment_itself(speechllm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of a job run it as it is, whatever there is still to be made."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = ("run", "finetune", "--program", "enter 'my image' speechllm", "--data", "fsdd")
    (line,) = speechllm(*given, "--only-line").out.splitlines()
    words = shlex.split(line)
    command = words.index("speechllm")
    assert words[:3] == ["enter", "my image", "env"]
    assert "OMP_NUM_THREADS=1" in words[3:command]
    assert words[command:] == shlex.split(speechllm(*given, "--dry-run").out.splitlines()[-1])[2:]


def test_help_says_what_each_option_is_in_a_whole_sentence(speechllm) -> None:
    status, out, _ = speechllm("run", "--help")
    assert status == 0
    for name, text in (OPTIONS | NUMBERS | SWITCHES).items():
        assert f"--{name}" in out
        assert text[0].isupper()
        assert text.endswith(".")
    assert "-- --model.bridge.stride 2`" in " ".join(out.split())


def test_an_adaptation_makes_the_texts_first(speechllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    for name in ("data/fsdd/train.jsonl.gz", "data/fsdd/tokenizer.model", "mine.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    given = ("run", "adapt-text", "--dry-run", "--data", "fsdd", "--text", "mine.txt", "--languages", "en")
    making, fit = (shlex.split(line) for line in speechllm(*given).out.splitlines())
    assert making[1:3] == ["-m", "data_prep.text_alone"]
    written = Path(making[making.index("--output") + 1])
    assert written.parent == Path("data/fsdd")
    assert written.name in fit[fit.index("--data.train") + 1]
    assert making[making.index("--language") + 1] == "en"
    assert making[making.index("--like") + 1] == "data/fsdd/train.jsonl.gz"
    assert fit[fit.index("--model.llm_checkpoint") + 1] == "runs/finetune/fsdd-tiny/checkpoints/best.ckpt"
    printed = speechllm(*fit[1:], "--print_config")
    assert printed.status == 0, printed.err
    composed = yaml.safe_load(printed.out)
    settings = composed["model"]["init_args"]
    assert settings["freeze_encoder"]
    assert settings["freeze_bridge"]
    assert composed["data"]["train"]["text"]["share"] == 0.9
    assert "TEXT=" in speechllm("run", "adapt-text", "--data", "fsdd").error()

"""End to end on tones: both stages, on one process and on two, then evaluating and transcribing what they left."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jiwer
import pytest
import soundfile
import torch
from command import COMMAND, ROOT, finish
from test_messages import IDLE

from speechllm_pl.apps.main import main
from speechllm_pl.recognition.recognizer import Recognizer

LANGUAGES = {"en", "de"}
TWO_PROCESSES = ("--config", ROOT / "conf" / "trainer" / "cpu.yaml")


def arguments(stage: str, small_config: Path, run: Path) -> list[str]:
    files = (ROOT / "conf" / f"{stage}.yaml", ROOT / "conf" / "size" / "tiny.yaml", small_config)
    return ["fit", *(part for file in files for part in ("--config", str(file))), "--run", str(run)]


def fit(*given: object) -> str:
    """Run a fit on two processes and return what it printed."""
    return finish([str(part) for part in (COMMAND, *given, *TWO_PROCESSES)], ranks=2)


def record(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / name).read_text())


def newest(run: Path) -> Path:
    """The checkpoint of the most steps."""
    return max((run / "checkpoints").glob("step=*.ckpt"))


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]


@pytest.fixture(scope="module")
def stage_one(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stage-1 run long enough to recognise something."""
    run = tmp_path_factory.mktemp("runs") / "ctc"
    longer = ["--trainer.max_epochs", "30", "--trainer.check_val_every_n_epoch", "15"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["speechllm", *arguments("pretrain_ctc", small_config, run), *longer])
        main()
    return run


@pytest.fixture(scope="module")
def stage_two(small_config: Path, stage_one: Path, llm_folder: Path) -> tuple[Path, str]:
    """The folder of a stage-2 run on two processes that began at stage 1, and what it printed."""
    run = stage_one.with_name("llm")
    starts = ["--model.llm", llm_folder, "--model.encoder_checkpoint", stage_one.parent / "c*/checkpoints/best.ckpt"]
    return run, fit(*arguments("finetune", small_config, run), *starts)


def test_a_run_folder_tells_how_it_came_about(stage_one: Path) -> None:
    for name in ("config.yaml", "checkpoints/best.ckpt", "finished.json"):
        assert (stage_one / name).is_file()
    assert list((stage_one / "logs").glob("events.out.tfevents.*"))
    environment = record(stage_one, "environment.json")
    assert environment["seed"] == 1
    assert "--run" in environment["command"]
    assert environment["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    finished = record(stage_one, "finished.json")
    assert finished["epochs"] == 30
    assert finished["steps"] == step_of(newest(stage_one))
    assert finished["metrics"]["val/wer"] >= 0


def test_the_same_folder_resumes(speechllm, small_config: Path, stage_one: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(stage_one, run)
    steps = record(run, "finished.json")["steps"]
    more = ["--trainer.max_epochs", 32, "--trainer.check_val_every_n_epoch", 2]
    done = speechllm(*arguments("pretrain_ctc", small_config, run), *more)
    assert done.status == 0
    assert f"resuming {run / 'checkpoints' / newest(stage_one).name}" in done.out
    finished = record(run, "finished.json")
    assert finished["epochs"] == 32
    assert 0 < finished["steps"] - steps <= 2 * 8  # two epochs of eight utterances
    assert finished["steps"] == step_of(newest(run))


def test_a_finished_run_that_is_started_again_keeps_its_figures(
    speechllm, small_config: Path, stage_one: Path, tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(stage_one, run)
    figures = (run / "finished.json").read_text()
    done = speechllm(*arguments("pretrain_ctc", small_config, run), "--trainer.max_epochs", 30)
    assert done.status == 0, done.err
    assert (run / "finished.json").read_text() == figures


def test_the_recorded_config_runs_again(speechllm, stage_one: Path, tmp_path: Path) -> None:
    again = ["--run", tmp_path, "--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1]
    assert speechllm("fit", "--config", stage_one / "config.yaml", *again).status == 0
    assert record(tmp_path, "finished.json")["epochs"] == 1


def test_stage_one_on_two_processes(small_config: Path, tmp_path: Path) -> None:
    fit(*arguments("pretrain_ctc", small_config, tmp_path))
    assert record(tmp_path, "environment.json")["processes"] == 2
    finished = record(tmp_path, "finished.json")
    assert finished["epochs"] == 2
    assert finished["steps"] >= 2
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_stage_two_on_two_processes_says_which_encoder_it_took(stage_one: Path, stage_two: tuple[Path, str]) -> None:
    run, printed = stage_two
    assert str(stage_one / "checkpoints" / "best.ckpt") in printed
    assert record(run, "environment.json")["processes"] == 2
    assert record(run, "finished.json")["steps"] >= 2
    assert newest(run).is_file()


def test_nothing_is_said_that_nobody_can_act_on(stage_two: tuple[Path, str], corpus: Path, tmp_path: Path) -> None:
    run, printed = stage_two
    given = ("--checkpoint", run / "checkpoints" / "best.ckpt")
    cuts = ("--cuts", corpus / "test.jsonl.gz", "--output", tmp_path)
    for arguments in (("evaluate", *given, *cuts), ("transcribe", *given, corpus / "test-0.wav")):
        printed += finish([str(part) for part in (COMMAND, *arguments)])
    idle = (*(message[:20] for message in IDLE), "weights_only", "kernels-community", "UserWarning")
    assert [line for line in printed.splitlines() if any(phrase in line for phrase in idle)] == []
    assert "`Trainer.fit` stopped: `max_epochs=2` reached." in printed
    assert "GPU available: " in printed


# evaluate


@pytest.fixture
def evaluated(
    speechllm, corpus: Path, stage_one: Path, stage_two: tuple[Path, str], tmp_path: Path
) -> tuple[Path, str]:
    """The folder that both checkpoints were evaluated into, and the table that was printed."""
    best = ",".join(str(run / "checkpoints" / "best.ckpt") for run in (stage_one, stage_two[0]))
    cuts = corpus / "train.jsonl.gz"
    done = speechllm("evaluate", "--checkpoint", f"[{best}]", "--cuts", cuts, "--output", tmp_path)
    assert done.status == 0, done.err
    return tmp_path, done.out


def test_scores_have_the_agreed_shape(evaluated: tuple[Path, str]) -> None:
    scores = record(evaluated[0], "scores.json")
    assert list(scores) == ["ctc", "llm"]
    counts = {"words", "insertions", "deletions", "substitutions", "utterances"}
    for entry in scores.values():
        assert {"wer", "cer", "confidence_interval"} <= set(entry["average"])
        assert set(entry["languages"]) == LANGUAGES
        for row in entry["languages"].values():
            assert {"wer", "cer", "confidence_interval", *counts} <= set(row)
            assert all(isinstance(row[name], int) for name in counts)
            assert row["utterances"] == 4
        assert entry["real_time_factor"] > 0
    for system in ("ctc WER", "llm WER", "average"):
        assert system in evaluated[1]


def test_the_manifest_is_that_of_the_leaderboard_for_the_system_to_judge_by(
    evaluated: tuple[Path, str], corpus: Path
) -> None:
    folder, printed = evaluated
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    said = [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]
    assert [(row["text"], row["pred_text"]) for row in rows] == [
        (row["reference"], row["hypothesis"]) for row in said if row["system"] == "llm"
    ]
    for row in rows:
        assert list(row) == ["audio_filepath", "duration", "time", "text", "pred_text"]
        assert row["duration"] == soundfile.info(row["audio_filepath"]).duration
        assert Path(row["audio_filepath"]).parent == corpus
    rtfx = record(folder, "scores.json")["llm"]["rtfx"]
    assert rtfx == pytest.approx(sum(row["duration"] for row in rows) / sum(row["time"] for row in rows))
    assert f"RTFx {rtfx:.1f}" in printed


def test_scores_agree_with_jiwer_on_the_written_hypotheses(evaluated: tuple[Path, str]) -> None:
    folder, _ = evaluated
    scores = record(folder, "scores.json")
    rows = [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 8
    for system, entry in scores.items():
        assert entry["average"]["wer"] == pytest.approx(sum(r["wer"] for r in entry["languages"].values()) / 2)
        for language, score in entry["languages"].items():
            chosen = [row for row in rows if (row["system"], row["language"]) == (system, language)]
            references, hypotheses = ([row[key] for row in chosen] for key in ("reference", "hypothesis"))
            words, characters = (
                jiwer.process_words(references, hypotheses),
                jiwer.process_characters(references, hypotheses),
            )
            assert score["wer"] == pytest.approx(words.wer)
            assert score["cer"] == pytest.approx(characters.cer)
            assert score["words"] == sum(len(reference.split()) for reference in references)
            assert sum(row["errors"] for row in chosen) == words.substitutions + words.deletions + words.insertions
    assert any(row["hypothesis"] for row in rows if row["system"] == "ctc")


def test_alignments_show_the_utterances_with_errors(evaluated: tuple[Path, str]) -> None:
    rows = [json.loads(line) for line in (evaluated[0] / "hypotheses.jsonl").read_text().splitlines()]
    assert any(row["errors"] for row in rows)
    listings = {system: (evaluated[0] / f"alignments-{system}.txt").read_text() for system in ("ctc", "llm")}
    for row in rows:
        assert (f"{row['id']} [" in listings[row["system"]]) == bool(row["errors"])


def test_one_checkpoint_alone_goes_into_its_run_folder(
    speechllm, corpus: Path, stage_one: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stage_one, run)
    checkpoint = run / "checkpoints" / "best.ckpt"
    assert speechllm("evaluate", "--checkpoint", checkpoint, "--cuts", corpus / "test.jsonl.gz").status == 0
    assert list(record(run, "scores.json")) == ["ctc"]


# transcribe


def test_transcribe_prints_a_line_a_file(speechllm, corpus: Path, stage_two: tuple[Path, str]) -> None:
    checkpoint = stage_two[0] / "checkpoints" / "best.ckpt"
    files = [corpus / "test-1.wav", corpus / "test-0.wav"]
    plain = speechllm("transcribe", "--checkpoint", checkpoint, *files)
    assert plain.status == 0
    assert [line.split(": ")[0] for line in plain.out.splitlines()] == [str(file) for file in files]
    rows = [
        json.loads(line)
        for line in speechllm("transcribe", *files, "--checkpoint", checkpoint, "--format", "json").out.splitlines()
    ]
    assert [f"{row['file']}: {row['text']}" for row in rows] == plain.out.splitlines()
    assert rows[0]["seconds"] == pytest.approx(0.05 + 3 * 0.35)


def test_transcribe_takes_a_folder_and_a_stage_one_checkpoint(speechllm, corpus: Path, stage_one: Path) -> None:
    done = speechllm("transcribe", corpus, "--checkpoint", stage_one / "checkpoints" / "best.ckpt")
    assert done.status == 0
    assert len(done.out.splitlines()) == len(list(corpus.glob("*.wav")))


def test_languages_that_were_not_trained_are_refused_and_the_trained_named(
    speechllm, corpus: Path, stage_one: Path, stage_two: tuple[Path, str], tmp_path: Path, monkeypatch
) -> None:
    (first, second), folder = [run / "checkpoints" / "best.ckpt" for run in (stage_one, stage_two[0])], tmp_path / "c"
    assert speechllm("consolidate", "--checkpoint", second, "--output", folder, "--merge", "true").status == 0
    audio = corpus / "test-0.wav"
    for checkpoint in (first, second, folder):
        given = ("transcribe", audio, "--checkpoint", checkpoint, "--language")
        with monkeypatch.context() as patched:
            patched.setattr("speechllm_pl.apps.transcribe.Recognizer.load", None)  # no model is loaded
            assert "--language 'pl' is unknown: give one of de, en, or" in speechllm(*given, "pl").error()
        done = speechllm(*given, "de")
        assert done.status == 0
        assert "--language de has no effect: the checkpoint's instruction names no language" in done.err


def test_checkpoints_tell_the_longest_utterance_of_their_training(
    speechllm, stage_one: Path, stage_two: tuple[Path, str], tmp_path: Path
) -> None:
    (first, second), folder = [run / "checkpoints" / "best.ckpt" for run in (stage_one, stage_two[0])], tmp_path / "c"
    assert speechllm("consolidate", "--checkpoint", second, "--output", folder).status == 0
    for checkpoint in (first, second, folder):
        assert Recognizer.load(checkpoint).longest_seconds == pytest.approx(0.05 + 5 * 0.35)


# average and consolidate


def states(run: Path) -> list[tuple[Path, dict[str, torch.Tensor]]]:
    """After each checkpoint's step, the earliest first."""
    paths = sorted((run / "checkpoints").glob("step=*.ckpt"))
    return [(path, torch.load(path, map_location="cpu", weights_only=True)["state_dict"]) for path in paths]


def test_average_is_the_mean_of_the_weights(speechllm, corpus: Path, stage_one: Path, tmp_path: Path) -> None:
    found = states(stage_one)
    assert len(found) >= 2
    path = tmp_path / "average.ckpt"
    assert speechllm("average", "--run", stage_one, "--last", 2, "--output", path).status == 0
    averaged = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    (_, one), (_, other) = found[-2:]
    assert set(averaged) == set(one)
    for name, value in averaged.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2)
    assert any((one[name] != other[name]).any() for name in one)
    assert speechllm("evaluate", "--checkpoint", path, "--cuts", corpus / "test.jsonl.gz").status == 0


def test_the_best_checkpoints_are_those_with_the_lowest_error_rates(speechllm, stage_one: Path, tmp_path: Path) -> None:
    validated = (stage_one / "checkpoints").glob("wer=*.ckpt")
    rates = {path: float(path.stem.removeprefix("wer=").split("-")[0]) for path in validated}
    assert len(rates) == 2
    path = tmp_path / "average.ckpt"
    done = speechllm("average", "--run", stage_one, "--best", 1, "--output", path)
    assert rates[stage_one / "checkpoints" / done.out.split()[-1]] == min(rates.values())
    many = speechllm("average", "--run", stage_one, "--best", 99)
    assert f"has {len(rates)} such checkpoints, and 99 were asked for" in many.error()
    assert "say which checkpoints" in speechllm("average", "--run", stage_one).error()


def hypotheses(speechllm, checkpoint: Path, corpus: Path, folder: Path) -> str:
    done = speechllm("evaluate", "--checkpoint", checkpoint, "--cuts", corpus / "train.jsonl.gz", "--output", folder)
    assert done.status == 0, done.err
    return (folder / "hypotheses.jsonl").read_text()


@pytest.mark.parametrize("merge", [False, True])
def test_a_consolidated_folder_recognises_the_same(
    speechllm, corpus: Path, stage_two: tuple[Path, str], tmp_path: Path, merge: bool
) -> None:
    checkpoint, folder = stage_two[0] / "checkpoints" / "best.ckpt", tmp_path / "folder"
    again = ("consolidate", "--checkpoint", checkpoint, "--output", folder, "--merge", str(merge).lower())
    assert speechllm(*again).status == 0
    assert speechllm(*again).status == 0  # one of its own kind is replaced
    assert not list(folder.rglob("*.ckpt")) + list(folder.rglob("*.bin")) + list(folder.rglob("*.pt"))
    assert (folder / "llm" / "config.json").is_file() == merge
    assert hypotheses(speechllm, folder, corpus, tmp_path / "after") == hypotheses(
        speechllm, checkpoint, corpus, tmp_path / "before"
    )


def test_consolidate_replaces_no_other_folder(speechllm, stage_one: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("")
    checkpoint = stage_one / "checkpoints" / "best.ckpt"
    done = speechllm("consolidate", "--checkpoint", checkpoint, "--output", tmp_path / "precious")
    assert "exists and is not such a folder" in done.error()
    assert (tmp_path / "precious" / "thesis.tex").is_file()
    merged = speechllm("consolidate", "--checkpoint", checkpoint, "--output", tmp_path / "x", "--merge", "true")
    assert "is of stage 1 and has no LLM to merge" in merged.error()

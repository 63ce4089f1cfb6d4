"""Pretrained encoders through the real commands: both stages, resuming, decoding, and other weights refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ROOT
from random_encoders import SAVED

from speechllm_pl.storage.checkpoints import RECORD, newest_complete, read_checkpoint

CONF = ROOT / "conf"
PLAIN = (  # nothing at random, and a schedule that does not know when the run will end
    *("--model.encoder.dropout", 0, "--model.spec_augment.freq_masks", 0, "--model.spec_augment.time_masks", 0),
    *("--model.schedule.warmup_steps", 1, "--model.optimizer.lr", 0.003),
)

ALL_WAYS = ("whisper", "wav2vec2-ctc")
"""Families of which `make test` trains LoRA and the whole, too."""

IN_TEST_LONG = ("wav2vec2-bert", "wav2vec2-bert-ctc", "granite")
"""Families with which `make test-long` alone runs commands: to these they are as others, but for their frames."""


def marks(family: str, adapt: str = "frozen") -> tuple[pytest.MarkDecorator, ...]:
    in_test = family not in IN_TEST_LONG and (adapt == "frozen" or family in ALL_WAYS)
    return () if in_test else (pytest.mark.long,)


@pytest.fixture(scope="module", params=[pytest.param(family, marks=marks(family)) for family in SAVED])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED[request.param](tmp_path_factory.mktemp(request.param))


def fit(stage: str, small_config: Path, folder: Path, *more: object) -> list[object]:
    files = (CONF / f"{stage}.yaml", small_config, CONF / "encoder" / "pretrained.yaml")
    arguments: list[object] = ["fit", *(part for file in files for part in ("--config", file))]
    return [*arguments, "--model.encoder.name", folder, *PLAIN, *more]


def newest(run: Path) -> Path:
    path = newest_complete(run / "checkpoints")
    assert path is not None
    return path


def same_state(one: Path, other: Path) -> None:
    expected, found = (read_checkpoint(newest(run)) for run in (one, other))
    assert expected["global_step"] == found["global_step"]
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, msg=name)


def transcribed(speechllm, corpus: Path, checkpoint: Path, *more: object) -> list[dict[str, Any]]:
    recordings = [corpus / "test-0.wav", corpus / "test-1.wav"]
    done = speechllm("transcribe", "--checkpoint", checkpoint, "--format", "json", *more, *recordings)
    assert done.status == 0, done.err
    return list(map(json.loads, done.out.splitlines()))


@pytest.mark.parametrize(
    ("folder", "adapt"),
    [
        pytest.param(family, adapt, marks=marks(family, adapt))
        for family in SAVED
        for adapt in ("frozen", "lora", "all")
    ],
    indirect=["folder"],
)
def test_both_stages_are_trained_resumed_and_decoded_with(
    speechllm, corpus: Path, small_config: Path, llm_folder: Path, folder: Path, adapt: str, tmp_path: Path
) -> None:
    chosen = ("--model.encoder.adapt", adapt)
    ctc = fit("pretrain_ctc", small_config, folder, *chosen)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    done = speechllm(*ctc, "--run", whole, "--trainer.max_epochs", 4)
    assert done.status == 0, done.err
    assert speechllm(*ctc, "--run", halves, "--trainer.max_epochs", 2).status == 0
    assert speechllm(*ctc, "--run", halves, "--trainer.max_epochs", 4).status == 0
    same_state(whole, halves)
    settings = read_checkpoint(newest(whole))[RECORD]["settings"]
    assert settings["encoder"]["init_args"]["name"] == str(folder)
    assert settings["encoder_digest"]
    best = whole / "checkpoints" / "best.ckpt"

    llm = ("--model.llm", llm_folder, "--model.encoder_checkpoint", best)
    second = fit("finetune", small_config, folder, *chosen, *llm)
    run = tmp_path / "llm"
    assert speechllm(*second, "--run", run).status == 0
    assert speechllm(*second, "--run", run, "--trainer.max_epochs", 3).status == 0
    found = transcribed(speechllm, corpus, run)
    assert len(found) == 2

    assert speechllm("consolidate", "--checkpoint", run, "--output", tmp_path / "one").status == 0
    assert transcribed(speechllm, corpus, tmp_path / "one") == found
    done = speechllm("evaluate", "--checkpoint", run, "--cuts", corpus / "test.jsonl.gz", "--output", tmp_path)
    assert done.status == 0, done.err


def test_stage_2_begins_without_stage_1(
    speechllm, corpus: Path, small_config: Path, llm_folder: Path, folder: Path, tmp_path: Path, caplog
) -> None:
    caplog.set_level("INFO")
    arguments = fit("finetune", small_config, folder, "--model.llm", llm_folder, "--run", tmp_path)
    done = speechllm(*arguments)
    assert done.status == 0, done.err
    assert "stage 2 begins with the pretrained encoder, without stage 1" in caplog.text
    assert len(transcribed(speechllm, corpus, tmp_path)) == 2


def test_other_weights_are_refused_and_a_moved_folder_is_given(
    speechllm, corpus: Path, small_config: Path, folder: Path, tmp_path: Path
) -> None:
    begun, run = tmp_path / "begun", tmp_path / "run"
    shutil.copytree(folder, begun)
    assert speechllm(*fit("pretrain_ctc", small_config, begun), "--run", run).status == 0
    found = transcribed(speechllm, corpus, run)
    begun.rename(tmp_path / "moved")
    recordings = corpus / "test-0.wav"
    message = speechllm("transcribe", "--checkpoint", run, recordings).error()
    assert f"encoder folder {begun} does not exist" in message
    assert " --encoder" in message
    assert transcribed(speechllm, corpus, run, "--encoder", tmp_path / "moved") == found
    weights = tmp_path / "moved" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    message = speechllm("transcribe", "--checkpoint", run, "--encoder", tmp_path / "moved", recordings).error()
    assert "is not the one that this checkpoint was trained with" in message
    assert "--encoder" in message
    message = speechllm(*fit("pretrain_ctc", small_config, tmp_path / "moved"), "--run", run).error()
    assert "is not the one that this checkpoint was trained with" in message


def test_every_program_that_loads_a_checkpoint_takes_a_moved_encoder(
    speechllm, corpus: Path, small_config: Path, llm_folder: Path, tmp_path: Path
) -> None:
    begun, moved, run = SAVED["whisper"](tmp_path / "begun"), tmp_path / "moved", tmp_path / "run"
    arguments = fit("finetune", small_config, begun, "--model.llm", llm_folder, "--run", run / "finetune")
    assert speechllm(*arguments).status == 0
    best, cuts = run / "finetune" / "checkpoints" / "best.ckpt", corpus / "test.jsonl.gz"
    begun.rename(moved)
    for given in (
        ("consolidate", "--checkpoint", best, "--merge", "true", "--output", tmp_path / "merged"),
        ("data", "report", "--root", corpus, "--checkpoint", best, "--output", tmp_path / "data.html"),
        ("report", "--run", run, "--cuts", cuts),
        ("evaluate", "--checkpoint", best, "--cuts", cuts, "--output", tmp_path / "scores"),
    ):
        assert f"encoder folder {begun} does not exist" in speechllm(*given).error()
        done = speechllm(*given, "--encoder", moved)
        assert done.status == 0, done.err


def test_nothing_is_trained_that_nobody_hears(speechllm, small_config: Path, llm_folder: Path, tmp_path: Path) -> None:
    folder = SAVED["whisper"](tmp_path / "whisper")
    arguments = fit("finetune", small_config, folder, "--model.llm", llm_folder, "--run", tmp_path / "run")
    message = speechllm(*arguments, "--model.freeze_encoder", "true").error()
    assert "brings no CTC head, and the run trains none" in message


def test_the_plan_of_a_pretrained_encoder_reads_no_weights(speechllm, small_config: Path, tmp_path: Path) -> None:
    folder = SAVED["whisper"](tmp_path / "whisper")
    (folder / "model.safetensors").unlink()
    done = speechllm("plan", *fit("pretrain_ctc", small_config, folder)[1:])
    assert done.status == 0, done.err
    assert "GiB" in done.out

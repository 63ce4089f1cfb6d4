"""Frames of a frozen encoder are computed once: losses stay, and no epoch after that runs the encoder."""

import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command import ROOT, command, finish, rows
from conftest import speak, write_cut
from lhotse import CutSet
from random_encoders import SAVED
from safetensors import safe_open

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.whisper import Whisper
from speechllm_pl.optim import muon_adamw
from speechllm_pl.storage import frame_cache
from speechllm_pl.training.cached_frames import refuse_changing_frames

STAGES = ("pretrain_ctc", "finetune")
ENCODER = ROOT / "conf" / "encoder" / "pretrained.yaml"


@pytest.fixture
def own_corpus(corpus: Path, tmp_path: Path) -> Path:
    """Utterances whose recordings may be changed."""
    root = tmp_path / "corpus"
    root.mkdir()
    for split, texts in (("train", ("one two", "three", "four five six")), ("dev", ("two four",))):
        cuts = [write_cut(root, f"{split}-{number}", speak(text), text, "en") for number, text in enumerate(texts)]
        CutSet.from_cuts(cuts).to_file(root / f"{split}.jsonl.gz")
    return root


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED["whisper"](tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def arguments(small_config: Path, whisper: Path, llm_folder: Path):
    """`fit` of a stage, with SpecAugment and dropout."""

    def made(stage: str, run: Path, *more: object) -> list[str]:
        llm = ("--model.llm", llm_folder) if stage == "finetune" else ()
        encoder = ("--config", ENCODER, "--model.encoder.name", whisper)
        return command(stage, small_config, run, *encoder, *llm, "--trainer.max_epochs", 3, *more)[1:]

    return made


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of utterances that the encoder is given in this process."""
    batches: list[int] = []
    forward = Whisper.forward

    def counted(self, waveforms, hide):
        batches.append(len(waveforms.lengths))
        return forward(self, waveforms, hide)

    monkeypatch.setattr(Whisper, "forward", counted)
    return batches


def losses(run: Path, rank: int = 0) -> list[float]:
    return [row["loss"] for row in rows(run, rank)]


def names_in(folder: Path) -> list[str]:
    """Names of the entries of all shards."""
    found: list[str] = []
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            found += shard.keys()
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_the_same_and_no_epoch_runs_the_encoder(
    speechllm, arguments, heard: list[int], stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(muon_adamw, "bf16_is_faster", lambda device: False)  # whose rounding outweighs the bound
    done = speechllm(*arguments(stage, tmp_path / "without"))
    assert done.status == 0, done.err
    assert sum(heard) == 3 * 8 + 2 + 1  # train in three epochs, dev once, and the utterance of a figure
    cached = ("--data.cache_frames", tmp_path / "frames")
    heard.clear()
    assert speechllm(*arguments(stage, tmp_path / "with", *cached)).status == 0
    assert sum(heard) == 8 + 2
    heard.clear()
    assert speechllm(*arguments(stage, tmp_path / "warm", *cached)).status == 0
    assert heard == []
    assert len(names_in(tmp_path / "frames")) == len(set(names_in(tmp_path / "frames"))) == 10
    expected = losses(tmp_path / "without")
    assert len(expected) >= 6
    assert losses(tmp_path / "with") == pytest.approx(expected, rel=1e-5)
    assert losses(tmp_path / "warm") == losses(tmp_path / "with")


def test_a_stopped_run_goes_on_as_if_it_had_not_been(speechllm, arguments, tmp_path: Path) -> None:
    options = ("--data.cache_frames", tmp_path / "frames", "--data.max_duration", 2.0)
    every = ("--last_checkpoints.every_n_steps", 1, "--last_checkpoints.keep_newest", 99)
    assert speechllm(*arguments("pretrain_ctc", tmp_path / "whole", *options, *every)).status == 0
    expected = [(row["step"], row["ids"], row["loss"]) for row in rows(tmp_path / "whole")]
    steps = len(expected) // 3
    for step in (2, steps, steps + 1):  # in an epoch, at its end, and in the next one
        (middle,) = (tmp_path / "whole" / "checkpoints").glob(f"step=*0{step}.ckpt")
        done = speechllm(*arguments("pretrain_ctc", tmp_path / str(step), *options, "--ckpt_path", middle))
        assert done.status == 0, done.err
        assert [(row["step"], row["ids"], row["loss"]) for row in rows(tmp_path / str(step))] == expected[step:]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, 0])
def test_a_run_that_ended_while_frames_were_computed_goes_on_with_the_others(
    speechllm, arguments, heard: list[int], signum: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted = Whisper.forward

    def stopped(*given: Any):
        found = counted(*given)
        if len(heard) == 2:
            if not signum:
                raise RuntimeError("failed")
            os.kill(os.getpid(), signum)
        return found

    cached = arguments("finetune", tmp_path / "run", "--data.cache_frames", tmp_path / "frames")
    with monkeypatch.context() as patch:
        patch.setattr(Whisper, "forward", stopped)
        if signum:
            assert speechllm(*cached).status == 128 + signum
        else:
            patch.setattr(frame_cache, "SHARD_BYTES", 1)
            with pytest.raises(RuntimeError, match="failed"):
                speechllm(*cached)
    done = heard[0] + (heard[1] if signum else 0)
    assert len(heard) == 2
    assert len(names_in(tmp_path / "frames")) == done < 10
    heard.clear()
    assert speechllm(*cached).status == 0
    assert sum(heard) == 10 - done
    assert len(names_in(tmp_path / "frames")) == 10


def test_frames_of_another_encoder_precision_or_recording_are_not_taken(
    speechllm, arguments, whisper: Path, own_corpus: Path, heard: list[int], tmp_path: Path
) -> None:
    cached = ("--data.root", own_corpus, "--data.cache_frames", "true", "--trainer.max_epochs", 1)

    def computed(*more: object) -> int:
        heard.clear()
        done = speechllm(*arguments("pretrain_ctc", tmp_path / str(len(names_in(own_corpus))), *cached, *more))
        assert done.status == 0, done.err
        return sum(heard)

    assert computed() == 4
    assert len(list((own_corpus / "frames").iterdir())) == 1
    write_cut(own_corpus, "train-1", speak("three"), "three", "en")  # written anew, with the same samples
    assert computed() == 1
    other = Path(shutil.copytree(whisper, tmp_path / "other"))
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (other / "model.safetensors").write_bytes(content)
    assert computed("--model.encoder.name", other) == 4
    assert computed("--trainer.precision", "bf16-mixed") == 4
    assert len(list((own_corpus / "frames").iterdir())) == 3


def test_damaged_frames_are_told_with_their_file_and_computed_again_once_it_is_deleted(
    speechllm, arguments, own_corpus: Path, heard: list[int], tmp_path: Path
) -> None:
    cached = ("--data.root", own_corpus, "--data.cache_frames", "true", "--trainer.max_epochs", 1)
    assert speechllm(*arguments("pretrain_ctc", tmp_path / "first", *cached)).status == 0
    (shard,) = (own_corpus / "frames").rglob("*.safetensors")
    whole = shard.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    shard.write_bytes(whole[:header] + bytes(len(whole) - header))
    message = speechllm(*arguments("pretrain_ctc", tmp_path / "second", *cached)).error()
    assert "3 of 3 training utterances could not be read" in message
    assert f"cached frames {shard} are damaged: delete this file" in message
    shard.write_bytes(whole[:-1])
    message = speechllm(*arguments("pretrain_ctc", tmp_path / "third", *cached)).error()
    assert f"cached frames {shard} are damaged: delete this file" in message
    shard.unlink()
    heard.clear()
    assert speechllm(*arguments("pretrain_ctc", tmp_path / "fourth", *cached)).status == 0
    assert sum(heard) == 4


def test_a_recording_that_cannot_be_read_is_skipped_in_each_epoch(
    speechllm, arguments, own_corpus: Path, heard: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_corpus / "train-1.wav").write_bytes(b"no audio")
    cached = ("--data.root", own_corpus, "--data.cache_frames", "true", "--data.max_skipped_share", 0.5)
    done = speechllm(*arguments("pretrain_ctc", tmp_path / "run", *cached, "--data.max_duration", 1.0))
    assert done.status == 0, done.err
    assert sum(heard) == 3  # nor does the step whose only recording it was run the encoder
    assert caplog.text.count("no frames of train-1, which cannot be read") == 1
    assert caplog.text.count("skipped train-1, which cannot be read: its frames are not in") == 3
    assert {name for row in rows(tmp_path / "run") for name in row["ids"]} == {"train-0", "train-2"}


PERTURBED = "[{class_path: speechllm_pl.data.augmentation.PerturbGain}]"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--data.augmentations", PERTURBED), "PerturbGain in data.augmentations changes it each time"),
        (("--model.encoder.adapt", "lora"), "with --model.encoder.adapt frozen"),
        (("--data.allow_command_sources", "true"), "takes audio that is no file: leave one of them out"),
    ],
)
def test_frames_that_change_are_refused(
    speechllm, arguments, options: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    cached = arguments("pretrain_ctc", tmp_path / "run", "--data.cache_frames", tmp_path / "frames", *options)
    message = speechllm(*cached).error()
    assert "data.cache_frames keeps the frames of" in message or "data.cache_frames knows" in message
    assert expected in message
    assert not (tmp_path / "frames").exists()


def test_texts_without_audio_are_refused() -> None:
    cuts = SimpleNamespace(texts_alone=lambda: np.array([False, True]))
    data: Any = SimpleNamespace(mixture=SimpleNamespace(cuts=cuts))
    with pytest.raises(UserError, match=r"texts without audio have no frames: .*--data\.cache_frames false"):
        refuse_changing_frames("digest", data)


@pytest.mark.parametrize("trainer", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_ranks_share_the_work_and_the_frames(
    small_config: Path, whisper: Path, llm_folder: Path, trainer: str, tmp_path: Path
) -> None:
    def run(name: str, *more: object) -> Path:
        encoder = ("--config", ENCODER, "--model.encoder.name", whisper, "--data.num_workers", 1)
        options = ("--model.llm", llm_folder, "--data.max_duration", 2.0, *more)
        finish(command("finetune", small_config, tmp_path / name, *encoder, *options, trainer=trainer, devices=2))
        return tmp_path / name

    without, with_cache = run("without"), run("with", "--data.cache_frames", tmp_path / "frames")
    for rank in range(2):
        assert losses(with_cache, rank)[0] == pytest.approx(losses(without, rank)[0], rel=1e-6)
        assert losses(with_cache, rank) == pytest.approx(losses(without, rank), rel=1e-3)  # steps magnify differences
    assert len(list((tmp_path / "frames").rglob("*.safetensors"))) == 2
    assert len(names_in(tmp_path / "frames")) == len(set(names_in(tmp_path / "frames"))) == 10

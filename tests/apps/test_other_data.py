"""A run folder knows the data that it was trained on, and refuses other data."""

from pathlib import Path

import pytest
from conftest import speak, write_cut
from lhotse import CutSet
from test_bad_input import fit

ONCE = ("--trainer.max_epochs", 1, "--trainer.check_val_every_n_epoch", 1)
MORE = ("--trainer.max_epochs", 2, "--trainer.check_val_every_n_epoch", 1)


def prepared(folder: Path, texts: list[str]) -> Path:
    for split in ("train", "dev"):
        cuts = [write_cut(folder, f"{split}-{n}", speak(text), text, "en") for n, text in enumerate(texts)]
        CutSet.from_cuts(cuts).to_file(folder / f"{split}.jsonl.gz")
    return folder


@pytest.fixture
def begun(speechllm, small_config: Path, tmp_path: Path) -> Path:
    """The folder of a run on the data in `one`."""
    (tmp_path / "one").mkdir()
    root = prepared(tmp_path / "one", ["one two", "three", "four five six"])
    assert speechllm(*fit("pretrain_ctc", small_config, tmp_path / "run", "--data.root", root, *ONCE)).status == 0
    return tmp_path / "run"


@pytest.mark.parametrize("texts", [["one two", "three", "six"], ["two one", "three", "four five six"]])
def test_another_corpus_is_refused(
    speechllm, small_config: Path, begun: Path, tmp_path: Path, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The other corpus has other lengths, or the same lengths and other texts."""
    (tmp_path / "two").mkdir()
    other = ("--data.root", prepared(tmp_path / "two", texts))
    line = speechllm(*fit("pretrain_ctc", small_config, begun, *other, *MORE)).error()
    assert f"trained on {tmp_path}/one/train.jsonl.gz (3 utterances)" in line
    assert f"{tmp_path}/two/train.jsonl.gz (3 utterances)" in line
    assert "RUN=" in line
    assert "--data.other_data true" in line
    caplog.set_level("INFO")
    done = speechllm(*fit("pretrain_ctc", small_config, begun, *other, *MORE, "--data.other_data", "true"))
    assert done.status == 0, done.err
    assert any("changed on resuming: training data" in message for message in caplog.messages)


def test_other_data_is_told_before_its_tokenizer(speechllm, small_config: Path, begun: Path, tmp_path: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    (tmp_path / "two").mkdir()
    prepared(tmp_path / "two", ["eight eight", "seven"])
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["eight seven"] * 10),
        model_prefix=str(tmp_path / "other"),
        vocab_size=14,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    given = ("--data.root", tmp_path / "two", "--model.tokenizer", tmp_path / "other.model")
    assert "trained on" in speechllm(*fit("pretrain_ctc", small_config, begun, *given, *MORE)).error()


def test_data_that_has_moved_is_the_same(speechllm, small_config: Path, begun: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    prepared(tmp_path / "moved", ["one two", "three", "four five six"])
    done = speechllm(*fit("pretrain_ctc", small_config, begun, "--data.root", tmp_path / "moved", *MORE))
    assert done.status == 0, done.err

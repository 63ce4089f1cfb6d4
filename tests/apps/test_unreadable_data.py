"""A run that has next to nothing to train on stops, and says so."""

from pathlib import Path

import pytest
from command import COMMAND, ON_CPU, finish
from conftest import speak, write_cut
from lhotse import CutSet
from test_bad_input import fit


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A corpus of which train has lost three of four recordings, and dev none."""
    for split in ("train", "dev"):
        cuts = [write_cut(tmp_path, f"{split}-{number}", speak("one two"), "one two", "en") for number in range(8)]
        CutSet.from_cuts(cuts).to_file(tmp_path / f"{split}.jsonl.gz")
    for number in range(6):
        (tmp_path / f"train-{number}.wav").unlink()
    return tmp_path


def test_a_run_without_readable_recordings_stops(speechllm, small_config: Path, spoilt: Path, tmp_path: Path) -> None:
    given = fit("pretrain_ctc", small_config, tmp_path / "run", "--data.root", spoilt, "--trainer.max_epochs", 40)
    line = speechllm(*given).error()
    assert "6 of 8 training utterances" in line  # at the end of an epoch that has fewer than a hundred
    assert str(spoilt / "train-") in line
    assert "--data.max_skipped_share" in line
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    done = speechllm(*given, "--data.max_skipped_share", 0.75, "--trainer.max_epochs", 1)
    assert done.status == 0, done.err


def test_all_ranks_stop_together(small_config: Path, spoilt: Path, tmp_path: Path) -> None:
    given = fit("pretrain_ctc", small_config, tmp_path / "run", "--data.root", spoilt, *ON_CPU, 2)
    printed = finish([str(part) for part in (COMMAND, *given, "--trainer.strategy", "ddp")], status=2, ranks=2)
    assert "6 of 8 training utterances" in printed


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_limit_that_is_no_share_is_refused(speechllm, small_config: Path, tmp_path: Path, share: float) -> None:
    line = speechllm(*fit("pretrain_ctc", small_config, tmp_path, "--data.max_skipped_share", share)).error()
    assert f"data.max_skipped_share = {share}" in line

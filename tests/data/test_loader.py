import os
import sys
from pathlib import Path

import pytest

from speechllm_pl.data import loader as module
from speechllm_pl.data.batches import Buckets, EpochBatches
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.loader import loader
from speechllm_pl.data.manifest import read_manifest


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="newer Pythons fork beside other threads")
def test_threads_come_to_rest_before_processes_are_forked(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = read_manifest(corpus / "train.jsonl.gz")
    events: list[str] = []
    os.register_at_fork(before=lambda: events.append("forked"))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: events.append("settled"))
    batches = loader(SpeechDataset(cuts), EpochBatches(Buckets(cuts.durations, 3.0, 2)), 2)
    iter(batches)
    assert events[:3] == ["settled", "forked", "forked"]

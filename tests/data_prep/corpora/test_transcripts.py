"""Transcripts of Lhotse manifests."""

import gzip
import json
from pathlib import Path

import pytest
from lhotse import MonoCut, SupervisionSegment

from data_prep.corpora.transcripts import read_transcripts
from speechllm_pl.core.errors import UserError


def line(text: str | None, language: str | None) -> bytes:
    supervision = SupervisionSegment("a", "a", 0.0, 1.0, text=text, language=language)
    return json.dumps(MonoCut("a", 0.0, 1.0, 0, supervisions=[supervision]).to_dict()).encode() + b"\n"


def test_transcripts_keep_their_order_and_repetitions_plain_or_gzipped(tmp_path: Path) -> None:
    content = line("one  two ", "en") + line(None, "en") + line("eins", None) + line("eins", None)
    (tmp_path / "plain.jsonl").write_bytes(content)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(content))
    expected = [("en", "one two"), ("", "eins"), ("", "eins")]
    assert read_transcripts([tmp_path / "plain.jsonl", tmp_path / "packed.jsonl.gz"]) == 2 * expected


def test_manifests_without_a_transcript_are_named(tmp_path: Path) -> None:
    (tmp_path / "mute.jsonl").write_bytes(line("  ", "en"))
    with pytest.raises(UserError, match=r"no transcripts in .*mute\.jsonl: there is nothing to train on"):
        read_transcripts([tmp_path / "mute.jsonl"])

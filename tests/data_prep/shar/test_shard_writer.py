"""One shard: its record, its index and its quarantine."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
from shar_folders import FLAC, lines_of

from data_prep.shar.export import export
from speechllm_pl.storage import shar_index as shar


def test_records_say_where_the_audio_is(tmp_path: Path, manifest: Path) -> None:
    export(manifest, tmp_path, FLAC)
    (entry,) = np.load(tmp_path / shar.INDEX / "000003.npy")
    with tarfile.open(tmp_path / shar.audio_name(3)) as tar:
        member = tar.getmembers()[0]
    assert (member.offset_data, member.size) == (entry["place"]["audio_start"], entry["place"]["audio_bytes"])
    record = json.loads((tmp_path / shar.INDEX / "000003.json").read_text())
    assert (record["cuts"], record["languages"], record["characters"]) == (1, ["de"], "".join(sorted(set("größe 9"))))
    content = (tmp_path / shar.audio_name(3)).read_bytes()
    assert record["files"][shar.audio_name(3)] == [len(content), hashlib.sha256(content).hexdigest()]
    assert entry["duration"] == np.float32(1.4)


def test_the_quarantine_cannot_write_to_the_terminal(tmp_path: Path, manifest: Path) -> None:
    line = json.loads(lines_of(manifest)[0]) | {"id": "a\tb\x1b[2J\u2028"}
    line["recording"]["sources"][0]["source"] = str(tmp_path / "gone")
    (tmp_path / "odd.jsonl").write_bytes(b"".join(lines_of(manifest)[1:]) + f"{json.dumps(line)}\n".encode())
    export(tmp_path / "odd.jsonl", tmp_path / "out", FLAC)
    _, row, _ = (tmp_path / "out" / shar.QUARANTINE).read_text().split("\n")
    assert row.startswith("a\\tb\\x1b[2J\\u2028\t")
    assert row.count("\t") == 1

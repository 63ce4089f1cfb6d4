"""Exported folders, and manifests with cuts that cannot be used."""

import gzip
import json
from pathlib import Path

from data_prep.shar.export import Settings

FLAC = Settings("flac", 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lines_of(manifest: Path) -> list[bytes]:
    with gzip.open(manifest) as file:
        return file.readlines()


def broken(manifest: Path, folder: Path) -> Path:
    """The manifest with cuts in it that cannot be used."""
    lines = lines_of(manifest)
    cut = json.loads(lines[1])
    gone = {**cut, "id": "gone", "recording": {**cut["recording"], "sources": [{**cut["recording"]["sources"][0]}]}}
    gone["recording"]["sources"][0]["source"] = "nowhere.wav"
    awkward = [b"{no json\n", json.dumps(gone).encode() + b"\n", json.dumps({**cut, "id": "a//b"}).encode() + b"\n"]
    (folder / "broken.jsonl").write_bytes(b"".join([*lines[:2], *awkward, *lines[2:]]))
    return folder / "broken.jsonl"

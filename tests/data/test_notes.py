"""What loader processes note of what they are reading."""

from types import SimpleNamespace

import pytest

from speechllm_pl.data.notes import NOTE_BYTES, Notes, reading


def test_each_process_has_a_note_of_its_own_which_the_next_replaces() -> None:
    notes = Notes(2)
    assert notes.read(0) == notes.read(1) == ""
    notes.write(0, "a long name of a cut (żółć.wav)")
    notes.write(1, "x" * 2 * NOTE_BYTES)
    assert notes.read(0) == "a long name of a cut (żółć.wav)"
    assert notes.read(1) == "x" * NOTE_BYTES
    notes.write(0, "b")
    assert notes.read(0) == "b"


def test_nothing_is_noted_where_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    notes, asked = Notes(2), []

    def in_worker(**dataset: object) -> None:
        worker = SimpleNamespace(id=1, dataset=SimpleNamespace(**dataset))
        monkeypatch.setattr("speechllm_pl.data.notes.get_worker_info", lambda: asked.append(worker) or worker)

    reading("a cut")  # in the training process
    for dataset in ({}, {"notes": None}):
        in_worker(**dataset)
        reading("a cut")
    assert (len(asked), notes.read(0), notes.read(1)) == (2, "", "")
    in_worker(notes=notes)
    reading("a cut")
    assert (notes.read(0), notes.read(1)) == ("", "a cut")

"""Manifests and quarantine of a whole corpus: complete, in order, whatever the jobs and the interruptions."""

import contextlib
import dataclasses
import functools
import gzip
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import soundfile
from lhotse import CutSet, MonoCut
from tones import tone, utterance

from data_prep.corpora import manifest_writer
from data_prep.corpora.checked_cuts import cut_from_utterance
from data_prep.corpora.entries import Rejection, Utterance
from data_prep.corpora.summary import Summary
from data_prep.machinery.command_line import Refused
from speechllm_pl.core.errors import UserError


def prepare(items: Iterable[Utterance | Rejection], output: Path, *, max_seconds: float = 30.0, **options) -> Summary:
    make_cut = functools.partial(cut_from_utterance, max_seconds=max_seconds)
    return manifest_writer.prepare(items, output, **{"make_cut": make_cut} | options)


@pytest.fixture
def corpus(tmp_path) -> list[Utterance | Rejection]:
    """40 good and 4 bad entries, in two splits and two languages."""
    items: list[Utterance | Rejection] = []
    for number in range(40):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, tone(8000, 0.5 + number / 100, 200 + 10 * number), 8000)
        split, language = ("dev" if number % 4 == 0 else "train"), ("de" if number % 2 else "en")
        items.append(utterance(path, "zwölf Äpfel", split=split, language=language))
    (tmp_path / "bad.wav").write_text("no sound")
    items.insert(3, utterance(tmp_path / "bad.wav"))
    items.insert(9, Rejection("dev", "line", "table.tsv", "broken line: table.tsv:4:\ttab\nin it"))
    items.append(utterance(tmp_path / "7.wav"))
    items.append(utterance(tmp_path / "8.wav", id="other", split="rehearsal"))
    return items


def manifests(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.iterdir()) if path.is_file()}


def lines(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()


def test_any_number_of_jobs_and_any_rerun_gives_the_same_bytes(tmp_path, corpus):
    for output, jobs in (("one", 1), ("two", 2)):
        prepare(corpus, tmp_path / output, jobs=jobs)
    once = manifests(tmp_path / "one")
    assert set(once) == {"train.jsonl.gz", "dev.jsonl.gz", "quarantine.tsv"}
    assert manifests(tmp_path / "two") == once
    prepare(corpus, tmp_path / "one", jobs=1)
    assert manifests(tmp_path / "one") == once


def test_every_entry_is_in_a_manifest_or_in_the_quarantine_in_the_order_given(tmp_path, corpus, capsys):
    summary = prepare(corpus, tmp_path / "out", jobs=1)
    dev = [cut.id for cut in CutSet.from_file(tmp_path / "out" / "dev.jsonl.gz")]
    train = [cut.id for cut in CutSet.from_file(tmp_path / "out" / "train.jsonl.gz")]
    assert dev == [str(number) for number in range(0, 40, 4)]
    assert train == [str(number) for number in range(40) if number % 4]
    header, *lines = (tmp_path / "out" / "quarantine.tsv").read_text().splitlines()
    assert header.split("\t") == ["split", "id", "path", "reason", "source"]
    rows = [line.split("\t") for line in lines]
    assert [row[1] for row in rows] == ["bad", "line", "7", "other"]
    assert all(len(row) == 5 for row in rows)
    kinds = [row[3].split(":")[0] for row in rows]
    assert kinds == ["unreadable", "broken line", "duplicate id", "unknown split"]
    assert rows[1][3] == "broken line: table.tsv:4:\\ttab\\nin it"
    assert summary.rejected.total() + len(dev) + len(train) == len(corpus)
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in kinds)
    assert "rejected: 4" in printed


def test_progress_ends_at_100_percent_of_what_was_there(tmp_path, corpus, capsys):
    """Whoever counts lines beforehand counts headers and empty ones, too."""
    prepare(iter(corpus), tmp_path / "out", jobs=1, total=len(corpus) + 1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("checking: 100%")
    assert f" {len(corpus)}/{len(corpus)} " in last


def test_the_quarantine_cannot_write_to_the_terminal_or_begin_a_line(tmp_path, corpus):
    items = [*corpus[:2], Rejection("train", "a\x1b[2J", "b\u2028c\udcff.wav", "broken\x85line", "d\re")]
    prepare(items, tmp_path / "out", jobs=1)
    _, row, end = (tmp_path / "out" / "quarantine.tsv").read_bytes().decode().split("\n")
    assert row.split("\t") == ["train", "a\\x1b[2J", "b\\u2028c\\udcff.wav", "broken\\x85line", "d\\re"]
    assert end == ""


def test_an_interrupted_run_leaves_the_old_manifests_and_can_be_repeated(tmp_path, corpus):
    output = tmp_path / "out"
    prepare(corpus[:20], output, jobs=1)
    before = manifests(output)

    def interrupted(utt: Utterance):
        if utt.id == "30":
            raise KeyboardInterrupt
        return cut_from_utterance(utt, max_seconds=30)

    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, output, jobs=1, make_cut=interrupted)
    assert manifests(output) == before
    prepare(corpus, output, jobs=1)
    prepare(corpus, tmp_path / "never_stopped", jobs=1)
    assert manifests(output) == manifests(tmp_path / "never_stopped")


def test_manifests_that_cannot_be_written_leave_the_old_ones_and_nothing_is_checked_twice(
    tmp_path, corpus, monkeypatch
):
    output = tmp_path / "out"
    prepare(corpus[:20], output, jobs=1)
    before = manifests(output)

    def full_disk(paths: list[Path], target) -> None:
        target.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.corpora.manifest_writer.join_files", full_disk)
        with pytest.raises(OSError):
            prepare(corpus, output, jobs=1)
    assert manifests(output) == before
    monkeypatch.setattr("data_prep.corpora.checked_cuts.read_audio", None)  # would fail at the first recording
    prepare(corpus, output, jobs=1)
    monkeypatch.undo()
    prepare(corpus, tmp_path / "never_stopped", jobs=1)
    assert manifests(output) == manifests(tmp_path / "never_stopped")


@pytest.mark.parametrize("piece", [1, 7, 43, 44, 45])
def test_pieces_of_any_size_give_the_same_manifests_and_an_interrupted_run_goes_on(
    tmp_path, corpus, monkeypatch, piece
):
    prepare(corpus, tmp_path / "whole", jobs=1)
    monkeypatch.setattr("data_prep.corpora.manifest_writer.PIECE", piece)
    opened = []

    def make_cut(utt: Utterance) -> MonoCut:
        if utt.id == "30" and "30" not in opened:
            opened.append("30")
            raise KeyboardInterrupt
        opened.append(utt.id)
        return cut_from_utterance(utt, max_seconds=30)

    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt):
            prepare(corpus, tmp_path / "out", jobs=1, make_cut=make_cut)
    assert {name: lines(tmp_path / "out" / name) for name in manifests(tmp_path / "whole")} == {
        name: lines(tmp_path / "whole" / name) for name in manifests(tmp_path / "whole")
    }
    assert len(opened) - len(set(opened)) <= piece  # of the unfinished piece alone
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(manifests(tmp_path / "whole"))


def test_pieces_of_other_utterances_or_settings_are_not_used(tmp_path, corpus, monkeypatch):
    def fail(paths: list[Path], target) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("data_prep.corpora.manifest_writer.join_files", fail)
        with pytest.raises(OSError):
            prepare(corpus, tmp_path / "out", jobs=1, max_seconds=0.7)
    corpus[5] = dataclasses.replace(corpus[5], text="another text")
    prepare(corpus, tmp_path / "out", jobs=1)
    prepare(corpus, tmp_path / "anew", jobs=1)
    assert manifests(tmp_path / "out") == manifests(tmp_path / "anew")


def test_a_strict_run_stops_at_the_first_rejection_in_the_order_of_the_corpus(tmp_path, corpus):
    corpus[3] = dataclasses.replace(corpus[3], source="table.tsv:5")
    for jobs in (1, 2):
        with pytest.raises(Refused, match=r"table.tsv:5 bad: unreadable.*bad.wav"):
            prepare(corpus, tmp_path / "out", jobs=jobs, strict=True)
    assert not list((tmp_path).glob("out/*.*"))


def test_utterances_are_read_as_they_are_checked_and_not_held(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000)
    monkeypatch.setattr("data_prep.corpora.manifest_writer.PIECE", 10)
    alive: weakref.WeakSet[Utterance] = weakref.WeakSet()
    most = 0

    def endless() -> Iterator[Utterance]:
        nonlocal most
        for number in range(100):
            item = utterance(tmp_path / "a.wav", id=str(number))
            alive.add(item)
            most = max(most, len(alive))
            yield item

    prepare(endless(), tmp_path / "out", jobs=1)
    assert most <= 2 * 10 + 1


def test_a_split_that_is_gone_from_the_corpus_is_gone_from_the_output(tmp_path, corpus):
    prepare(corpus, tmp_path / "out", jobs=1)
    only_train = [item for item in corpus if item.split == "train"]
    prepare(only_train, tmp_path / "out", jobs=1)
    assert set(manifests(tmp_path / "out")) == {"train.jsonl.gz", "quarantine.tsv"}


def test_a_corpus_without_a_usable_recording_is_an_error_and_keeps_the_manifests(tmp_path, corpus):
    prepare(corpus, tmp_path / "out", jobs=1)
    train = (tmp_path / "out" / "train.jsonl.gz").read_bytes()
    with pytest.raises(UserError, match="all 44 were rejected"):
        prepare(corpus, tmp_path / "out", jobs=1, max_seconds=0.1)
    assert (tmp_path / "out" / "train.jsonl.gz").read_bytes() == train
    assert (tmp_path / "out" / "quarantine.tsv").read_text().count("too long") == 40


def test_the_manifest_is_plain_utf_8_json_lines(tmp_path, corpus):
    prepare(corpus, tmp_path / "out", jobs=1)
    assert "zwölf Äpfel" in gzip.decompress((tmp_path / "out" / "dev.jsonl.gz").read_bytes()).decode()


def test_the_summary_counts_utterances_and_seconds_per_language(tmp_path, corpus):
    summary = prepare(corpus, tmp_path / "out", jobs=1)
    rows = [line.split() for line in summary.table().splitlines()]
    table = {(row[0], row[1]): (int(row[2]), float(row[4])) for row in rows if len(row) == 5 and row[2].isdigit()}
    lengths = {number: 0.5 + number / 100 for number in range(40)}
    german = [seconds for number, seconds in lengths.items() if number % 2]
    everything = [seconds for number, seconds in lengths.items() if number % 4]
    assert table["train", "de"] == (len(german), round(sum(german)))
    assert table["train", "all"] == (len(everything), round(sum(everything)))

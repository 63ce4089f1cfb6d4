"""The real command: `speechllm data report`."""

import gzip
import json
import shlex
from dataclasses import replace

import pytest
import torch
from conftest import SPLITS
from prepared_corpus import planted_corpus, write_corpus

from speechllm_pl.analysis.data.findings import findings
from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.recognizer import Recognizer


@pytest.fixture
def root(tmp_path):
    return write_corpus(tmp_path / "data", planted_corpus())


def test_the_command_writes_page_and_figures_and_prints_the_findings(speechllm, root):
    done = speechllm("data", "report", "--root", root, "--sample", 30, "--worst", 1, "--seed", 7)
    assert done.status == 0, done.err
    figures = json.loads((root / "report.json").read_text())
    assert figures["sample"] == {"seed": 7, "asked": 30, "decoded": 30, "of": 144}
    assert figures["command"][1:3] == ["data", "report"]
    for finding in figures["findings"]:
        assert finding["text"] in done.out
    assert f"report: {root / 'report.html'}" in done.out
    fast = figures["suspects"]["fast"]
    assert (fast["count"], [row["id"] for row in fast["worst"]]) == (2, ["hurried more"])
    page = (root / "report.html").read_text()
    assert "a sample of 144, by seed 7" in page
    assert not list(root.glob(".*"))


def test_output_is_where_it_is_wanted(speechllm, root, tmp_path):
    done = speechllm("data", "report", "--root", root, "--sample", 5, "--output", tmp_path / "there" / "page.html")
    assert done.status == 0, done.err
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["page.html", "page.json"]
    assert not (root / "report.html").exists()


def test_a_checkpoint_scores_the_sample_and_hears(speechllm, corpus, untrained_ctc, tmp_path):
    output = tmp_path / "page.html"
    done = speechllm("data", "report", "--root", corpus, "--checkpoint", untrained_ctc, "--output", output)
    assert done.status == 0, done.err
    figures = json.loads(output.with_suffix(".json").read_text())
    assert figures["checkpoint"] == str(untrained_ctc)
    assert all(isinstance(row["heard"], str) for row in figures["picked"])
    assert "No checkpoint was given" not in " ".join(figures["notes"])
    assert sum(row["decoded"] for row in figures["levels"]) == sum(map(len, SPLITS.values()))


@pytest.mark.parametrize(("given", "device"), [((), "cuda"), (("--device", "cpu"), "cpu")])
def test_the_checkpoint_takes_a_gpu_if_there_is_one(speechllm, corpus, untrained_ctc, monkeypatch, given, device):
    asked = []

    def load(_checkpoint, _llm, device, _encoder):
        asked.append(device)
        raise UserError("seen enough")

    monkeypatch.setattr(Recognizer, "load", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    done = speechllm("data", "report", "--root", corpus, "--checkpoint", untrained_ctc, *given)
    assert "seen enough" in done.error()
    assert asked == [device]


def test_a_recording_that_cannot_be_read_is_named_and_the_report_goes_on(speechllm, root):
    (root / "audio" / "nl-dev-00.wav").write_bytes(b"nothing")
    (root / "audio" / "nl-dev-01.wav").unlink()
    done = speechllm("data", "report", "--root", root)
    assert done.status == 0, done.err
    figures = json.loads((root / "report.json").read_text())
    assert {row["id"] for row in figures["suspects"]["unreadable"]["worst"]} == {"nl-dev-00", "nl-dev-01"}
    assert "2 recordings of 144 decoded (1.4 %) cannot be read." in done.out
    assert (root / "report.html").read_text().count("cannot be played") >= 2


def test_an_utterance_without_text_and_a_language_without_rules_are_told(speechllm, tmp_path):
    corpus = planted_corpus()
    corpus[20] = replace(corpus[20], text="")
    corpus[21] = replace(corpus[21], language="tlh")
    root = write_corpus(tmp_path / "data", corpus)
    done = speechllm("data", "report", "--root", root, "--sample", 10)
    assert done.status == 0, done.err
    figures = json.loads((root / "report.json").read_text())
    assert [row["id"] for row in figures["suspects"]["empty"]["worst"]] == [corpus[20].id]
    notes = " ".join(figures["notes"])
    assert "There are no rules for the alphabet of tlh" in notes
    assert "Too few letters of tlh" in notes
    assert figures["findings"] == findings(figures)


def test_absent_splits_are_told(speechllm, root):
    for split in ("dev", "test"):
        (root / f"{split}.jsonl.gz").unlink()
    done = speechllm("data", "report", "--root", root, "--sample", 10)
    assert done.status == 0, done.err
    notes = json.loads((root / "report.json").read_text())["notes"]
    assert "There is no dev split." in notes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "report", "--root", "nowhere"), "nowhere has none of train, dev and test.jsonl.gz"),
        (("data", "report", "--root", "nowhere", "--sample", "0"), "sample, player_seconds and max_duration"),
        (("data", "report", "--rot", "nowhere"), "Did you mean root?"),
        (("data", "repotr"), "Did you mean data report?"),
    ],
)
def test_a_mistake_ends_with_one_line(speechllm, arguments, message):
    assert message in speechllm(*arguments).error()


def test_the_group_lists_its_programs(speechllm):
    for arguments in (("data",), ("data", "--help")):
        done = speechllm(*arguments)
        assert done.status == 0
        assert "data report" in done.out


def test_commands_in_a_manifest_are_run_only_where_that_is_asked_for(speechllm, root):
    path = root / "dev.jsonl.gz"
    first, *others = gzip.decompress(path.read_bytes()).decode().splitlines()
    cut = json.loads(first)
    source = cut["recording"]["sources"][0]
    source |= {"type": "command", "source": f"cat {shlex.quote(source['source'])}"}
    path.write_bytes(gzip.compress("\n".join([json.dumps(cut), *others, ""]).encode()))
    given = ("data", "report", "--root", root, "--sample", 1000, "--worst", 1)
    assert "line 1: audio from a source of type 'command'" in speechllm(*given).error()
    done = speechllm(*given, "--allow-command-sources")
    assert done.status == 0, done.err
    figures = json.loads((root / "report.json").read_text())
    assert (figures["sample"]["decoded"], figures["suspects"]["unreadable"]["count"]) == (144, 0)

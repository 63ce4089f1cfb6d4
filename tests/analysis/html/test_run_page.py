"""The page about a run, read back."""

import json
import re

import pytest
import torch
from parsed_page import Page
from torch.utils.tensorboard import SummaryWriter

from data_prep.shar.export import Settings, export
from speechllm_pl.apps.program_options import ReportOptions
from speechllm_pl.apps.report import report
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.metrics import score, table
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.training.llm_finetuning import LlmFinetuning

SECTIONS = ["results", "transcripts", "alignment", "training", "reproduce"]
NASTY = 'six <script>alert("&")</script> eight'


def write_logs(folder, tags, steps=range(9, 200, 10)):
    with SummaryWriter(folder / "logs") as writer:
        for step in steps:
            for tag in tags:
                writer.add_scalar(tag, 1 / (1 + step), step)


def write_record(folder, *arguments):
    record = {
        "command": ["/somewhere/bin/speechllm", "fit", *arguments],
        "seed": 1,
        "git_commit": "0123456789abcdef",
        "git_changes": [],
        "python": "3.11.7",
        "machine": "Linux x86_64",
        "processes": 2,
        "packages": {"torch": "2.11.0"},
    }
    (folder / "environment.json").write_text(json.dumps(record))


def write_scores(run, systems=("ctc", "llm")):
    ids, languages = ["a", "b", "c", "d"], ["en", "en", "de", "de"]
    references = ["one two three", NASTY, "eins zwei", "drei"]
    hypotheses = {
        "ctc": ["one too three", "six <b>eight</b>", "eins zwei", "drei"],
        "llm": ["one two three", "six", "eins zwei", "drei vier"],
    }
    scores, rows = {}, []
    for system in systems:
        utterances = score(ids, languages, references, hypotheses[system])
        scores[system] = {
            **table(utterances, samples=50),
            "real_time_factor": 0.01,
            "truncated": 1,
            "unreadable": [],
            "checkpoint": "best.ckpt",
            "command": "speechllm evaluate --cuts 'a <b>.jsonl'",
        }
        rows += [
            {
                "id": utterance.id,
                "system": system,
                "language": utterance.language,
                "reference": utterance.reference,
                "hypothesis": utterance.hypothesis,
                "errors": utterance.words.errors,
                "truncated": utterance.id == "b",
            }
            for utterance in utterances
        ]
    (run / "scores.json").write_text(json.dumps(scores))
    (run / "hypotheses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return scores


@pytest.fixture
def run(tmp_path):
    """A finished run without a checkpoint."""
    folder = tmp_path / "a&b"
    stages = {
        "pretrain_ctc": ("train/loss", "train/ctc_loss", "val/ctc_wer", "lr-AdamW"),
        "finetune": ("train/loss", "train/next_token_loss", "train/alignment_loss", "val/ctc_wer", "val/llm_wer"),
    }
    for stage, tags in stages.items():
        write_logs(folder / stage, (*tags, "speed/audio_seconds_per_second"))
        write_record(folder / stage, "--run", f"runs/{stage} of <mine>")
        (folder / stage / "finished.json").write_text('{"epochs": 3, "steps": 190, "seconds": 1.0, "metrics": {}}')
    write_scores(folder)
    return folder


def page_of(run, **arguments):
    report(ReportOptions(run=str(run), **arguments))
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_every_section_is_present_and_linked(run):
    page = page_of(run)
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert {f"#{name}" for name in SECTIONS} == {link["href"] for link in page.all("a")}
    assert page.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in page.all("meta")


@pytest.mark.parametrize(("of_the_encoder", "differs"), [(1.0, False), (0.5, True)])
def test_the_learning_rate_of_the_encoder_is_mentioned_where_it_differs(tmp_path, of_the_encoder, differs):
    with SummaryWriter(tmp_path / "pretrain_ctc/logs") as writer:
        for step in range(9, 200, 10):
            for tag, rate in (("train/loss", 1.0), ("lr-MuonAdamW/pg1", 1.0), ("lr-MuonAdamW/pg2", of_the_encoder)):
                writer.add_scalar(tag, rate, step)
    write_record(tmp_path / "pretrain_ctc")
    assert ("the encoder has its own" in page_of(tmp_path).text) == differs


def test_a_system_without_a_time_of_its_own_has_no_real_time_factor(run):
    scores = json.loads((run / "scores.json").read_text())
    scores["ctc"]["real_time_factor"] = None
    (run / "scores.json").write_text(json.dumps(scores))
    page_of(run)
    assert (run / "report.html").read_text().count("real-time factor 0.010") == 1


def test_nothing_is_loaded_from_elsewhere(run):
    source = (page_of(run), (run / "report.html").read_text())[1]
    assert "//" not in re.sub(r"data:image/png;base64,[\w+/=\s]+", "", source)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|url\((?!#)", source)


def test_ids_are_unique_and_every_reference_has_its_target(run):
    page = page_of(run)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    used = {attributes["xlink:href"][1:] for attributes in page.all("use")}
    used |= set(re.findall(r"url\(#([^)]+)\)", (run / "report.html").read_text()))
    assert used
    assert used <= set(ids)


def test_text_of_the_data_is_shown_and_never_becomes_markup(run):
    page = page_of(run)
    assert not page.all("script")
    assert not page.all("b")
    assert NASTY in page.text
    assert "<h1>Run <em>a&amp;b</em></h1>" in (run / "report.html").read_text()
    assert "speechllm fit --run 'runs/finetune of <mine>'" in page.text
    assert "speechllm evaluate --cuts 'a <b>.jsonl'" in page.text


def test_the_table_has_the_scores_of_both_systems_and_their_plain_mean(run):
    text = page_of(run).text
    scores = json.loads((run / "scores.json").read_text())
    for entry in scores.values():
        for rates in (entry["average"], *entry["languages"].values()):
            low, high = rates["confidence_interval"]
            assert f"{100 * rates['wer']:.2f} {100 * low:.1f}–{100 * high:.1f} {100 * rates['cer']:.2f}" in text
    assert "plain mean over languages" in text


def test_errors_are_marked_by_their_kind(run):
    page = page_of(run)
    source = (run / "report.html").read_text()
    assert '<mark title="said: two">too</mark>' in source
    assert "<ins>vier</ins>" in source
    assert "<del>eight</del>" in source
    assert {"lang": "de"} in page.all("td")
    assert "met the length cap" in page.text


def test_drawings_can_be_listened_to(run):
    page = page_of(run)
    drawings = page.all("svg")
    assert len(drawings) >= 7  # scores; stage 1: loss, WER, rate, speed; stage 2: loss, WER, speed
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    assert all(cell.get("scope") for cell in page.all("th"))


def test_the_same_run_gives_the_same_page(run):
    report(ReportOptions(run=str(run)))
    first = (run / "report.html").read_bytes()
    report(ReportOptions(run=str(run)))
    assert (run / "report.html").read_bytes() == first


def test_a_run_after_its_first_stage_names_what_is_missing(tmp_path):
    write_logs(tmp_path / "pretrain_ctc", ("train/loss", "train/ctc_loss"))
    text = page_of(tmp_path).text
    for missing in (
        "The run has no scores yet: make evaluate",
        "The run has no transcripts yet: make evaluate",
        "Stage 2 has no checkpoint yet",
        "This stage has not been run: make finetune",
        "This stage has not run to its end: make pretrain-ctc",
    ):
        assert missing in text


def test_one_system_alone_is_reported_without_a_winner(run):
    write_scores(run, systems=("ctc",))
    page = page_of(run)
    assert not page.all("strong")
    assert "Only one of the two stages is scored" in page.text


@pytest.fixture
def stage2(run, ctc_tokenizer, llm_folder, small_encoder):
    """A stage-2 checkpoint of random weights in the run."""
    torch.manual_seed(0)
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, bridge=ProjectorConfig(2))
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    path = run / "finetune" / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    torch.save(checkpoint, path)


@pytest.mark.parametrize("storage", ["manifest", "shar"])
def test_a_checkpoint_is_aligned_with_the_first_suitable_utterance(run, stage2, corpus, tmp_path, storage):
    cuts = corpus / "train.jsonl.gz"
    if storage == "shar":
        export(cuts, tmp_path / "shar", Settings("flac", 3))
        cuts = tmp_path / "shar"
    page = page_of(run, cuts=str(cuts))
    (label,) = [svg["aria-label"] for svg in page.all("svg") if "Cosine" in svg["aria-label"]]
    tokens, embeddings = map(int, re.findall(r"(\d+) (?:text tokens|audio embeddings)", label))
    assert tokens == 4
    assert embeddings * 0.16 == pytest.approx(4 * 0.35 + 0.05, abs=0.16)  # 160 ms each, four words of tones
    assert "train-2: “six seven eight one”" in page.text
    assert page.all("image")  # the map and its scale
    assert all(image["xlink:href"].startswith("data:image/png;base64,") for image in page.all("image"))


def test_an_alignment_that_cannot_be_made_is_named_on_the_page_unless_it_was_asked_for(run, stage2):
    (run / "finetune" / "config.yaml").write_text("data: {root: nowhere, test: test.jsonl.gz}\n")
    assert "No alignment: manifest nowhere/test.jsonl.gz does not exist" in page_of(run).text
    with pytest.raises(UserError, match=r"other\.jsonl does not exist"):
        report(ReportOptions(run=str(run), cuts="other.jsonl"))

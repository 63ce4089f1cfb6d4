"""`--decoder`: another search for the LLM's text, told in scores.json; what has no effect is refused."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jiwer
import pytest
from untrained import save
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.llm_finetuning import LlmFinetuning

PACKAGE = "whisper-normalizer"


@pytest.fixture(scope="module")
def checkpoint(
    ctc_tokenizer: CtcTokenizer,
    llm_folder: Path,
    small_encoder: ConformerConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder)
    return save(module, tmp_path_factory.mktemp("checkpoints") / "llm.ckpt")


def test_evaluate_finds_the_same_texts_with_drafts(speechllm, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    cuts, scores = corpus / "train.jsonl.gz", {}
    for decoder in ("greedy", "speculative"):
        output = tmp_path / decoder
        outcome = speechllm(
            *("evaluate", "--checkpoint", checkpoint, "--cuts", cuts, "--output", output, "--decoder", decoder)
        )
        assert outcome.status == 0, outcome.err
        scores[decoder] = json.loads((output / "scores.json").read_text())["llm"]
        assert f"; {decoder}, {scores[decoder]['llm_passes']:.1f} passes of the LLM an utterance" in outcome.out
    texts = [(tmp_path / decoder / "hypotheses.jsonl").read_text() for decoder in scores]
    assert texts[0] == texts[1]
    assert [entry["decoder"] for entry in scores.values()] == ["greedy", "speculative"]
    assert scores["greedy"]["drafted"] == 0
    words = sum(len(json.loads(line)["hypothesis"].split()) for line in texts[0].splitlines() if '"llm"' in line)
    utterances = sum('"llm"' in line for line in texts[0].splitlines())
    assert scores["greedy"]["llm_passes"] >= words / utterances > 1  # each word of this LLM is a token
    assert scores["speculative"]["llm_passes"] <= scores["greedy"]["llm_passes"]


def evaluated(speechllm, checkpoint: Path, corpus: Path, output: Path, *options: str) -> tuple[dict, list[dict]]:
    """Scores of the LLM, and rows of both systems."""
    cuts = corpus / "train.jsonl.gz"
    outcome = speechllm("evaluate", "--checkpoint", checkpoint, "--cuts", cuts, "--output", output, *options)
    assert outcome.status == 0, outcome.err
    rows = [json.loads(line) for line in (output / "hypotheses.jsonl").read_text().splitlines()]
    return json.loads((output / "scores.json").read_text())["llm"], rows


def test_error_rates_under_a_published_normaliser_stand_beside_the_raw_ones(
    speechllm, checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    raw, rows = evaluated(speechllm, checkpoint, corpus, tmp_path / "raw")
    both, same = evaluated(speechllm, checkpoint, corpus, tmp_path / "both", "--normalizer", "whisper")
    assert same == rows
    assert both["average"] == raw["average"]
    assert "normalized" not in raw
    normalized = both["normalized"]
    assert (normalized["normalizer"], normalized["package"]) == ("whisper", f"{PACKAGE} {version(PACKAGE)}")
    rules = {"en": EnglishTextNormalizer(), "de": BasicTextNormalizer()}
    for language, counted in normalized["languages"].items():
        pairs = [
            [rules[language](row[kind]) for kind in ("reference", "hypothesis")]
            for row in rows
            if (row["system"], row["language"]) == ("llm", language)
        ]
        assert counted["wer"] == pytest.approx(jiwer.wer(*map(list, zip(*pairs, strict=True))))
    assert normalized["languages"].keys() == rules.keys()
    assert normalized["languages"]["en"]["words"] < raw["languages"]["en"]["words"]  # twenty one is 21


def test_beam_search_says_what_it_chose_from_and_how(speechllm, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    options = ("--decoder", "beam", "--num-beams", "3", "--ctc-weight", "0.3")
    scores, rows = evaluated(speechllm, checkpoint, corpus, tmp_path / "beam", *options)
    assert (scores["decoder"], scores["num_beams"], scores["ctc_weight"]) == ("beam", 3, 0.3)
    for row in rows:
        if row["system"] == "ctc":
            assert "alternatives" not in row
            continue
        joint = [0.7 * each["log_probability"] + 0.3 * each["ctc_log_probability"] for each in row["alternatives"]]
        assert len(joint) in (3, 4)
        assert joint == sorted(joint, reverse=True)
        assert row["hypothesis"] == row["alternatives"][0]["text"]
        assert all(each["ctc_log_probability"] < 0 for each in row["alternatives"])


def test_one_beam_finds_the_greedy_texts(speechllm, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    _, greedy = evaluated(speechllm, checkpoint, corpus, tmp_path / "greedy")
    _, beam = evaluated(speechllm, checkpoint, corpus, tmp_path / "beam", "--decoder", "beam", "--num-beams", "1")
    assert [row["hypothesis"] for row in beam] == [row["hypothesis"] for row in greedy]
    assert any(row["hypothesis"] for row in greedy if row["system"] == "llm")


def test_where_ctc_is_sure_the_llm_is_not_asked(speechllm, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    greedy, rows = evaluated(speechllm, checkpoint, corpus, tmp_path / "greedy")
    never, sure = evaluated(speechllm, checkpoint, corpus, tmp_path / "never", "--accept-entropy", "99")
    always, unsure = evaluated(speechllm, checkpoint, corpus, tmp_path / "always", "--accept-entropy", "0")
    texts = {
        name: [[row["hypothesis"] for row in found if row["system"] == system] for system in ("ctc", "llm")]
        for name, found in (("greedy", rows), ("never", sure), ("always", unsure))
    }
    assert texts["never"][1] == texts["never"][0] == texts["greedy"][0]
    assert texts["always"] == texts["greedy"]
    assert (never["llm_passes"], always["llm_passes"]) == (0, greedy["llm_passes"])


@pytest.mark.parametrize(
    "options",
    [
        ("--decoder", "speculative", "--accept-probability", "0"),
        ("--accept-entropy", "99"),
        ("--decoder", "speculative", "--accept-probability", "0", "--accept-entropy", "0.001"),
    ],
)
def test_a_relaxed_search_stands_beside_the_exact_one(
    speechllm, checkpoint: Path, corpus: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    cuts = corpus / "train.jsonl.gz"
    searches = {"relaxed": options, "exact": tuple(options[:2]) if options[0] == "--decoder" else ()}
    done, scores, rows = {}, {}, {}
    for name, given in searches.items():
        output = tmp_path / name
        done[name] = speechllm("evaluate", "--checkpoint", checkpoint, "--cuts", cuts, "--output", output, *given)
        assert done[name].status == 0, done[name].err
        scores[name] = json.loads((output / "scores.json").read_text())["llm"]
        rows[name] = [json.loads(line) for line in (output / "hypotheses.jsonl").read_text().splitlines()]
    relaxed, exact = scores["relaxed"], scores["exact"]
    assert rows["relaxed"] != rows["exact"]
    assert "exact" not in exact
    rates = {key: relaxed["exact"][key] for key in ("llm_passes", "drafted", "unasked")}
    assert rates == {key: exact[key] for key in rates}
    assert relaxed["exact"]["wer"] == exact["average"]["wer"]
    assert relaxed["wer_change"] == pytest.approx(relaxed["average"]["wer"] - exact["average"]["wer"])
    assert relaxed["speedup"] == pytest.approx(relaxed["rtfx"] / relaxed["exact"]["rtfx"])
    assert relaxed["unasked"] == (1.0 if "99" in options else 0.0)
    for name, value in zip(options[::2], options[1::2], strict=True):
        if name != "--decoder":
            assert f", {name[2:].replace('-', '_')} {value}, " in done["relaxed"].out
    shown = [line for line in done["relaxed"].out.splitlines() if line.startswith(("llm, exact: ", "llm, relaxed: "))]
    assert len(shown) == 2
    assert f"WER {100 * exact['average']['wer']:.2f} %; {exact['llm_passes']:.2f} passes" in shown[0]
    change = f"({100 * relaxed['wer_change']:+.2f}); {relaxed['llm_passes']:.2f} passes"
    assert f"WER {100 * relaxed['average']['wer']:.2f} % {change}" in shown[1]
    assert f"({relaxed['speedup']:.2f} times)" in shown[1]
    assert "llm, exact" not in done["exact"].out


def test_transcribing_tells_what_a_relaxed_search_accepted(speechllm, checkpoint: Path, corpus: Path) -> None:
    given = ("transcribe", "--checkpoint", checkpoint, "--guard", "false", corpus / "train-4.wav")
    assert "relaxed" not in speechllm(*given).err
    told = speechllm(*given, "--accept-entropy", "99").err.splitlines()[-1]
    assert told.startswith("relaxed: 0.00 passes of the LLM an utterance, ")
    assert told.endswith(", 100.0 % of texts without asking it")


def test_ctc_alone_asks_no_llm(speechllm, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    cuts, texts = corpus / "train.jsonl.gz", {}
    for decoder in ("greedy", "ctc"):
        output = tmp_path / decoder
        options = ("--cuts", cuts, "--output", output, "--decoder", decoder)
        assert speechllm("evaluate", "--checkpoint", checkpoint, *options).status == 0
        rows = [json.loads(line) for line in (output / "hypotheses.jsonl").read_text().splitlines()]
        texts[decoder] = [row["hypothesis"] for row in rows if row["system"] == "ctc"]
        assert {row["system"] for row in rows} == ({"ctc"} if decoder == "ctc" else {"ctc", "llm"})
    assert texts["ctc"] == texts["greedy"]
    assert json.loads((output / "scores.json").read_text())["ctc"]["real_time_factor"] > 0
    given = ("--format", "json", corpus)  # an untrained CTC head hears what the speech check takes for no speech
    printed = speechllm("transcribe", "--checkpoint", checkpoint, "--decoder", "ctc", *given).out
    found = [json.loads(line) for line in printed.splitlines()]
    assert len(found) == len(list(corpus.glob("*.wav")))
    assert {row["decoded_by"] for row in found} <= {"ctc", "silence"}


def test_an_ngram_changes_the_text_of_ctc(speechllm, checkpoint, corpus, ctc_tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text.decoder", reason="needs the extra ngram")
    model, ngram, cuts = tmp_path / "tokenizer.model", tmp_path / "ngram.arpa", str(corpus / "train.jsonl.gz")
    model.write_bytes(ctc_tokenizer.to_bytes())
    program = [sys.executable, "-m", "data_prep.ngram", "--manifest", cuts, "--tokenizer", str(model)]
    subprocess.run([*program, "--output", str(ngram)], check=True)
    found = {}
    for weight in ("0", "30"):
        output = tmp_path / weight
        options = ("--decoder", "ctc-beam", "--ngram", ngram, "--ngram-weight", weight, "--num-beams", "20")
        outcome = speechllm("evaluate", "--checkpoint", checkpoint, "--cuts", cuts, "--output", output, *options)
        assert outcome.status == 0, outcome.err
        found[weight] = [json.loads(line) for line in (output / "hypotheses.jsonl").read_text().splitlines()]
        entry = json.loads((output / "scores.json").read_text())["ctc"]
        assert (entry["decoder"], entry["ngram"], entry["ngram_weight"]) == ("ctc-beam", str(ngram), float(weight))
    texts = {weight: [row["hypothesis"] for row in rows] for weight, rows in found.items()}
    assert texts["0"] != texts["30"]
    assert all(row["alternatives"][0]["text"] == row["hypothesis"] for row in found["30"])


def test_transcribe_finds_the_same_texts_with_drafts(speechllm, checkpoint: Path, corpus: Path) -> None:
    options = ("--checkpoint", checkpoint, "--format", "json", "--guard", "false")  # which takes tones for no speech
    greedy, drafted = (
        [json.loads(line) for line in speechllm("transcribe", *options, "--decoder", decoder, corpus).out.splitlines()]
        for decoder in ("greedy", "speculative")
    )
    assert len(greedy) == len(list(corpus.glob("*.wav")))
    assert {row["decoded_by"] for row in greedy} == {"llm"}
    assert all(row["text"] for row in greedy)
    assert [(row["text"], row["decoded_by"]) for row in drafted] == [(row["text"], "llm") for row in greedy]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--decoder", "beam-of-light"), "beam-of-light"),
        (("--accept-probability", "0.2"), "has no effect on greedy"),
        (
            ("--decoder", "speculative", "--accept-probability", "2"),
            "accept_probability 2 is a probability: give 0 to 1",
        ),
        (("--ctc-weight", "0.3"), "ctc_weight chooses among texts of beam or speculative: greedy finds only one"),
        (("--decoder", "beam", "--ctc-weight", "3"), "ctc_weight 3 is a share: give 0 to 1"),
        (("--decoder", "beam", "--ctc-candidates", "4"), "ctc_candidates join the texts of beam, and are ranked"),
        (("--ctc-candidates", "-1"), "ctc_candidates -1 is no number of texts: give 0 or more"),
        (("--decoder", "beam", "--num-beams", "0"), "num_beams 0 follows no text: give 1 or more"),
        (("--ngram", "5.arpa"), "ngram is of decoder ctc-beam, and has no effect on greedy"),
        (("--decoder", "ctc-beam", "--ngram", "5.arpa"), "ngram 5.arpa does not exist"),
        (("--accept-entropy", "-1"), "accept_entropy -1 is below any entropy: give 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(speechllm, checkpoint: Path, corpus: Path, options, told: str) -> None:
    outcome = speechllm("transcribe", "--checkpoint", checkpoint, *options, corpus)
    assert told in outcome.error()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--decoder", "speculative"), "--decoder speculative has no effect"),
        (("--decoder", "beam", "--max-new-tokens", "9"), "--decoder beam, --max_new_tokens 9 have no effect"),
        (("--accept-entropy", "0.5"), "--accept_entropy 0.5 has no effect"),
        (("--llm", "x"), "--llm x has no effect"),
        (("--decoder", "ctc"), ""),
        ((), ""),
    ],
)
def test_options_of_an_llm_have_no_effect_without_one(
    speechllm, untrained_ctc: Path, corpus: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    cuts = ("--cuts", corpus / "test.jsonl.gz", "--output", tmp_path)
    for command in (("transcribe", corpus / "test-0.wav"), ("evaluate", *cuts)):
        outcome = speechllm(*command, "--checkpoint", untrained_ctc, *options)
        assert outcome.status == 0, outcome.err
        assert f"warning: {told}: the checkpoint is of stage 1" in outcome.err if told else "effect" not in outcome.err


def test_options_of_an_llm_are_for_the_stage_that_has_one(
    speechllm, untrained_ctc: Path, checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    given = ("--cuts", corpus / "test.jsonl.gz", "--output", tmp_path, "--decoder", "speculative")
    outcome = speechllm("evaluate", "--checkpoint", f"[{untrained_ctc},{checkpoint}]", *given)
    assert outcome.status == 0, outcome.err
    assert "no effect" not in outcome.err


@pytest.mark.parametrize(
    ("settings", "options", "told"),
    [
        ({"ctc_weight": 0.0}, ("--decoder", "speculative"), True),
        ({"ctc_weight": 0.0}, ("--decoder", "ctc"), True),
        ({"ctc_weight": 0.0}, ("--decoder", "beam", "--ctc-weight", "0.3"), True),
        ({"ctc_weight": 0.0}, ("--decoder", "beam"), False),
        ({"ctc_weight": 0.0}, (), False),  # but the guard of transcribe does
        ({"ctc_weight": 0.1}, ("--decoder", "speculative"), False),
        ({"ctc_weight": 0.0, "freeze_encoder": True}, ("--decoder", "speculative"), False),
    ],
)
def test_a_ctc_head_that_the_encoder_moved_away_from_is_told_where_it_counts(
    speechllm, ctc_tokenizer, llm_folder, small_encoder, corpus: Path, tmp_path, caplog, settings, options, told: bool
) -> None:
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, **settings)
    path, cuts = save(module, tmp_path / "llm.ckpt"), corpus / "test.jsonl.gz"
    moved = module.config.ctc_weight == 0 and not module.config.freeze_encoder
    transcribe = ("transcribe", "--checkpoint", path, *options, corpus / "test-0.wav")
    for command, expected in (
        (transcribe, moved),
        ((*transcribe, "--guard", "false"), told),
        (("evaluate", "--checkpoint", path, "--cuts", cuts, "--output", tmp_path, *options), told),
    ):
        caplog.clear()
        outcome = speechllm(*command)
        assert outcome.status == 0, outcome.err
        assert caplog.text.count("was not trained with the encoder in stage 2") == expected

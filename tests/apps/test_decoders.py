"""`--decoder`: another search for the LLM's text, told in scores.json; what has no effect is refused."""

import json
from pathlib import Path

import pytest
from untrained import save

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning


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
        assert f"{scores[decoder]['llm_passes']:.1f} passes of the LLM an utterance" in outcome.out
    texts = [(tmp_path / decoder / "hypotheses.jsonl").read_text() for decoder in scores]
    assert texts[0] == texts[1]
    assert [entry["decoder"] for entry in scores.values()] == ["greedy", "speculative"]
    assert scores["greedy"]["drafted"] == 0
    words = sum(len(json.loads(line)["hypothesis"].split()) for line in texts[0].splitlines() if '"llm"' in line)
    utterances = sum('"llm"' in line for line in texts[0].splitlines())
    assert scores["greedy"]["llm_passes"] >= words / utterances > 1  # each word of this LLM is a token
    assert scores["speculative"]["llm_passes"] <= scores["greedy"]["llm_passes"]


def test_transcribe_finds_the_same_texts_with_drafts(speechllm, checkpoint: Path, corpus: Path) -> None:
    printed = [
        speechllm("transcribe", "--checkpoint", checkpoint, "--decoder", decoder, corpus).out
        for decoder in ("greedy", "speculative")
    ]
    assert printed[0].strip()
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--decoder", "beam-of-light"), "beam-of-light"),
        (("--accept-probability", "0.2"), "has no effect on greedy"),
        (
            ("--decoder", "speculative", "--accept-probability", "2"),
            "accept_probability 2 is a probability: give 0 to 1",
        ),
    ],
)
def test_what_cannot_be_is_refused(speechllm, checkpoint: Path, corpus: Path, options, told: str) -> None:
    outcome = speechllm("transcribe", "--checkpoint", checkpoint, *options, corpus)
    assert told in outcome.error()


def test_a_decoder_of_the_llm_has_no_effect_without_one(
    speechllm, ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, corpus: Path, tmp_path: Path
) -> None:
    stage_one = save(CtcPretraining(ctc_tokenizer, encoder=small_encoder), tmp_path / "ctc.ckpt")
    outcome = speechllm("transcribe", "--checkpoint", stage_one, "--decoder", "speculative", corpus)
    assert outcome.status == 0
    assert "--decoder speculative has no effect" in outcome.err

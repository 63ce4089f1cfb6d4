"""A recogniser's texts depend on the utterance alone, in every search: not on its batch, nor on its place there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import speak
from tone_words import sentences
from torch.nn.utils.rnn import pad_sequence

from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Recognizer

RECORDINGS = [speak(text) for text in sentences(8, 4)]
MODES = {
    "greedy": {},
    "CTC where it is sure": {"accept_entropy": True},
    "drafts": {"decoder": "speculative"},
    "drafts that need not be the LLM's choice": {"decoder": "speculative", "accept_probability": 0.01},
    "drafts and CTC": {"decoder": "speculative", "ctc_weight": 0.5},
    "beams": {"decoder": "beam", "num_beams": 3},
    "beams and CTC": {"decoder": "beam", "num_beams": 3, "ctc_weight": 0.5},
    "beams and CTC's": {"decoder": "beam", "num_beams": 3, "ctc_weight": 0.5, "ctc_candidates": 40},
    "CTC": {"decoder": "ctc"},
}


@pytest.fixture(scope="module")
def recognizer(untrained_llm: Path) -> Recognizer:
    """Random weights, and a CTC head that is surer of some utterances than of others."""
    found = Recognizer.load(untrained_llm)
    with torch.no_grad():
        found.speech.head.weight.mul_(8)
    return found


def heard(recognizer: Recognizer, recordings: Sequence[np.ndarray], options: DecodingOptions) -> list[Hypothesis]:
    waveforms = pad_sequence([torch.from_numpy(samples) for samples in recordings], batch_first=True)
    lengths = torch.tensor([len(samples) for samples in recordings])
    with recognizer.decoding():
        found = recognizer.transcribe(waveforms, lengths, ["und"] * len(recordings), options)
    return found[recognizer.systems(options)[-1]]


def median_entropy(recognizer: Recognizer) -> float:
    """Median entropy of the least sure frames of the recordings."""
    most = []
    for samples in RECORDINGS:
        with recognizer.decoding():
            logits = recognizer.hear(torch.from_numpy(samples)[None], torch.tensor([len(samples)])).logits
        most.append(torch.distributions.Categorical(logits=logits[0]).entropy().max().item())
    return float(np.median(most))


@pytest.mark.parametrize("mode", MODES)
def test_neither_batch_nor_order_changes_a_text(recognizer: Recognizer, mode: str) -> None:
    given: dict[str, Any] = dict(MODES[mode])
    if "ctc_candidates" in given:
        pytest.importorskip("flashlight.lib.text.decoder", reason="needs flashlight-text: pip install -e '.[ngram]'")
    if "accept_entropy" in given:
        given["accept_entropy"] = median_entropy(recognizer)
    options = DecodingOptions(**given)
    options = replace(options, max_new_tokens=12 if options.asks_llm else None)
    alone = [heard(recognizer, [samples], options)[0] for samples in RECORDINGS]
    together = heard(recognizer, RECORDINGS, options)
    assert len({each.text for each in alone}) > 3
    for found in (together, heard(recognizer, RECORDINGS[::-1], options)[::-1]):
        assert found == alone
        assert [(each.passes, each.drafted) for each in found] == [(each.passes, each.drafted) for each in alone]
        for score in ("log_probability", "ctc_log_probability"):
            expected = [getattr(each, score) for each in alone]
            assert [getattr(each, score) for each in found] == pytest.approx(expected, abs=1e-3)
    if mode == "CTC where it is sure":
        assert {bool(each.passes) for each in alone} == {False, True}


def test_texts_of_ctcs_beams_are_chosen_where_ctc_finds_them_likelier(recognizer: Recognizer) -> None:
    pytest.importorskip("flashlight.lib.text.decoder", reason="needs flashlight-text: pip install -e '.[ngram]'")
    of_ctc = heard(recognizer, RECORDINGS, DecodingOptions("ctc-beam", num_beams=40))
    options = DecodingOptions("beam", num_beams=2, ctc_weight=1.0, max_new_tokens=12)
    without = heard(recognizer, RECORDINGS, options)
    found = heard(recognizer, RECORDINGS, replace(options, ctc_candidates=40))
    assert [each.text for each in without] != [each.text for each in found]
    combined = 0
    for each, beams, of_llm in zip(found, of_ctc, without, strict=True):
        texts, given = ({text.text for text in each.alternatives} for each in (each, beams))
        assert given <= texts
        combined += len(texts - given - {text.text for text in of_llm.alternatives})
        assert each.ctc_log_probability == max(text.ctc_log_probability for text in each.alternatives)
    assert combined

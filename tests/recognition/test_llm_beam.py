"""Beam search finds what transformers' beam search finds, and with room for every text the best of all texts."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_architectures import CONFIGS, small_llm
from test_speech_llm import INSTRUCTIONS, audio_batch, build, tokens
from torch import Tensor

from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.llm_beam import Beam, BeamScorer, beam_search
from speechllm_pl.recognition.scorer import LlmScorer

EOS, PAD, SIZE = 2, 0, 5


class Table:
    """Scores what follows by the utterance and the last two tokens."""

    def __init__(self, utterances: int, seed: int) -> None:
        self.log_probabilities = torch.randn(
            utterances, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)
        ).log_softmax(-1)
        self.texts: list[tuple[int, tuple[int, ...]]] = [(row, ()) for row in range(utterances)]
        self.most_rows = 0

    def after(self, utterance: int, text: Sequence[int]) -> Tensor:
        before, last = [0, 0, *text][-2:]
        return self.log_probabilities[utterance, before, last]

    def __call__(self, tokens: Tensor | None) -> Tensor:
        if tokens is not None:
            self.texts = [(row, (*text, token)) for (row, text), token in zip(self.texts, tokens.tolist(), strict=True)]
        self.most_rows = max(self.most_rows, len(self.texts))
        return torch.stack([self.after(row, text) for row, text in self.texts]) * 1.0

    def select(self, rows: Sequence[int]) -> None:
        self.texts = [self.texts[row] for row in rows]


def best(scorer: BeamScorer, caps: Sequence[int], num_beams: int) -> list[list[Beam]]:
    return [search.beams for search in beam_search(scorer, caps, EOS, num_beams)]


def every_text(table: Table, utterance: int, cap: int) -> list[tuple[float, tuple[int, ...]]]:
    """Mean log-probability and tokens of each text that ends by the end token or at the cap, the best first."""
    found = []
    for length in range(1, cap + 1):
        for text in itertools.product(range(SIZE), repeat=length):
            if EOS in text[:-1] or (length < cap and text[-1] != EOS):
                continue
            total = sum(table.after(utterance, text[:place])[token].item() for place, token in enumerate(text))
            found.append((total / length, text))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_with_room_for_every_text_the_best_of_all_are_found(seed: int) -> None:
    caps = [3, 0, 1, 4]
    found = best(Table(len(caps), seed), caps, num_beams=SIZE**4)
    for utterance, cap in enumerate(caps):
        if cap == 0:
            assert [beam.tokens for beam in found[utterance]] == [()]
            continue
        expected = every_text(Table(len(caps), seed), utterance, cap)
        scores = {text: score for score, text in expected}
        assert {beam.tokens: beam.score for beam in found[utterance]} == pytest.approx(scores, abs=1e-4)
        assert [beam.score for beam in found[utterance]] == pytest.approx([score for score, _ in expected], abs=1e-4)
        assert all(beam.end.complete == (EOS in beam.tokens) for beam in found[utterance])


def test_no_more_rows_are_scored_than_beams_are_kept() -> None:
    table = Table(3, seed=1)
    found = best(table, [9, 9, 9], num_beams=2)
    assert table.most_rows == 6
    assert [len(beams) for beams in found] == [2, 2, 2]
    assert table.texts == []  # nothing is scored for those that have ended


def test_an_utterance_whose_logits_are_not_finite_has_no_finite_score_and_others_have() -> None:
    class Broken(Table):
        def after(self, utterance: int, text: Sequence[int]) -> Tensor:
            scores = super().after(utterance, text).clone()
            if utterance == 1 and len(text) == 2:
                scores[3] = math.nan
            return scores

    table = Broken(3, seed=3)
    table.log_probabilities[..., EOS] -= 20
    found = best(table, [6, 6, 6], num_beams=3)
    assert [math.isfinite(beams[0].log_probability) for beams in found] == [True, False, True]
    assert [len(beams[0].tokens) for beams in found] == [6, 2, 6]


def test_forbidden_tokens_are_in_no_text() -> None:
    table = Table(1, seed=0)
    table.log_probabilities[..., [0, 1, 3]] = -math.inf
    [beams] = best(table, [3], num_beams=30)
    assert {beam.tokens for beam in beams} == {(2,), (4, 2), (4, 4, 2), (4, 4, 4)}


def test_a_loop_ends_its_text_and_others_go_on() -> None:
    table = Table(1, seed=0)
    table.log_probabilities[:] = torch.full((SIZE,), -9.0)
    table.log_probabilities[..., 4] = -0.1
    [beams] = best(table, [200], num_beams=2)
    assert beams[0].end.looped
    assert set(beams[0].tokens) == {4}
    assert len(beams[0].tokens) < 40


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, small_encoder: ConformerConfig) -> SpeechLLM:
    return build(small_llm(request.param), small_encoder, lora_r=0).eval()


@torch.no_grad()
def texts(model: SpeechLLM, num_beams: int, rows: Sequence[int]) -> list[list[Beam]]:
    audio = model.listen(audio_batch())
    prompt = model.prompt(audio, tokens(INSTRUCTIONS))
    scorer = LlmScorer(model, prompt)
    scorer.select(rows)
    return best(scorer, [12] * len(rows), num_beams)


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@torch.no_grad()
def test_texts_and_scores_are_those_of_generate(model: SpeechLLM, num_beams: int) -> None:
    audio = model.listen(audio_batch())
    prompt = model.prompt(audio, tokens(INSTRUCTIONS))
    llm: Any = model.llm
    expected = llm.generate(
        inputs_embeds=prompt.embeddings.to(llm.dtype),
        attention_mask=prompt.mask,
        max_new_tokens=12,
        num_beams=num_beams,
        do_sample=False,
        num_return_sequences=num_beams,
        length_penalty=1.0,
        early_stopping=False,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
        output_scores=True,
        return_dict_in_generate=True,
    )
    found = [beam for beams in texts(model, num_beams, range(len(prompt.mask))) for beam in beams]
    assert len(found) == len(expected.sequences)
    for beam, sequence in zip(found, expected.sequences.tolist(), strict=True):
        assert list(beam.tokens) == sequence[: len(beam.tokens)]
        assert set(sequence[len(beam.tokens) :]) <= {PAD, EOS}
    if num_beams > 1:
        assert [beam.score for beam in found] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)


@torch.no_grad()
def test_texts_do_not_depend_on_their_batch(model: SpeechLLM) -> None:
    together = texts(model, 3, range(len(INSTRUCTIONS)))
    for row in range(len(INSTRUCTIONS)):
        [alone] = texts(model, 3, [row])
        assert [beam.tokens for beam in alone] == [beam.tokens for beam in together[row]]
        assert [beam.score for beam in alone] == pytest.approx([beam.score for beam in together[row]], abs=1e-4)

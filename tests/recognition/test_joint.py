"""Scores of CTC are sums over all paths, and the best text by both scores together is chosen."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer, ctc_collapse
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.joint import ctc_log_likelihoods, jointly_ranked


def test_the_likelihood_of_a_text_is_the_sum_over_all_paths_that_spell_it() -> None:
    logits = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0))
    frames, texts = torch.tensor([6, 4, 5]), [[1, 1, 2], [2], []]
    found = ctc_log_likelihoods(logits, frames, texts)
    for row, (count, text) in enumerate(zip(frames.tolist(), texts, strict=True)):
        probabilities = logits[row, :count].double().softmax(-1).tolist()
        paths = (path for path in itertools.product(range(3), repeat=count) if ctc_collapse(path) == text)
        total = sum(math.prod(frame[label] for frame, label in zip(probabilities, path, strict=True)) for path in paths)
        assert found[row].item() == pytest.approx(math.log(total), abs=1e-4)


def test_a_text_that_needs_more_frames_than_there_are_has_no_likelihood() -> None:
    assert ctc_log_likelihoods(torch.zeros(1, 3, 4), torch.tensor([3]), [[1, 1, 1]]).tolist() == [-math.inf]


def spoken(tokenizer: CtcTokenizer, *texts: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that say a class of each text in every second frame, fairly surely."""
    rows = [[label for piece in tokenizer.encode(text) for label in (piece, 0)] for text in texts]
    logits = torch.zeros(len(rows), max(map(len, rows)), tokenizer.vocab_size)
    for row, labels in zip(logits, rows, strict=True):
        row[range(len(labels)), labels] = 5.0
    return logits, torch.tensor([len(row) for row in rows])


def found(*scored: tuple[str, float]) -> Hypothesis:
    alternatives = tuple(Hypothesis(text, log_probability=score, num_tokens=len(text)) for text, score in scored)
    return replace(alternatives[0], alternatives=alternatives)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [(1.0, ["ab ca", "ba"]), (0.5, ["ab ca", "ba"]), (0.02, ["ab cc", "ba"])],  # a little CTC does not outweigh -3
)
def test_the_text_that_both_find_likely_is_chosen(letters: CtcTokenizer, weight: float, expected: list[str]) -> None:
    logits, frames = spoken(letters, "ab ca", "ba")
    n_best = [found(("ab cc", -1.0), ("ab ca", -4.0), ("cc", -5.0)), found(("ba", -1.0))]
    chosen = jointly_ranked(n_best, logits, frames, letters, weight)
    assert [hypothesis.text for hypothesis in chosen] == expected
    for hypothesis, before in zip(chosen, n_best, strict=True):
        assert {each.text for each in hypothesis.alternatives} == {each.text for each in before.alternatives}
        scores = [
            (1 - weight) * each.log_probability + weight * each.ctc_log_probability for each in hypothesis.alternatives
        ]
        assert scores == sorted(scores, reverse=True)
        assert hypothesis.text == hypothesis.alternatives[0].text


def test_characters_that_ctc_does_not_know_do_not_count(letters: CtcTokenizer) -> None:
    logits, frames = spoken(letters, "ab")
    [chosen] = jointly_ranked([found(("ab", -1.0), ("a猫b", -1.0), ("b", -0.5))], logits, frames, letters, 0.5)
    assert chosen.text == "ab"
    scores = {each.text: each.ctc_log_probability for each in chosen.alternatives}
    assert scores["a猫b"] == scores["ab"] > scores["b"]


def test_a_score_that_ctc_has_given_is_not_asked_for_again(letters: CtcTokenizer) -> None:
    logits, frames = spoken(letters, "ab")
    known = Hypothesis("ca", log_probability=-1.0, ctc_log_probability=-0.25)
    given = replace(known, alternatives=(known, Hypothesis("ab", log_probability=-1.0)))
    [chosen] = jointly_ranked([given], logits, frames, letters, 0.5)
    scores = {each.text: each.ctc_log_probability for each in chosen.alternatives}
    assert scores["ca"] == -0.25
    assert scores["ab"] == ctc_log_likelihoods(logits, frames, [letters.encode("ab")]).item()

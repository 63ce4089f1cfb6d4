"""The best texts by the sum over all paths, and by an n-gram model as well, found by trying every path."""

import itertools
import math
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from data_prep.ngram import arpa, estimate
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer, ctc_collapse
from speechllm_pl.core.errors import UserError
from speechllm_pl.recognition.ctc_beam import ctc_beam_search

pytest.importorskip("flashlight.lib.text.decoder", reason="needs flashlight-text: pip install -e '.[ngram]'")

FRAMES = 5


def every_text(logits: torch.Tensor, count: int) -> dict[tuple[int, ...], float]:
    """Log-likelihood of each text that `count` frames can spell."""
    probabilities = logits[:count].double().softmax(-1).tolist()
    totals: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(logits.shape[1]), repeat=count):
        totals[tuple(ctc_collapse(path))] += math.prod(
            frame[label] for frame, label in zip(probabilities, path, strict=True)
        )
    return {text: math.log(total) for text, total in totals.items()}


@pytest.fixture
def logits(letters: CtcTokenizer) -> torch.Tensor:
    return torch.randn(4, FRAMES, letters.vocab_size, generator=torch.Generator().manual_seed(2)) * 2


def test_without_a_model_the_text_with_the_likeliest_paths_is_found(letters, logits: torch.Tensor) -> None:
    frames = torch.tensor([FRAMES, 3, 1, 0])
    found = ctc_beam_search(logits, frames, letters, num_beams=2000)
    for row, count in enumerate(frames.tolist()):
        expected = every_text(logits[row], count)
        best = max(expected, key=expected.__getitem__)
        assert found[row].text == letters.decode(list(best))
        assert found[row].log_probability == pytest.approx(expected[best], abs=1e-3)
        assert [each.log_probability for each in found[row].alternatives] == sorted(
            (each.log_probability for each in found[row].alternatives), reverse=True
        )


@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_with_a_model_both_scores_count(letters: CtcTokenizer, logits: torch.Tensor, tmp_path: Path, weight) -> None:
    names = letters.pieces
    sentences = [[names[label] for label in letters.encode(text)] for text in ("abc", "ab", "cab ab", "a", "cc")]
    path = tmp_path / "ngram.arpa"
    path.write_text(arpa(estimate(sentences, names[1:], 2)))
    probabilities, backoffs = {}, {}
    for probability, ngram, *backoff in (line.split("\t") for line in path.read_text().splitlines() if "\t" in line):
        probabilities[tuple(ngram.split())] = float(probability)
        backoffs[tuple(ngram.split())] = float(backoff[0]) if backoff else 0.0

    def of_model(text: tuple[int, ...]) -> float:
        words = ["<s>", *(names[label] for label in text), "</s>"]
        return sum(
            probabilities.get(pair, backoffs.get(pair[:1], 0.0) + probabilities[pair[1:]])
            for pair in itertools.pairwise(words)
        )

    found = ctc_beam_search(logits, torch.tensor([FRAMES] * 4), letters, 2000, str(path), weight)
    alone = ctc_beam_search(logits, torch.tensor([FRAMES] * 4), letters, 2000)
    for row, hypothesis in enumerate(found):
        texts = every_text(logits[row], FRAMES).items()
        scores = {text: score + weight * math.log(10) * of_model(text) for text, score in texts}
        best = max(scores, key=scores.__getitem__)
        assert hypothesis.text == letters.decode(list(best))
        assert hypothesis.log_probability == pytest.approx(scores[best], abs=1e-2)
    assert [each.text for each in found] != [each.text for each in alone]


def test_texts_do_not_depend_on_their_batch(letters: CtcTokenizer, logits: torch.Tensor) -> None:
    frames = torch.tensor([5, 4, 3, 2])
    together = ctc_beam_search(logits, frames, letters, num_beams=4)
    for row in range(4):
        [alone] = ctc_beam_search(logits[row : row + 1, : frames[row]], frames[row : row + 1], letters, num_beams=4)
        assert alone == together[row]
        assert alone.log_probability == together[row].log_probability


def test_logits_that_are_not_finite_have_no_finite_score(letters: CtcTokenizer, logits: torch.Tensor) -> None:
    logits[1, 2, 1] = torch.nan
    found = ctc_beam_search(logits, torch.tensor([5, 5, 5, 5]), letters, num_beams=4)
    assert [hypothesis.finite for hypothesis in found] == [True, False, True, True]


@pytest.mark.parametrize(("content", "told"), [(None, "does not exist"), ("not a model", "not a model that KenLM")])
def test_a_model_that_cannot_be_read_is_named(letters, logits, tmp_path: Path, content, told: str) -> None:
    path = tmp_path / "ngram.arpa"
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=told) as refused:
        ctc_beam_search(logits, torch.tensor([5] * 4), letters, 4, str(path), 0.5)
    assert str(path) in str(refused.value)
    assert str(refused.value).endswith(": make it with python -m data_prep.ngram")


def test_whoever_lacks_the_package_is_told_what_to_do(letters, logits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder.kenlm", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[ngram\]'"):
        ctc_beam_search(logits, torch.tensor([5] * 4), letters, num_beams=7)  # of which no decoder is kept

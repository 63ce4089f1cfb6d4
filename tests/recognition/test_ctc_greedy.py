import itertools
import math

import pytest
import scipy.stats
import torch

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.recognition.ctc_greedy import confidences, greedy_ctc, largest_entropies
from speechllm_pl.recognition.hypothesis import Hypothesis


def logits_of(path: list[int], classes: int) -> torch.Tensor:
    """`(T, classes)` noise in which the classes of `path` are the likeliest."""
    noise = torch.rand(len(path), classes, generator=torch.Generator().manual_seed(0))
    noise[range(len(path)), path] += 1
    return noise


def test_repeats_merge_and_blanks_separate(ctc_tokenizer: CtcTokenizer) -> None:
    one, two = ctc_tokenizer.encode("one")[0], ctc_tokenizer.encode("two")[0]
    assert ctc_tokenizer.decode([one, one, two]) == "one one two"
    logits = logits_of([0, one, one, 0, 0, one, two, two, 0], ctc_tokenizer.vocab_size)
    assert greedy_ctc(logits[None], torch.tensor([9]), ctc_tokenizer) == [Hypothesis("one one two")]


def test_frames_beyond_the_length_are_not_read(ctc_tokenizer: CtcTokenizer) -> None:
    one, two = ctc_tokenizer.encode("one")[0], ctc_tokenizer.encode("two")[0]
    logits = logits_of([one, 0, two, two], ctc_tokenizer.vocab_size).expand(3, -1, -1)
    found = greedy_ctc(logits, torch.tensor([4, 2, 0]), ctc_tokenizer)
    assert [hypothesis.text for hypothesis in found] == ["one two", "one", ""]


def test_random_logits_decode_as_a_loop_over_frames_does(ctc_tokenizer: CtcTokenizer) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 25, ctc_tokenizer.vocab_size, generator=generator)
    logits[:, :, 0] += 2  # as many blanks as in real output
    frames = torch.randint(1, 26, (16,), generator=generator)
    found = greedy_ctc(logits, frames, ctc_tokenizer)
    for row, hypothesis in enumerate(found):
        path = [max(range(len(frame)), key=frame.__getitem__) for frame in logits[row, : frames[row]].tolist()]
        kept = [b for a, b in itertools.pairwise([0, *path]) if b not in (0, a)]
        assert hypothesis.text == ctc_tokenizer.decode(kept)


def test_text_from_logits_that_are_not_finite_is_marked(ctc_tokenizer: CtcTokenizer) -> None:
    logits = logits_of([3, 0, 4, 4], ctc_tokenizer.vocab_size).repeat(4, 1, 1)
    logits[0, 1, 5] = torch.nan
    logits[1, 2, 5] = torch.inf
    logits[2, 3, 5] = torch.nan  # beyond its length
    logits[3, 3, 5] = -torch.inf  # a class that cannot be
    found = greedy_ctc(logits, torch.tensor([4, 4, 3, 4]), ctc_tokenizer)
    assert [hypothesis.finite for hypothesis in found] == [False, False, True, True]


def test_the_score_is_the_log_probability_of_the_best_path(ctc_tokenizer: CtcTokenizer) -> None:
    logits = torch.randn(3, 9, ctc_tokenizer.vocab_size, generator=torch.Generator().manual_seed(2))
    frames = [9, 4, 0]
    found = greedy_ctc(logits, torch.tensor(frames), ctc_tokenizer)
    for row, length, hypothesis in zip(logits, frames, found, strict=True):
        best = [max(frame) for frame in row[:length].double().softmax(-1).tolist()]
        assert hypothesis.log_probability == pytest.approx(sum(map(math.log, best)), abs=1e-5)
        assert hypothesis.num_tokens == len(ctc_tokenizer.encode(hypothesis.text)) or length


def test_the_least_certain_frame_is_told_by_its_entropy() -> None:
    logits = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)) * 3
    frames = torch.tensor([7, 3, 0])
    found = largest_entropies(logits, frames).tolist()
    for row, count, entropy in zip(logits.double().softmax(-1), frames.tolist(), found, strict=True):
        each = [scipy.stats.entropy(frame) for frame in row[:count].tolist()]
        assert entropy == pytest.approx(max(each, default=0), abs=1e-5)


def test_confidence_is_the_geometric_mean_over_frames_in_which_something_is_heard() -> None:
    logits = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0)) * 3
    logits[3, :, 0] = 20.0  # nothing but blanks
    logits[1, 3:] = torch.nan  # beyond its length
    frames = torch.tensor([7, 3, 0, 7])
    found = confidences(logits, frames).tolist()
    for row, count, confidence in zip(logits.double().softmax(-1), frames.tolist(), found, strict=True):
        heard = [max(frame) for frame in row[:count].tolist() if frame.index(max(frame))]
        assert confidence == pytest.approx(scipy.stats.gmean(heard) if heard else 1.0, abs=1e-5)
    assert len({*found}) == 3

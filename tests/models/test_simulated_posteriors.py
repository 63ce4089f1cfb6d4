"""Simulated CTC posteriors say what their text says, and are as long, as sure and as confused as the measured ones."""

from itertools import groupby

import pytest
import torch
from torch import Tensor

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.models.simulated_posteriors import Deviations, RealPosteriors, measure, simulate

CLASSES, DIM = 8, 5  # class 0 is the blank
TEXTS = [[3, 5, 5, 2], [7], [], [1, 2, 3, 4, 5, 6, 7], [4, 4, 4]]
LENGTHS = [20, 1, 6, 7, 2]  # the last is too short for three equal classes, which need blanks between


def frame_of_each_class() -> Tensor:
    return torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))


def sure(peak: float = 1.0) -> RealPosteriors:
    """A head that gives each class `peak`, and the rest to the next one alone."""
    one = Deviations(torch.tensor([peak]), torch.zeros(1, DIM))
    return RealPosteriors(frame_of_each_class(), torch.eye(CLASSES).roll(1, 1), one, one, torch.tensor([1, 2, 3]))


def collapsed(classes: list[int]) -> list[int]:
    """CTC's rule, one class at a time."""
    return [each for each, _ in groupby(classes) if each]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_path_through_them_is_the_text(seed: int) -> None:
    torch.manual_seed(seed)
    made, posteriors = simulate(pad_tokens(TEXTS), torch.tensor(LENGTHS), sure(0.7))
    assert made.lengths.tolist() == [20, 1, 6, 7, 5]
    for row, length, text in zip(posteriors, made.lengths, TEXTS, strict=True):
        assert collapsed(row[:length].argmax(-1).tolist()) == text


def test_a_frame_is_the_mean_of_classes_by_their_probability_and_padding_is_zero() -> None:
    torch.manual_seed(0)
    real = sure(0.7)
    real = real._replace(tokens=real.tokens._replace(rest=torch.ones(1, DIM)))
    made, posteriors = simulate(pad_tokens(TEXTS), torch.tensor(LENGTHS), real)
    for frames, row, length in zip(made.values, posteriors, made.lengths, strict=True):
        assert not frames[length:].any()
        for frame, posterior in zip(frames[:length], row[:length], strict=True):
            own = int(posterior.argmax())
            assert posterior[own].item() == pytest.approx(0.7)
            assert posterior[(own + 1) % CLASSES].item() == pytest.approx(0.3)
            mean = 0.7 * frame_of_each_class()[own] + 0.3 * frame_of_each_class()[(own + 1) % CLASSES]
            torch.testing.assert_close(frame, mean + (own > 0))


def test_wrong_classes_are_those_of_the_confusions_and_may_be_lost() -> None:
    torch.manual_seed(0)
    text = [1, 3, 5, 7] * 200
    _, posteriors = simulate(pad_tokens([text]), torch.tensor([len(text)]), sure(), wrong=0.2)
    said = posteriors[0].argmax(-1).tolist()  # there is just room for a frame each
    other = [(a, b) for a, b in zip(text, said, strict=True) if a != b]
    assert 0.15 < len(other) / len(text) < 0.25
    assert set(other) == {(1, 2), (3, 4), (5, 6), (7, 0)}


def test_the_same_seed_gives_the_same_and_another_draws_anew() -> None:
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(simulate(pad_tokens(TEXTS), torch.tensor(LENGTHS), sure(), wrong=0.3)[0].values)
    assert torch.equal(made[0], made[1])
    assert made[0].shape != made[2].shape or not torch.equal(made[0], made[2])


def test_padding_of_the_texts_has_no_say() -> None:
    """An id of padding may be any class."""
    torch.manual_seed(0)
    _, posteriors = simulate(Padded(torch.tensor([[5, 3, 3]]), torch.tensor([1])), torch.tensor([7]), sure())
    assert collapsed(posteriors[0].argmax(-1).tolist()) == [5]


def test_a_batch_without_a_class_is_blank() -> None:
    _, posteriors = simulate(pad_tokens([[], []]), torch.tensor([3, 2]), sure())
    assert posteriors.argmax(-1).tolist() == [[0, 0, 0], [0, 0, 0]]


def real_utterances() -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[int], int]:
    """Utterances of known classes and lengths: a class has 0.9 of the probability, the next 0.08, all others alike."""
    generator = torch.Generator().manual_seed(3)
    utterances, lasting, blanks = [], [], 0
    for _ in range(60):
        text = torch.randint(1, CLASSES - 1, (4,), generator=generator)  # the last class is in no text
        path: list[int] = []
        for each in text.tolist():
            before, held = torch.randint(1, 4, (2,), generator=generator).tolist()
            path += [0] * before + [each] * held
            lasting.append(held)
            blanks += before
        posteriors = torch.full((len(path), CLASSES), 0.02 / (CLASSES - 2))
        posteriors[range(len(path)), path] = 0.9
        posteriors[range(len(path)), [(each + 1) % CLASSES for each in path]] = 0.08
        noise = 0.1 * torch.randn(len(path), DIM, generator=generator)
        utterances.append((posteriors @ frame_of_each_class() + noise, posteriors.log() + 3, text))
    return utterances, lasting, blanks


def test_lengths_peaks_and_confusions_are_measured() -> None:
    utterances, lasting, blanks = real_utterances()
    too_short = (torch.randn(3, DIM), torch.zeros(3, CLASSES), torch.tensor([2, 2, 3]))
    silent = (torch.randn(3, DIM), torch.zeros(3, CLASSES), torch.tensor([], dtype=torch.long))
    real = measure([too_short, *utterances, silent])
    assert real is not None
    assert real.held.tolist() == lasting
    assert real.frames == (sum(lasting), blanks)
    for kind in (real.tokens, real.blanks):
        torch.testing.assert_close(kind.peak, torch.full_like(kind.peak, 0.9))
    left = torch.cat([logits.softmax(-1) for _, logits, _ in utterances])
    own = left.argmax(-1)
    left[range(len(left)), own] = 0
    for each in range(CLASSES):  # the last is of no frame: what all classes leave stands for it
        expected = left[own == each].sum(0) + left.mean(0)
        expected[each] = 0
        torch.testing.assert_close(real.confusions[each], expected / expected.sum(), rtol=1e-4, atol=1e-6)


def test_the_frame_of_a_class_is_the_mean_weighted_by_its_probability() -> None:
    utterances, _, _ = real_utterances()
    real = measure(utterances)
    assert real is not None
    frames = torch.cat([each for each, _, _ in utterances])
    posteriors = torch.cat([logits.softmax(-1) for _, logits, _ in utterances])
    for each in range(CLASSES):
        weights = posteriors[:, each].double().numpy()
        mean = sum(weight * frame.double() for weight, frame in zip(weights, frames, strict=True)) / weights.sum()
        torch.testing.assert_close(real.means[each].double(), mean, rtol=1e-4, atol=1e-5)


def test_a_real_frame_is_what_its_posterior_says_and_the_rest() -> None:
    utterances, _, _ = real_utterances()
    real = measure(utterances)
    assert real is not None
    frames = torch.cat([each for each, _, _ in utterances])
    posteriors = torch.cat([logits.softmax(-1) for _, logits, _ in utterances])
    said = posteriors.argmax(-1) != 0
    for kind, which in ((real.tokens, said), (real.blanks, ~said)):
        torch.testing.assert_close(posteriors[which] @ real.means + kind.rest, frames[which])


def test_nothing_can_be_measured_where_no_utterance_can_be_aligned() -> None:
    assert measure([]) is None
    assert measure([(torch.randn(1, DIM), torch.zeros(1, CLASSES), torch.tensor([1, 2]))]) is None
    no_blank = torch.full((1, CLASSES), -9.0)
    no_blank[0, 3] = 9.0
    assert measure([(torch.randn(1, DIM), no_blank, torch.tensor([3]))]) is None

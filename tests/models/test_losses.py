"""Losses against enumeration and loops."""

import itertools
import math

import pytest
import torch

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import IGNORED
from speechllm_pl.models.losses import ctc_loss, next_token_loss


def likelihood(probabilities: torch.Tensor, target: list[int]) -> float:
    """Likelihood of a CTC target: the sum over all paths of T classes that collapse to it."""
    frames, classes = probabilities.shape
    total = 0.0
    for path in itertools.product(range(classes), repeat=frames):
        merged = [label for label, _ in itertools.groupby(path)]
        if [label for label in merged if label != 0] == target:
            total += math.prod(probabilities[t, label].item() for t, label in enumerate(path))
    return total


def test_ctc_is_the_sum_over_all_paths() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 3)
    frames, targets = [5, 3, 4, 5], [[1, 2], [2], [1, 1], []]
    ids = torch.tensor([row + [0] * (2 - len(row)) for row in targets])
    term = ctc_loss(Padded(logits, torch.tensor(frames)), Padded(ids, torch.tensor([2, 1, 2, 0])))
    expected = sum(
        -math.log(likelihood(logits[row, :count].softmax(-1), target))
        for row, (count, target) in enumerate(zip(frames, targets, strict=True))
    )
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert term.count.item() == 5


def test_a_transcript_that_cannot_fit_adds_nothing_and_has_no_gradient() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    term = ctc_loss(Padded(logits, torch.tensor([2])), Padded(torch.tensor([[1, 1]]), torch.tensor([2])))
    term.total.backward()
    assert term.total.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_padding_frames_do_not_change_the_ctc_loss() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(1, 6, 4), Padded(torch.tensor([[1, 3]]), torch.tensor([2]))
    alone = ctc_loss(Padded(logits[:, :4], torch.tensor([4])), targets)
    padded = ctc_loss(Padded(logits, torch.tensor([4])), targets)
    torch.testing.assert_close(alone.total, padded.total)


def test_next_token_loss_is_the_sum_over_labels_that_count() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[4, 2, IGNORED], [0, IGNORED, IGNORED]])
    expected, count = 0.0, 0
    for row in range(2):
        for column in range(3):
            label = labels[row, column].item()
            if label != IGNORED:
                scores = [math.exp(score) for score in logits[row, column].tolist()]
                expected -= math.log(scores[label] / sum(scores))
                count += 1
    term = next_token_loss(logits, labels)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert term.count.item() == count == 3


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    logits = torch.randn(3, 50, 20).bfloat16()
    labels = torch.randint(0, 20, (3, 50))
    assert next_token_loss(logits, labels).total.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets = Padded(labels[:, :5].clamp(min=1), torch.tensor([5, 5, 5]))
        assert ctc_loss(Padded(logits, torch.tensor([50, 50, 50])), targets).total.dtype == torch.float32

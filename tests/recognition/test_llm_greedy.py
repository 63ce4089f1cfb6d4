"""Greedy search over a scorer that is a table of random numbers, against a loop that looks at one row at a time."""

import math

import pytest
import torch
from torch import Tensor

from speechllm_pl.recognition.llm_greedy import greedy
from speechllm_pl.recognition.text_end import TextEnds

EOS, PAD, SIZE = 2, 0, 6


class Table:
    """Scores what follows by the last two tokens of each row; remembers what it was given.

    Args:
        rows: of the batch.
        bad: logits that are spoilt: by the number of the step, row, token and value.
    """

    def __init__(self, rows: int, seed: int, bad: dict[int, tuple[int, int, float]] | None = None):
        self.logits = torch.randn(rows, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        self.logits[..., EOS] += 0.5
        self.bad = bad or {}
        self.given: list[Tensor | None] = []

    def after(self, row: int, written: list[int]) -> Tensor:
        before, last = [0, 0, *written][-2:]
        return self.logits[row, before, last]

    def __call__(self, tokens: Tensor | None) -> Tensor:
        step = len(self.given)
        self.given.append(tokens)
        written = torch.stack([t for t in self.given if t is not None], 1).tolist() if step else [[]] * len(self.logits)
        logits = torch.stack([self.after(row, before) for row, before in enumerate(written)])
        if step in self.bad:
            row, token, value = self.bad[step]
            logits[row, token] = value
        return logits


def by_itself(table: Table, row: int, cap: int) -> tuple[list[int], float]:
    """The likeliest token after every token of one row, and the log probability of all of them."""
    ids: list[int] = []
    total = 0.0
    while len(ids) < cap and EOS not in ids:
        logits = table.after(row, ids).tolist()
        ids.append(max(range(SIZE), key=logits.__getitem__))
        total += logits[ids[-1]] - math.log(sum(map(math.exp, logits)))
    return ids, total


@pytest.mark.parametrize("seed", range(20))
def test_each_row_has_what_a_loop_over_it_alone_finds(seed: int) -> None:
    caps = [0, 1, 3, 7, 12, 5]
    table, ends = Table(len(caps), seed), TextEnds(torch.tensor(caps), EOS)
    found = greedy(table, ends, PAD)
    for row, cap in enumerate(caps):
        ids, log_probability = by_itself(table, row, cap)
        assert found.tokens[row, : ends.lengths[row]].tolist() == ids
        assert found.log_probabilities[row].item() == pytest.approx(log_probability, abs=1e-5)
        assert bool(ends.complete[row]) == (EOS in ids)
        assert set(found.tokens[row, len(ids) :].tolist()) <= {PAD} or cap == 0
    assert found.tokens.shape[1] == max(1, *ends.lengths.tolist())


def test_it_goes_on_until_the_others_have_ended() -> None:
    """A batch that has ended is fed padding until all batches have, and nothing of it changes."""
    caps, told = torch.tensor([2, 3]), []

    def all_ended(ended: bool) -> bool:
        told.append(ended)
        return len(told) == 6

    table, alone = Table(2, seed=1), TextEnds(caps, EOS)
    expected = greedy(Table(2, seed=1), alone, PAD)
    ends = TextEnds(caps, EOS)
    found = greedy(table, ends, PAD, all_ended)
    assert told == [False] * (int(alone.lengths.max()) - 1) + [True] * (7 - int(alone.lengths.max()))
    assert len(table.given) == 6
    assert ends.lengths.tolist() == alone.lengths.tolist()
    assert torch.equal(found.log_probabilities, expected.log_probabilities)
    assert table.given[-1] is not None
    assert table.given[-1].tolist() == [PAD, PAD]


@pytest.mark.parametrize(
    ("bad", "finite"),
    [
        ({1: (0, 3, torch.nan)}, [False, True]),
        ({1: (1, 3, torch.inf)}, [True, False]),
        ({0: (1, 4, -torch.inf)}, [True, True]),  # a token that cannot be
        ({4: (0, 3, torch.nan)}, [True, True]),  # after its end
    ],
)
def test_what_was_chosen_from_logits_that_are_not_finite_has_no_finite_score(bad: dict, finite: list[bool]) -> None:
    table = Table(2, seed=0, bad=bad)
    table.logits[..., EOS] -= 100
    found = greedy(table, TextEnds(torch.tensor([4, 6]), EOS), PAD)
    assert found.log_probabilities.isfinite().tolist() == finite

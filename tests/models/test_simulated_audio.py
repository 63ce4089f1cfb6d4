"""Simulated audio embeddings say what their text says, look like real ones, and are drawn from the seed alone."""

from itertools import groupby, product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.models.simulated_audio import RealFrames, best_path, measure, simulate

TEXTS = [[3, 5, 5, 2], [7], [], [1, 2, 3, 4, 5, 6, 7, 8, 9], [4, 4, 4]]
LENGTHS = [20, 1, 6, 9, 2]  # the last is too short for three equal tokens, which need blanks between


def table_and_blank() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(11, 16, generator=generator), dim=-1)
    return 3 * rows[:10], rows[10]  # as far from each other as random directions are


def clean_frames() -> RealFrames:
    _, blank = table_and_blank()
    return RealFrames(torch.tensor([2.0]), torch.zeros(1, 16), 5 * blank[None], torch.tensor([1, 2, 3]))


def nearest(frames: Tensor) -> list[int]:
    """Token of each frame, 10 for the blank."""
    table, blank = table_and_blank()
    return (F.normalize(frames, dim=-1) @ F.normalize(torch.cat([table, blank[None]]), dim=-1).T).argmax(-1).tolist()


def collapsed(classes: list[int]) -> list[int]:
    """CTC's rule, one class at a time."""
    return [each for each, _ in groupby(classes) if each != 10]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_path_through_them_is_the_text(seed: int) -> None:
    torch.manual_seed(seed)
    table, _ = table_and_blank()
    made = simulate(pad_tokens(TEXTS), torch.tensor(LENGTHS), table, clean_frames())
    assert made.lengths.tolist() == [20, 1, 6, 9, 5]
    for row, length, text in zip(made.values, made.lengths, TEXTS, strict=True):
        assert collapsed(nearest(row[:length])) == text
        assert not row[length:].any()


def test_blanks_and_held_tokens_fill_the_given_length_and_differ_between_seeds() -> None:
    table, _ = table_and_blank()
    seen, layouts = set(), set()
    for seed in range(200):
        torch.manual_seed(seed)
        made = simulate(pad_tokens([[3, 6]]), torch.tensor([8]), table, clean_frames())
        classes = nearest(made.values[0])
        layouts.add(tuple(classes))
        seen |= {("before", classes[0] == 10), ("after", classes[-1] == 10), ("held", classes.count(3))}
    assert {("held", 1), ("held", 2), ("held", 3), ("before", True), ("before", False), ("after", True)} <= seen
    assert ("after", False) in seen
    assert len(layouts) > 20


def test_the_same_seed_gives_the_same_and_another_draws_anew() -> None:
    table, _ = table_and_blank()
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(simulate(pad_tokens(TEXTS), torch.tensor(LENGTHS), table, clean_frames(), wrong=0.3).values)
    assert torch.equal(made[0], made[1])
    assert made[0].shape != made[2].shape or not torch.equal(made[0], made[2])


def test_a_share_of_the_tokens_is_wrong() -> None:
    table, _ = table_and_blank()
    text = list(range(10)) * 50
    torch.manual_seed(0)
    made = simulate(pad_tokens([text]), torch.tensor([len(text)]), table, clean_frames(), wrong=0.2)
    said = nearest(made.values[0])  # there is just room for a frame each
    assert 0.12 < sum(a != b for a, b in zip(said, text, strict=True)) / len(text) < 0.24


def test_the_best_path_is_that_of_all_paths() -> None:
    """Compared with every assignment of frames to places that CTC allows."""
    table, blank = table_and_blank()
    generator = torch.Generator().manual_seed(0)
    audio, text = torch.randn(6, 16, generator=generator), torch.tensor([2, 4, 7])
    classes = F.normalize(torch.cat([blank[None], table[text]]), dim=-1)
    scores = (20 * F.normalize(audio, dim=-1) @ classes.T).log_softmax(-1)

    every = [
        path
        for path in product((-1, 0, 1, 2), repeat=6)
        if [each for each, _ in groupby(path) if each >= 0] == [0, 1, 2]
    ]
    best = max(every, key=lambda path: sum(scores[t, place + 1].item() for t, place in enumerate(path)))
    assert best_path(audio, text, table, blank).tolist() == list(best)


def test_what_is_measured_is_put_together_again() -> None:
    """Real frames are known here: their directions, lengths, noise and how long tokens last."""
    table, blank = table_and_blank()
    generator = torch.Generator().manual_seed(3)
    utterances, lasting, number_of_blanks = [], [], 0
    for _ in range(30):
        text = torch.randint(0, 10, (4,), generator=generator)
        frames = []
        for token in text:
            blanks = int(torch.randint(1, 3, (1,), generator=generator))
            held = int(torch.randint(1, 4, (1,), generator=generator))
            lasting.append(held)
            number_of_blanks += blanks
            frames += [4 * blank] * blanks + [7 * F.normalize(table[token], dim=0)] * held
        noise = 0.1 * torch.randn(len(frames), 16, generator=generator)
        utterances.append((torch.stack(frames) + noise, text))
    utterances += [(torch.randn(2, 16), torch.tensor([1, 2, 3])), (torch.randn(2, 16), torch.tensor([]).long())]
    real = measure(utterances, table, blank)
    assert real is not None
    assert real.held.tolist() == lasting
    assert len(real.blanks) == number_of_blanks
    assert len(real.along) == len(real.across) == sum(lasting)
    torch.testing.assert_close(real.along.mean(), torch.tensor(7.0), atol=0.05, rtol=0)
    torch.testing.assert_close(real.along.std(), torch.tensor(0.1), atol=0.03, rtol=0)
    torch.testing.assert_close(real.across.square().mean().sqrt(), torch.tensor(0.1), atol=0.02, rtol=0)
    torch.testing.assert_close(real.blanks.mean(0), 4 * blank, atol=0.1, rtol=0)


def test_nothing_can_be_measured_where_no_utterance_can_be_aligned() -> None:
    table, blank = table_and_blank()
    assert measure([], table, blank) is None
    assert measure([(torch.randn(1, 16), torch.tensor([1, 2]))], table, blank) is None


def test_padding_of_the_texts_has_no_say() -> None:
    """An id of padding is 0, which is a token too."""
    table, _ = table_and_blank()
    torch.manual_seed(0)
    made = simulate(Padded(torch.tensor([[5, 0, 0]]), torch.tensor([1])), torch.tensor([7]), table, clean_frames())
    assert collapsed(nearest(made.values[0])) == [5]

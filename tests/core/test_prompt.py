"""The layout [pad][instruction][audio][BOS][text][EOS][pad] against a loop over rows."""

import pytest
import torch
from torch import Tensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import (
    IGNORED,
    Columns,
    Prompt,
    assemble,
    mask_tokens,
    next_token_labels,
    pad_tokens,
)

DIM, EOS = 4, 99
CASES = {
    "no instruction": ([0, 0, 0], [5, 2, 7], [3, 6, 1]),
    "instructions of other lengths": ([2, 0, 3], [1, 4, 2], [2, 5, 3]),
    "an empty text": ([1, 1], [3, 2], [0, 4]),
    "nothing but empty texts": ([0, 0], [3, 2], [0, 0]),
    "one row": ([2], [3], [4]),
    "audio that is all of the same length": ([0, 0], [4, 4], [2, 2]),
}


def padded_noise(lengths: list[int], generator: torch.Generator) -> Tensor:
    """`(B, max, DIM)` embeddings; what stands in the padding is noise too, and must not come through."""
    return torch.randn(len(lengths), max(lengths), DIM, generator=generator)


def layout(case: str) -> tuple[Columns, list[dict]]:
    """`assemble` on a case, and what a loop makes of each row."""
    generator = torch.Generator().manual_seed(3)
    instruction_lengths, audio_lengths, text_lengths = CASES[case]
    instruction = padded_noise(instruction_lengths, generator)
    audio = padded_noise(audio_lengths, generator)
    text = padded_noise(text_lengths, generator)
    ids = torch.randint(1, 50, text.shape[:2], generator=generator)
    bos = torch.randn(DIM, generator=generator)
    columns = assemble(
        Padded(instruction, torch.tensor(instruction_lengths)),
        Padded(audio, torch.tensor(audio_lengths)),
        bos,
        Padded(text, torch.tensor(text_lengths)),
        next_token_labels(Padded(ids, torch.tensor(text_lengths)), EOS),
    )
    before = max(i + a for i, a in zip(instruction_lengths, audio_lengths, strict=True))
    rows = []
    for row, (i, a, n) in enumerate(zip(*CASES[case], strict=True)):
        vectors = [*instruction[row, :i], *audio[row, :a], bos, *text[row, :n]]
        first = before - i - a
        rows.append(
            {
                "first": first,
                "vectors": torch.stack(vectors),
                "labels": [*ids[row, :n].tolist(), EOS] + [IGNORED] * (max(text_lengths) - n),
                "bos_column": before,
            }
        )
    return columns, rows


@pytest.mark.parametrize("case", CASES)
def test_every_row_holds_its_embeddings_in_order_without_gaps(case: str) -> None:
    columns, rows = layout(case)
    for row, expected in enumerate(rows):
        first, vectors = expected["first"], expected["vectors"]
        last = first + len(vectors)
        assert torch.equal(columns.embeddings[row, first:last], vectors)
        real = [first <= column < last for column in range(columns.mask.shape[1])]
        assert columns.mask[row].bool().tolist() == real


@pytest.mark.parametrize("case", CASES)
def test_bos_stands_in_one_column_and_labels_start_there(case: str) -> None:
    columns, rows = layout(case)
    for row, expected in enumerate(rows):
        assert columns.embeddings.shape[1] - columns.labels.shape[1] == expected["bos_column"]
        assert columns.labels[row].tolist() == expected["labels"]


@pytest.mark.parametrize("case", CASES)
def test_positions_count_real_columns_from_zero(case: str) -> None:
    columns, rows = layout(case)
    for row, expected in enumerate(rows):
        first, count = expected["first"], len(expected["vectors"])
        assert columns.positions[row, first : first + count].tolist() == list(range(count))


def test_columns_without_a_text_end_at_bos() -> None:
    bos = torch.full((DIM,), 7.0)
    columns = assemble(
        Padded(torch.zeros(2, 0, DIM), torch.tensor([0, 0])),
        Padded(torch.ones(2, 3, DIM), torch.tensor([3, 1])),
        bos,
        Padded(torch.zeros(2, 0, DIM), torch.tensor([0, 0])),
        next_token_labels(Padded(torch.zeros(2, 0, dtype=torch.long), torch.tensor([0, 0])), EOS),
    )
    assert columns.embeddings.shape == (2, 4, DIM)
    assert torch.equal(columns.embeddings[:, -1], bos.expand(2, DIM))
    assert columns.mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert columns.labels.tolist() == [[EOS], [EOS]]


def test_gradients_reach_the_real_audio_and_no_padding() -> None:
    audio = torch.randn(2, 3, DIM, requires_grad=True)
    columns = assemble(
        Padded(torch.zeros(2, 0, DIM), torch.tensor([0, 0])),
        Padded(audio, torch.tensor([3, 2])),
        torch.zeros(DIM),
        Padded(torch.zeros(2, 1, DIM), torch.tensor([1, 1])),
        next_token_labels(Padded(torch.ones(2, 1, dtype=torch.long), torch.tensor([1, 1])), EOS),
    )
    columns.embeddings.sum().backward()
    assert audio.grad is not None
    assert audio.grad[..., 0].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_labels_of_a_text_that_holds_eos_itself_are_kept() -> None:
    labels = next_token_labels(Padded(torch.tensor([[EOS, 4, 0]]), torch.tensor([2])), EOS)
    assert labels.tolist() == [[EOS, 4, EOS, IGNORED]]


@pytest.mark.parametrize("fraction", [0.125, 0.25, 0.5])
def test_about_the_given_fraction_of_tokens_is_masked(fraction: float) -> None:
    ids = torch.arange(10, 10 + 40_000).reshape(200, 200)
    masked = mask_tokens(ids, fraction, unk_id=3, generator=torch.Generator().manual_seed(0))
    replaced = masked == 3
    assert torch.equal(masked[~replaced], ids[~replaced])
    deviations = (replaced.float().mean().item() - fraction) / (fraction * (1 - fraction) / 40_000) ** 0.5
    assert abs(deviations) < 4


def test_without_masking_no_token_changes() -> None:
    ids = torch.arange(12).reshape(3, 4)
    assert torch.equal(mask_tokens(ids, 0.0, unk_id=3), ids)


def test_token_lists_are_padded_on_the_right() -> None:
    ids, lengths = pad_tokens([[5, 6, 7], [], [8]])
    assert ids.tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]
    assert lengths.tolist() == [3, 0, 1]


def test_empty_token_lists_give_no_columns() -> None:
    ids, lengths = pad_tokens([[], []])
    assert ids.shape == (2, 0)
    assert lengths.tolist() == [0, 0]


def test_an_instruction_may_name_the_language_and_nothing_else() -> None:
    assert Prompt("Write {language}: ").before_audio("pl") == "Write pl: "
    assert Prompt().before_audio("pl") == ""
    with pytest.raises(UserError, match="speaker"):
        Prompt("Write what {speaker} says")

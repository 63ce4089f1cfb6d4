import pytest
import torch

from speechllm_pl.core.masks import halved, length_mask, stacked


def test_a_mask_is_true_exactly_at_the_real_positions() -> None:
    lengths = [3, 0, 5, 1]
    expected = [[column < length for column in range(5)] for length in lengths]
    assert length_mask(torch.tensor(lengths), 5).tolist() == expected


def test_halved_is_the_output_length_of_a_convolution_of_stride_two() -> None:
    convolution = torch.nn.Conv1d(1, 1, kernel_size=3, stride=2, padding=1)
    for length in range(1, 40):
        assert halved(torch.tensor(length)).item() == convolution(torch.zeros(1, 1, length)).shape[2]


@pytest.mark.parametrize("stride", [1, 2, 3, 6, 12])
def test_stacked_counts_an_incomplete_stack(stride: int) -> None:
    for length in range(30):
        groups = [range(length)[start : start + stride] for start in range(0, length, stride)]
        assert stacked(torch.tensor(length), stride).item() == len(groups)

import pytest
import torch
from torch import nn

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.encoders.conformer import Conformer, ConformerConfig, FrontEnd, Rotary, rotate

LENGTHS = [160, 1, 7, 8, 9, 77, 120, 33]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def encoder() -> Conformer:
    torch.manual_seed(0)
    return Conformer(ConformerConfig(dim=64, num_blocks=3, num_heads=4, ffn_dim=128)).eval()


@pytest.mark.parametrize(("blocks", "millions"), [(18, 71.1), (24, 94.8), (36, 142.2)])
def test_blocks_of_the_papers_sizes_have_its_parameter_counts(blocks: int, millions: float) -> None:
    """The figures are those of blocks without relative-position weights and before the front end."""
    with torch.device("meta"):
        encoder = Conformer(ConformerConfig(num_blocks=blocks))
    assert parameters(encoder.blocks) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(("blocks", "millions"), [(18, 72), (24, 96), (36, 142)])
def test_whole_encoders_are_near_the_papers_round_figures(blocks: int, millions: float) -> None:
    with torch.device("meta"):
        encoder = Conformer(ConformerConfig(num_blocks=blocks))
    assert parameters(encoder) / 1e6 == pytest.approx(millions, rel=0.03)


def test_the_tiny_encoder_has_about_two_million_parameters() -> None:
    with torch.device("meta"):
        encoder = Conformer(ConformerConfig(dim=128, num_blocks=8, num_heads=4, ffn_dim=512))
    assert 1.6e6 < parameters(encoder) < 2.4e6


def test_a_batch_gives_what_its_utterances_give_alone(encoder: Conformer) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(LENGTHS), max(LENGTHS), 80, generator=generator)
    for row, length in enumerate(LENGTHS):
        features[row, length:] = 0
    together, frames = encoder(Padded(features, torch.tensor(LENGTHS)))
    for row, length in enumerate(LENGTHS):
        alone, alone_frames = encoder(Padded(features[row : row + 1, :length], torch.tensor([length])))
        count = int(alone_frames[0])
        assert frames[row] == count == alone.shape[1]
        torch.testing.assert_close(together[row, :count], alone[0], atol=1e-4, rtol=0)
        assert not together[row, count:].any()


def test_the_last_frame_depends_on_the_first_sample(encoder: Conformer) -> None:
    features = torch.randn(1, 160, 80, requires_grad=True)
    output, _ = encoder(Padded(features, torch.tensor([160])))
    output[0, -1, 0].backward()
    assert features.grad is not None
    assert features.grad[0, 0].abs().max() > 0


def test_output_lengths_are_those_of_the_convolutions() -> None:
    front_end = FrontEnd(num_bins=4, dim=2, dropout=0.0)
    for length in range(1, 70):
        output, frames = front_end(Padded(torch.randn(1, length, 4), torch.tensor([length])))
        expected = Conformer.output_lengths(torch.tensor([length]))
        assert output.shape[1] == frames.item() == expected.item()


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    head_dim, length = 8, 11
    x = torch.randn(2, 3, length, head_dim)
    turned = rotate(x, Rotary(head_dim)(length, torch.device("cpu")))
    as_complex = torch.complex(x[..., : head_dim // 2], x[..., head_dim // 2 :])
    speeds = torch.tensor([10_000 ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    angles = torch.arange(length)[:, None] * speeds
    expected = as_complex * torch.exp(1j * angles)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1))


def test_attention_scores_depend_on_distances_only() -> None:
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    rotation = Rotary(16)(30, torch.device("cpu"))
    queries = rotate(query.expand(-1, -1, 30, -1), rotation)[0, 0]
    keys = rotate(key.expand(-1, -1, 30, -1), rotation)[0, 0]
    scores = queries @ keys.T
    for distance in (-7, 0, 4):
        along = scores.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-4, rtol=1e-4)


def test_impossible_sizes_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="dim 100"):
        ConformerConfig(dim=100, num_heads=8)
    with pytest.raises(UserError, match="kernel_size 10"):
        ConformerConfig(kernel_size=10)

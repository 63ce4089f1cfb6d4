"""What every bridge keeps to."""

from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from speechllm_pl.core.padded import Padded
from speechllm_pl.models import bridges
from speechllm_pl.models.bridges.protocol import BridgeConfig

DIM, LLM_DIM, CLASSES = 12, 20, 7
SMALL: dict[str, BridgeConfig] = {"ProjectorConfig": bridges.ProjectorConfig(stride=3)}


def test_every_bridge_is_tested() -> None:
    assert set(SMALL) == set(bridges.__all__)


@pytest.fixture(params=SMALL)
def described(request: pytest.FixtureRequest) -> BridgeConfig:
    return SMALL[request.param]


def inputs(lengths: list[int]) -> tuple[Padded, torch.Tensor]:
    """Frames, zero beyond their lengths as an encoder gives them, and CTC logits."""
    torch.manual_seed(len(lengths))
    real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    frames = torch.randn(len(lengths), max(lengths), DIM) * real[..., None]
    return Padded(frames, torch.tensor(lengths)), torch.randn(len(lengths), max(lengths), CLASSES)


def test_its_description_is_frozen_plain_and_of_plain_values(described: BridgeConfig) -> None:
    values: dict[str, Any] = vars(described)
    assert values.keys() <= get_type_hints(type(described)).keys()
    assert all(isinstance(value, str | int | float | bool) for value in values.values())
    assert hash(described) == hash(type(described)(**values))


def test_the_number_of_embeddings_is_known_without_the_module(described: BridgeConfig) -> None:
    frames, logits = inputs([1, 2, 3, 4, 11, 12, 13, 40])
    embeddings, counts = described.build(DIM, LLM_DIM)(frames, logits)
    assert embeddings.shape == (8, int(counts.max()), LLM_DIM)
    assert (counts <= described.embedding_lengths(frames.lengths)).all()
    assert (counts >= 1).all()


def test_padding_never_leaks(described: BridgeConfig) -> None:
    bridge = described.build(DIM, LLM_DIM).eval()
    (frames, lengths), logits = inputs([11, 4, 25])
    together, counts = bridge(Padded(frames, lengths), logits)
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        alone_frames = Padded(frames[row : row + 1, :length], lengths[row : row + 1])
        alone, own = bridge(alone_frames, logits[row : row + 1, :length])
        assert own.tolist() == [count]
        torch.testing.assert_close(together[row, :count], alone[0, :count])


def test_its_step_and_its_gradients_are_there(described: BridgeConfig) -> None:
    bridge = described.build(DIM, LLM_DIM)
    assert bridge.stride >= 1
    bridge(*inputs([9, 5]))[0].sum().backward()
    parameters: list[nn.Parameter] = list(bridge.parameters())
    assert parameters
    assert all(parameter.grad is not None for parameter in parameters)

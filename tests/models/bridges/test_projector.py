import pytest
import torch

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.bridges.projector import Projector, ProjectorConfig


@pytest.mark.parametrize("stride", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("length", [1, 6, 12, 13])
def test_every_stack_is_projected_as_one_vector(stride: int, length: int) -> None:
    torch.manual_seed(0)
    projector = Projector(4, 5, stride)
    frames = torch.randn(1, length, 4)
    embeddings, lengths = projector(Padded(frames, torch.tensor([length])))
    weight, bias = projector.linear.weight, projector.linear.bias
    for number, start in enumerate(range(0, length, stride)):
        vector = [value for frame in frames[0, start : start + stride].tolist() for value in frame]
        vector += [0.0] * (4 * stride - len(vector))
        torch.testing.assert_close(embeddings[0, number], weight @ torch.tensor(vector) + bias)
    assert lengths.item() == embeddings.shape[1] == -(-length // stride)


def test_no_frame_of_a_shorter_utterance_is_lost_in_a_batch() -> None:
    torch.manual_seed(0)
    projector, frames = Projector(4, 5, 3), torch.randn(2, 11, 4)
    frames[1, 4:] = 0
    together, lengths = projector(Padded(frames, torch.tensor([11, 4])))
    alone, _ = projector(Padded(frames[1:, :4], torch.tensor([4])))
    assert lengths.tolist() == [4, 2]
    torch.testing.assert_close(together[1, :2], alone[0])


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="stride 0"):
        ProjectorConfig(0)

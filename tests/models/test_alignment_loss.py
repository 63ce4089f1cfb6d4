import numpy as np
import pytest
import scipy.spatial.distance
import torch

from speechllm_pl.models.alignment import DirectAlignment, cosine_similarities
from speechllm_pl.models.losses import Tokens


def test_similarities_are_one_minus_scipys_cosine_distance() -> None:
    rng = np.random.default_rng(0)
    audio, text = rng.standard_normal((5, 7)), rng.standard_normal((3, 7))
    expected = 1 - scipy.spatial.distance.cdist(audio, text, "cosine")
    found = cosine_similarities(torch.tensor(audio), torch.tensor(text))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_loss_is_ctc_over_blank_and_embeddings() -> None:
    """Two frames and one token: the paths are (t, t), (blank, t) and (t, blank)."""
    torch.manual_seed(0)
    embeddings, audio = torch.randn(4, 6), torch.randn(1, 2, 6)
    alignment = DirectAlignment(6, temperature=0.1)
    term = alignment(audio, torch.tensor([2]), Tokens(torch.tensor([[2]]), torch.tensor([1])), embeddings)
    classes = torch.cat([alignment.blank.detach()[None], embeddings]).numpy()
    scores = (1 - scipy.spatial.distance.cdist(audio[0].numpy(), classes, "cosine")) / 0.1
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    blank, token = chances[:, 0], chances[:, 3]
    likelihood = token[0] * token[1] + blank[0] * token[1] + token[0] * blank[1]
    assert term.total.item() == pytest.approx(-np.log(likelihood), rel=1e-4)
    assert term.count.item() == 1


def test_embeddings_that_spell_the_text_cost_less_than_any_other_order() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(5, 16)
    alignment = DirectAlignment(16)
    text = Tokens(torch.tensor([[1, 3, 4]]), torch.tensor([3]))

    def loss(frames: list[torch.Tensor]) -> float:
        return alignment(torch.stack(frames)[None], torch.tensor([len(frames)]), text, embeddings).total.item()

    blank = alignment.blank.detach()
    spelled = loss([embeddings[1], blank, embeddings[3], embeddings[3], embeddings[4]])
    assert spelled < 0.1
    assert loss([embeddings[4], blank, embeddings[3], embeddings[3], embeddings[1]]) > spelled + 1


def test_the_llm_gets_no_gradient_and_the_blank_does() -> None:
    embeddings = torch.randn(5, 8, requires_grad=True)
    audio = torch.randn(2, 4, 8, requires_grad=True)
    alignment = DirectAlignment(8)
    text = Tokens(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1]))
    alignment(audio, torch.tensor([4, 3]), text, embeddings).total.backward()
    assert embeddings.grad is None
    assert alignment.blank.grad is not None
    assert alignment.blank.grad.any()
    assert audio.grad is not None
    assert audio.grad[0].any()
    assert not audio.grad[1, 3].any()  # padding


def test_the_blank_starts_where_it_is_told_and_is_a_copy() -> None:
    table = torch.randn(3, 8)
    alignment = DirectAlignment(8, blank=table[1])
    assert torch.equal(alignment.blank.detach(), table[1])
    with torch.no_grad():
        alignment.blank.add_(1)
    assert not torch.equal(alignment.blank.detach(), table[1])

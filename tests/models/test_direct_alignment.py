from collections.abc import Callable

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.models.direct_alignment import DirectAlignment, cosine_similarities


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
    text = Padded(torch.tensor([[2]]), torch.tensor([1]))
    term = alignment(Padded(audio, torch.tensor([2])), text, embeddings)
    classes = torch.cat([alignment.blank.detach()[None], embeddings]).numpy()
    scores = (1 - scipy.spatial.distance.cdist(audio[0].numpy(), classes, "cosine")) / 0.1
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    blank, token = chances[:, 0], chances[:, 3]
    likelihood = token[0] * token[1] + blank[0] * token[1] + token[0] * blank[1]
    assert term.total.item() == pytest.approx(-np.log(likelihood), rel=1e-4)
    assert term.count.item() == 1


def over_the_whole_vocabulary(alignment: DirectAlignment, audio: Tensor, lengths: Tensor, text: Padded, table: Tensor):
    """The same, with a class for every token: for small vocabularies."""
    classes = torch.cat([alignment.blank[None], table])
    scores = F.cosine_similarity(audio[:, :, None], classes, dim=-1) / alignment.temperature
    log_probs = scores.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_probs, text.values + 1, lengths, text.lengths, reduction="sum", zero_infinity=True)


@pytest.mark.parametrize("part", [1, 7, 50, 8192])
def test_loss_and_gradients_are_those_over_the_whole_vocabulary(part: int) -> None:
    """The batch has tokens that come again, apart and in a row, texts of all lengths, and one without frames."""
    torch.manual_seed(0)
    texts = [[3, 3, 8, 0, 49], [49], [5, 6, 5, 6, 5, 5], [], [1, 2, 3, 4, 5, 6], [0]]
    text = pad_tokens(texts)
    lengths = torch.tensor([9, 4, 12, 5, 3, 7])
    table = torch.randn(50, 16)
    table[10] = 0  # LLaMA's padding token
    alignment = DirectAlignment(16, temperature=0.3, part=part)
    gradients, losses = [], []
    for loss in (
        lambda audio: alignment(Padded(audio, lengths), text, table).total,
        lambda audio: over_the_whole_vocabulary(alignment, audio, lengths, text, table),
    ):
        torch.manual_seed(1)
        audio = torch.randn(6, 12, 16, requires_grad=True)
        alignment.zero_grad()
        losses.append(loss(audio))
        losses[-1].backward()
        gradients.append((audio.grad, alignment.blank.grad))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def losses_and_gradients(*losses: Callable[[Tensor], Tensor], alignment: DirectAlignment, audio: Tensor):
    """Each loss of the audio, and its gradients by audio and blank."""
    found = []
    for loss in losses:
        leaf = audio.clone().requires_grad_()
        alignment.zero_grad()
        total = loss(leaf)
        total.backward()
        found.append((total.detach(), leaf.grad, alignment.blank.grad))
    return found


TEXTS = [[3, 3, 8, 0, 49], [49], [5, 6, 5, 6, 5, 5], [], [9, 10, 11, 12, 13, 14]]  # in the last nothing comes again
IN_BATCH = [0, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14, 49]


def with_draws(monkeypatch: pytest.MonkeyPatch, order: list[int]) -> None:
    """Have the tokens drawn in this order."""
    monkeypatch.setattr(torch, "randperm", lambda size, device=None: torch.tensor(order, device=device))


def test_with_all_others_drawn_the_loss_is_that_over_the_whole_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    text, lengths, table = pad_tokens(TEXTS), torch.tensor([9, 4, 12, 5, 8]), torch.randn(50, 16)
    others = [token for token in range(50) if token not in IN_BATCH]
    alignment = DirectAlignment(16, temperature=0.3, sampled=len(others))
    with_draws(monkeypatch, [*reversed(others), *IN_BATCH])
    sampled, whole = losses_and_gradients(
        lambda audio: alignment(Padded(audio, lengths), text, table).total,
        lambda audio: over_the_whole_vocabulary(alignment, audio, lengths, text, table),
        alignment=alignment,
        audio=torch.randn(5, 12, 16),
    )
    torch.testing.assert_close(sampled, whole, rtol=1e-4, atol=1e-5)


def test_drawn_tokens_stand_for_all_others_and_those_of_the_batch_for_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five tokens are drawn, and two of them are in the batch: three stand for 38."""
    torch.manual_seed(0)
    text, lengths, table = pad_tokens(TEXTS), torch.tensor([9, 4, 12, 5, 8]), torch.randn(50, 16)
    alignment = DirectAlignment(16, temperature=0.3, sampled=5)
    with_draws(monkeypatch, [7, 49, 20, 3, 41, *(token for token in range(50) if token not in (7, 49, 20, 3, 41))])

    def by_hand(audio: Tensor) -> Tensor:
        classes = torch.cat([alignment.blank[None], table])
        scores = F.cosine_similarity(audio[:, :, None], classes, dim=-1) / alignment.temperature
        rest = (38 / 3 * scores[..., [8, 21, 42]].exp().sum(-1, keepdim=True)).log()
        of_batch = scores[..., [0, *(1 + token for token in IN_BATCH)]]
        log_probs = torch.cat([of_batch, rest], dim=-1).log_softmax(-1).transpose(0, 1)
        targets = torch.tensor([[1 + IN_BATCH.index(token) for token in row] for row in text.values.tolist()])
        return F.ctc_loss(log_probs, targets, lengths, text.lengths, reduction="sum", zero_infinity=True)

    sampled, expected = losses_and_gradients(
        lambda audio: alignment(Padded(audio, lengths), text, table).total,
        by_hand,
        alignment=alignment,
        audio=torch.randn(5, 12, 16),
    )
    torch.testing.assert_close(sampled, expected, rtol=1e-4, atol=1e-5)


def test_the_sum_over_the_vocabulary_is_estimated_without_bias() -> None:
    """The loss of one frame without text is the logarithm of the sum over that of the blank."""
    torch.manual_seed(0)
    table, audio = torch.randn(200, 8), torch.randn(2, 1, 8)
    text, lengths = pad_tokens([[], [3, 4, 5]]), torch.tensor([1, 0])
    alignment = DirectAlignment(8, temperature=0.5, sampled=20)

    def sum_over_blank() -> float:
        return alignment(Padded(audio, lengths), text, table).total.exp().item()

    with torch.no_grad():
        found = np.array([sum_over_blank() for _ in range(1000)])
        alignment.eval()
        exact = sum_over_blank()
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found))
    assert found.std() / np.sqrt(len(found)) < 0.02 * exact


def test_tokens_are_drawn_by_the_seed_and_only_while_training_on_a_larger_vocabulary() -> None:
    torch.manual_seed(0)
    table, audio = torch.randn(60, 8), Padded(torch.randn(2, 6, 8), torch.tensor([6, 5]))
    text = pad_tokens([[1, 2], [3]])

    def loss(alignment: DirectAlignment, seed: int) -> tuple[float, bool]:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        return alignment(audio, text, table).total.item(), bool((torch.get_rng_state() == before).all())

    blank = torch.randn(8)
    exact = loss(DirectAlignment(8, blank=blank), 1)
    assert exact[1]
    drawing = DirectAlignment(8, blank=blank, sampled=10)
    assert loss(drawing, 1) == loss(drawing, 1)
    assert loss(drawing, 1)[0] != loss(drawing, 2)[0] != exact[0]
    assert loss(drawing.eval(), 1) == exact
    assert loss(DirectAlignment(8, blank=blank, sampled=60), 1) == exact


def test_a_batch_without_text_is_all_blank() -> None:
    torch.manual_seed(0)
    audio, lengths, table = torch.randn(2, 4, 8), torch.tensor([4, 3]), torch.randn(9, 8)
    text = pad_tokens([[], []])
    alignment = DirectAlignment(8)
    expected = over_the_whole_vocabulary(alignment, audio, lengths, text, table)
    torch.testing.assert_close(alignment(Padded(audio, lengths), text, table).total, expected)


def test_no_copy_of_a_large_vocabulary_is_made(profiled_peak: Callable[[Callable], int]) -> None:
    torch.manual_seed(0)
    table = torch.randn(100_000, 64).bfloat16()
    alignment = DirectAlignment(64, part=4096)
    audio, lengths = torch.randn(2, 20, 64, requires_grad=True), torch.tensor([20, 15])
    text = pad_tokens([[5, 99_999, 7], [3]])
    peak = profiled_peak(lambda: alignment(Padded(audio, lengths), text, table).total.backward())
    assert peak < table.numel()  # bytes: a fourth of an fp32 copy, a half of a bf16 one
    assert peak < 40 * 100_000  # and a fourth of one fp32 logit for each frame and token


def test_products_in_bf16_change_the_loss_by_less_than_a_ten_thousandth() -> None:
    torch.manual_seed(0)
    table = torch.randn(5_000, 256).bfloat16()
    ids = torch.randint(0, 5_000, (4, 12))
    audio = table[ids].float().repeat_interleave(3, dim=1) + 2 * torch.randn(4, 36, 256)
    text, lengths = Padded(ids, torch.full((4,), 12)), torch.full((4,), 36)
    alignment = DirectAlignment(256)
    in_bf16, in_fp32 = (alignment(Padded(audio, lengths), text, each).total.item() for each in (table, table.float()))
    assert in_bf16 == pytest.approx(in_fp32, rel=1e-4)


def test_embeddings_that_spell_the_text_cost_less_than_any_other_order() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(5, 16)
    alignment = DirectAlignment(16)
    text = Padded(torch.tensor([[1, 3, 4]]), torch.tensor([3]))

    def loss(frames: list[torch.Tensor]) -> float:
        return alignment(Padded(torch.stack(frames)[None], torch.tensor([len(frames)])), text, embeddings).total.item()

    blank = alignment.blank.detach()
    spelled = loss([embeddings[1], blank, embeddings[3], embeddings[3], embeddings[4]])
    assert spelled < 0.1
    assert loss([embeddings[4], blank, embeddings[3], embeddings[3], embeddings[1]]) > spelled + 1


def test_the_llm_gets_no_gradient_and_the_blank_does() -> None:
    embeddings = torch.randn(5, 8, requires_grad=True)
    audio = torch.randn(2, 4, 8, requires_grad=True)
    alignment = DirectAlignment(8)
    text = Padded(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1]))
    alignment(Padded(audio, torch.tensor([4, 3])), text, embeddings).total.backward()
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

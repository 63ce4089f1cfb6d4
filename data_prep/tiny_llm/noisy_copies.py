"""Noisy copies: a text's tokens as audio embeddings will be, between fillers, held, blurred or wrong."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data_prep.tiny_llm.subwords import BOS_ID, EOS_ID, FILLER_ID, PAD_ID, SPECIAL_TOKENS

IGNORED = -100  # a label without loss


@dataclass(frozen=True)
class Noise:
    """Distance of a prefix from the text it stands for. Rates are probabilities per token or per frame."""

    max_fillers: int = 4
    """Longest usual run of fillers between two tokens."""
    long_run: float = 0.03
    """Rate of pauses: runs of up to four times `max_fillers`."""
    held: float = 0.25
    """Rate of tokens that last two or three frames."""
    wrong: float = 0.03
    """Rate of tokens that are replaced by another, by a filler, or dropped, so that the text's own
    probability has to help."""
    blur: float = 0.1
    """Largest weight of something else in a frame's embedding."""
    gaussian: float = 0.2
    """Largest standard deviation of the noise on embeddings, relative to their own root mean square."""
    scale: float = 1.2
    """Largest factor, up or down, on the embeddings of a prefix."""

    def weakened(self, share: float) -> "Noise":
        """The same kinds of noise, at a share (0 to 1) of their strength; the scale stays."""
        weaker = {name: share * getattr(self, name) for name in ("long_run", "held", "wrong", "blur", "gaussian")}
        return replace(self, max_fillers=round(share * self.max_fillers), **weaker)


def noisy_copy(tokens: Sequence[int], vocabulary: range, noise: Noise, rng: random.Random) -> list[int]:
    """Make a prefix that stands for `tokens` as frames of audio would: fillers between them, some held or wrong.

    As in CTC, a token that really occurs twice running has a filler between, so that a held token and a
    repeated one can be told apart.

    Args:
        tokens: token ids of a text.
        vocabulary: ids that a wrong token is drawn from.
    """
    prefix = [FILLER_ID] * _run_of_fillers(noise, rng)
    for token in tokens:
        frames = [token] * (rng.randint(2, 3) if rng.random() < noise.held else 1)
        if rng.random() < noise.wrong:
            frames = rng.choice(([rng.choice(vocabulary)], [FILLER_ID], []))
        if prefix and frames and prefix[-1] == frames[0]:
            prefix.append(FILLER_ID)
        prefix += frames + [FILLER_ID] * _run_of_fillers(noise, rng)
    return prefix or [FILLER_ID]


def _run_of_fillers(noise: Noise, rng: random.Random) -> int:
    longest = noise.max_fillers * (4 if rng.random() < noise.long_run else 1)
    return rng.randint(0, longest)


class Sequences(NamedTuple):
    """A batch, right-padded: with a causal mask nothing sees the padding, so no attention mask is needed."""

    ids: Tensor  # (B, T)
    labels: Tensor  # (B, T) ids, IGNORED in prefixes and padding
    in_prefix: Tensor  # (B, T) bool


def collate(pairs: Sequence[tuple[list[int], list[int]]]) -> Sequences:
    """Batch (prefix, text) pairs of token ids as `prefix <s> text </s>`, with loss after <s> only."""
    rows = [torch.tensor([*prefix, BOS_ID, *text, EOS_ID]) for prefix, text in pairs]
    ids = pad_sequence(rows, batch_first=True, padding_value=PAD_ID)
    column = torch.arange(ids.shape[1])
    prefix_lengths = torch.tensor([len(prefix) for prefix, _ in pairs])[:, None]
    row_lengths = torch.tensor([len(row) for row in rows])[:, None]
    with_loss = (column > prefix_lengths) & (column < row_lengths)
    return Sequences(ids, ids.masked_fill(~with_loss, IGNORED), column < prefix_lengths)


def perturb(
    embeddings: Tensor,
    ids: Tensor,
    in_prefix: Tensor,
    table: Tensor,
    noise: Noise,
    generator: torch.Generator,
) -> Tensor:
    """Make the prefixes' embeddings as imperfect as audio embeddings will be; the rest stays as it is.

    A filler takes on some of a neighbor, any other frame some of a random token; every row is then scaled by
    its own factor and gets its own level of Gaussian noise.

    Args:
        embeddings: (B, T, D).
        ids: (B, T) token ids.
        in_prefix: (B, T) bool.
        table: (V, D) the token embeddings.

    Returns:
        (B, T, D).
    """
    rows, columns = ids.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, 1, generator=generator)  # (…, 1), to multiply embeddings with

    before, after = embeddings.roll(1, dims=1), embeddings.roll(-1, dims=1)
    neighbor = torch.where(uniform(rows, columns) < 0.5, before, after)
    stranger = table[torch.randint(len(SPECIAL_TOKENS), len(table), ids.shape, generator=generator)]
    other = torch.where((ids == FILLER_ID)[..., None], neighbor, stranger)
    frames = torch.lerp(embeddings, other, noise.blur * uniform(rows, columns))
    rms = table.detach().square().mean().sqrt()
    level = noise.gaussian * rms * uniform(rows, 1)
    frames = frames + level * torch.randn(embeddings.shape, generator=generator)
    frames = frames * noise.scale ** (2 * uniform(rows, 1) - 1)
    return torch.where(in_prefix[..., None], frames, embeddings)

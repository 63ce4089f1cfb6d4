"""The one prompt builder, for training and for generation alike.

A row of the batch becomes `[pad][instruction][audio][BOS][text][EOS][pad]`. What precedes BOS is padded on
the left and what follows on the right, so BOS stands in the same column for every row: logits are needed
only from there on (at a 250 k vocabulary they are most of the memory), and generation starts from there.
The paper uses no instruction (arXiv 2307.11795, section 3.2); the default is the paper's.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.masks import length_mask
from speechllm_pl.core.padded import Padded

IGNORED = -100
"""The label of columns without loss, as in `torch.nn.functional.cross_entropy`."""


@dataclass(frozen=True)
class Prompt:
    """What the LLM reads beside the audio. It is saved with the weights, so inference cannot differ.

    Attributes:
        instruction: text placed before the audio; `{language}` stands for the utterance's language code.
    """

    instruction: str = ""

    def __post_init__(self) -> None:
        fields = {field for _, field, _, _ in string.Formatter().parse(self.instruction) if field is not None}
        if fields - {"language"}:
            raise UserError(f"prompt instruction {self.instruction!r}: the only field it may have is {{language}}")

    @property
    def names_language(self) -> bool:
        return self.before_audio("a") != self.before_audio("b")

    def before_audio(self, language: str) -> str:
        return self.instruction.format(language=language)


class Columns(NamedTuple):
    """LLM inputs of a batch. C = P + 1 + K - 1 columns: P before BOS, then BOS, then K - 1 text columns."""

    embeddings: Tensor  # (B, C, D)
    mask: Tensor  # (B, C) int64, 1 at real columns
    positions: Tensor  # (B, C) int64, counted over real columns only, so a row does not depend on its batch
    labels: Tensor  # (B, K) int64: what the last K columns (BOS and text) should predict, else IGNORED


def pad_tokens(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> Padded:
    """Right-pad token lists to ids `(B, N)`, where padding is 0, with lengths `(B,)`."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    ids = torch.zeros(len(rows), max((len(row) for row in rows), default=0), dtype=torch.long, device=device)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=torch.long, device=device)
    return Padded(ids, lengths)


def assemble(instruction: Padded, audio: Padded, bos: Tensor, text: Padded, labels: Tensor) -> Columns:
    """Put audio among text embeddings.

    Args:
        instruction: `(B, I, D)` embeddings.
        audio: `(B, A, D)` embeddings.
        bos: `(D,)` embedding of BOS.
        text: `(B, N, D)` embeddings of the (perhaps masked) text; N = 0 for generation.
        labels: `(B, N + 1)` of BOS and the text, see `next_token_labels`.
    """
    batch, _, dim = audio.values.shape
    before, before_mask = _left_pad(instruction, audio)
    embeddings = torch.cat([before, bos.expand(batch, 1, dim), text.values], dim=1)
    text_mask = length_mask(text.lengths + 1, text.values.shape[1] + 1)  # BOS and text
    mask = torch.cat([before_mask, text_mask], dim=1).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Columns(embeddings, mask, positions, labels)


def next_token_labels(text: Padded, eos_id: int) -> Tensor:
    """Labels `(B, N + 1)` of the columns BOS, t1 … tN: the next token, then EOS, then IGNORED."""
    labels = torch.nn.functional.pad(text.values, (0, 1))
    columns = torch.arange(labels.shape[1], device=labels.device)
    labels = labels.masked_fill(columns == text.lengths[:, None], eos_id)
    return labels.masked_fill(columns > text.lengths[:, None], IGNORED)


def mask_tokens(ids: Tensor, fraction: float, unk_id: int, generator: torch.Generator | None = None) -> Tensor:
    """Replace about a `fraction` of the input tokens by `unk_id`, so that the model leans on the audio.

    The paper's text masking, F (arXiv 2307.11795, ablations). Labels stay untouched: mask inputs only.
    """
    if fraction == 0:
        return ids
    chosen = torch.rand(ids.shape, device=ids.device, generator=generator) < fraction
    return ids.masked_fill(chosen, unk_id)


def _left_pad(first: Padded, second: Padded) -> tuple[Tensor, Tensor]:
    """Join two right-padded sequences row by row and push the result to the right. Returns it with its mask."""
    totals = first.lengths + second.lengths
    columns = int(totals.max())
    place = torch.arange(columns, device=totals.device) - (columns - totals)[:, None]  # negative where padding
    in_second = first.values.shape[1] + place - first.lengths[:, None]
    source = torch.where(place < first.lengths[:, None], place, in_second).clamp(min=0)
    both = torch.cat([first.values, second.values], dim=1)
    joined = both.gather(1, source[:, :, None].expand(-1, -1, both.shape[2]))
    mask = place >= 0
    return joined * mask[:, :, None], mask

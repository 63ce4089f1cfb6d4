"""Audio embeddings simulated from text alone, to train the LLM on a domain of which there is no audio.

Direct alignment draws the embedding of a token's frame towards the token's own input embedding, and leaves its norm,
its noise and how long it lasts to the audio. These are measured on real audio, frame by frame along the best CTC path
(`measure`), and drawn from there for texts without audio (`simulate`): every token becomes its input embedding with the
deviation of some real frame, held as long as some real token, between real blanks. The LLM that learns to read it
denoises text (arXiv 2601.20900).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torchaudio.functional as AF
from torch import Tensor
from torch.nn import functional as F

from speechllm_pl.core.padded import Padded
from speechllm_pl.models.direct_alignment import cosine_similarities

SHARPNESS = 20.0
"""Factor on cosines in the search for the best path, 1 / temperature of the alignment's loss."""


class RealFrames(NamedTuple):
    """Frames of real audio from which simulated ones are drawn: R of tokens and S of blanks."""

    along: Tensor  # (R,) length of a token's frame in the direction of the token's input embedding
    across: Tensor  # (R, D) the rest of it
    blanks: Tensor  # (S, D) frames of no token
    held: Tensor  # (H,) frames that a token lasts

    @property
    def frames(self) -> tuple[int, int]:
        """Numbers of frames of tokens and of blanks."""
        return len(self.along), len(self.blanks)


def best_path(audio: Tensor, text: Tensor, table: Tensor, blank: Tensor) -> Tensor:
    """Position in the text of each frame, `(A,)`, and -1 for a blank, along the best CTC path by cosine.

    Args:
        audio: `(A, D)` embeddings, at least as many as there are tokens.
        text: `(N,)` LLM tokens; each position is a class of its own, so that equal neighbours need no blank.
        table: `(V, D)` the LLM's input embeddings.
        blank: `(D,)` the alignment's blank.
    """
    classes = torch.cat([blank[None], table[text].to(blank.dtype)])
    scores = (SHARPNESS * cosine_similarities(audio, classes)).log_softmax(-1)
    targets = torch.arange(1, len(text) + 1, dtype=torch.int32, device=audio.device)
    path, _ = AF.forced_align(scores[None], targets[None], blank=0)
    return path[0].long() - 1


def measure(utterances: Iterable[tuple[Tensor, Tensor]], table: Tensor, blank: Tensor) -> RealFrames | None:
    """Take apart real audio embeddings.

    Args:
        utterances: `(A, D)` audio embeddings and `(N,)` LLM tokens of each; those with fewer frames than tokens, or
            without tokens, are passed over.
        table: `(V, D)` the LLM's input embeddings.
        blank: `(D,)` the alignment's blank.

    Returns:
        None if no utterance could be aligned, or no frame of any is a blank.
    """
    along, across, blanks, held = [], [], [], []
    for audio, text in utterances:
        if not 0 < len(text) <= len(audio):
            continue
        audio = audio.float()
        place = best_path(audio, text, table, blank)
        said = place >= 0
        directions = F.normalize(table[text[place[said]]].float(), dim=-1)
        lengths = (audio[said] * directions).sum(-1)
        along.append(lengths)
        across.append(audio[said] - lengths[:, None] * directions)
        blanks.append(audio[~said])
        held.append(torch.bincount(place[said], minlength=len(text)))
    if not along or not sum(map(len, blanks)):
        return None
    return RealFrames(*map(torch.cat, (along, across, blanks, held)))


def simulate(text: Padded, lengths: Tensor, table: Tensor, real: RealFrames, wrong: float = 0.0) -> Padded:
    """Simulate the audio embeddings of texts, with torch's global random numbers.

    Args:
        text: `(B, N)` LLM tokens.
        lengths: `(B,)` embeddings that each text shall have; one too short for its tokens gets as many as it needs.
        table: `(V, D)` the LLM's input embeddings.
        real: what to draw from.
        wrong: share of the tokens that are replaced by a random one, so that the text's own probability has to help.

    Returns:
        `(B, A, D)`, zero beyond the lengths.
    """
    place, lengths = laid_out(text, lengths, real.held)  # (B, A) position in the text, -1 for a blank
    ids = text.values
    stranger = torch.randint_like(ids, len(table))
    ids = torch.where(torch.rand(ids.shape, device=ids.device) < wrong, stranger, ids)
    directions = F.normalize(table[ids].float(), dim=-1)  # (B, N, D)
    drawn = torch.randint(len(real.along), place.shape, device=ids.device)
    frames = directions.gather(1, place.clamp(min=0)[:, :, None].expand(-1, -1, directions.shape[2]))
    frames = real.along[drawn][:, :, None] * frames + real.across[drawn]
    blanks = real.blanks[torch.randint(len(real.blanks), place.shape, device=ids.device)]
    frames = torch.where((place >= 0)[:, :, None], frames, blanks)
    inside = torch.arange(place.shape[1], device=ids.device) < lengths[:, None]
    return Padded(frames * inside[:, :, None], lengths)


def laid_out(text: Padded, lengths: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Spread tokens over frames: each held for a drawn number of them, blanks divided at random among the gaps.

    As in CTC there is at least one blank between equal tokens. Where frames are too few, tokens last one each.

    Returns:
        `(B, A)` position in the text of each frame, -1 for a blank, and the `(B,)` numbers of frames.
    """
    ids, tokens = text
    columns = torch.arange(ids.shape[1], device=ids.device)
    real = columns < tokens[:, None]  # (B, N)
    lasting = held[torch.randint(len(held), ids.shape, device=ids.device)].clamp(min=1) * real
    between = F.pad((ids[:, 1:] == ids[:, :-1]) & real[:, 1:], (1, 1)).long()[:, : ids.shape[1] + 1]  # (B, N + 1)
    least = between.sum(1)
    lasting = torch.where((lasting.sum(1) + least > lengths)[:, None], real.long(), lasting)
    lengths = torch.maximum(lengths, lasting.sum(1) + least)
    free = (lengths - lasting.sum(1) - least)[:, None]
    gap = torch.arange(ids.shape[1] + 1, device=ids.device)  # before each token, and after the last
    shares = torch.empty(between.shape, device=ids.device).exponential_() * (gap <= tokens[:, None])
    ends = (free * shares.cumsum(1) / shares.sum(1, keepdim=True)).round().long()
    ends = torch.where(gap < tokens[:, None], ends.minimum(free), free)
    blanks = ends.diff(dim=1, prepend=torch.zeros_like(free)) + between
    parts = torch.stack([blanks, F.pad(lasting, (0, 1))], dim=2).flatten(1)  # gap, token, gap, token, …
    frames = torch.arange(int(lengths.max()), device=ids.device).expand(len(ids), -1).contiguous()
    part = torch.searchsorted(parts.cumsum(1), frames, right=True).clamp(max=parts.shape[1] - 1)
    inside = (part % 2 == 1) & (frames < lengths[:, None])
    return torch.where(inside, part // 2, -1), lengths

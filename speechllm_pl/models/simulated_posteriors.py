"""Encoder frames simulated from text by way of CTC posteriors, to train the LLM on a domain of which there is no audio.

A text becomes the posteriors that a CTC head might give its audio (arXiv 2511.03310): classes last for some frames
between blanks, take most of the probability, and leave the rest to those that they are confused with. The paper's LLM
reads posteriors; here it reads projected frames. So a posterior becomes the mean frame of each class, weighted by it,
with the deviation of some real frame, and passes the trained bridge. How long classes last, their share of the
probability, their confusions and their frames are measured on real audio (`measure`).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torchaudio.functional as AF
from torch import Tensor
from torch.nn import functional as F

from speechllm_pl.core.ctc_tokenizer import BLANK
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.simulated_audio import laid_out

TINY = torch.finfo(torch.float32).tiny


class Deviations(NamedTuple):
    """R real frames of tokens, or of blanks: how each differs from the mean frame of its class."""

    peak: Tensor  # (R,) probability of the class that it is aligned with
    rest: Tensor  # (R, dim) of the frame, without what its posterior says

    def drawn(self, shape: torch.Size) -> "Deviations":
        chosen = torch.randint(len(self.peak), shape, device=self.peak.device)
        return Deviations(self.peak[chosen], self.rest[chosen])


class RealPosteriors(NamedTuple):
    """What a CTC head says of real audio, from which posteriors and frames are simulated."""

    means: Tensor  # (V, dim) frame of each class: mean of real ones, weighted by its probability there
    confusions: Tensor  # (V, V) shares that other classes have in what a class leaves of the probability
    tokens: Deviations
    blanks: Deviations
    held: Tensor  # (H,) frames that a token lasts

    @property
    def frames(self) -> tuple[int, int]:
        """Numbers of frames of tokens and of blanks."""
        return len(self.tokens.peak), len(self.blanks.peak)


def measure(utterances: Iterable[tuple[Tensor, Tensor, Tensor]]) -> RealPosteriors | None:
    """Measure real frames and posteriors along the best CTC path of each text.

    Args:
        utterances: `(T, dim)` encoder frames, their `(T, V)` CTC logits and `(N,)` classes of the text of each; those
            without text, or with fewer frames than CTC needs, are passed over.

    Returns:
        None if no utterance could be aligned, or no frame of any is a blank.
    """
    frames, posteriors, paths, held = [], [], [], []
    for encoded, logits, classes in utterances:
        if not len(classes) or len(classes) + (classes.diff() == 0).sum() > len(encoded):
            continue
        log_probs = logits.float().log_softmax(-1)
        path = AF.forced_align(log_probs[None], classes[None].int(), blank=BLANK)[0][0].long()
        labels, counts = path.unique_consecutive(return_counts=True)
        frames.append(encoded.float())
        posteriors.append(log_probs.exp())
        paths.append(path)
        held.append(counts[labels != BLANK])
    if not paths or not any((path == BLANK).any() for path in paths):
        return None
    return _statistics(torch.cat(frames), torch.cat(posteriors), torch.cat(paths), torch.cat(held))


def _statistics(frames: Tensor, posteriors: Tensor, own: Tensor, held: Tensor) -> RealPosteriors:
    """Measure F frames, `(F, dim)`, with `(F, V)` posteriors and `(F,)` classes that they are aligned with."""
    means = (posteriors.T @ frames) / posteriors.sum(0)[:, None].clamp(min=TINY)
    peak = posteriors.gather(1, own[:, None])[:, 0]
    left = posteriors.scatter(1, own[:, None], 0.0)
    confusions = torch.zeros_like(left[:1]).expand(left.shape[1], -1).index_add(0, own, left)
    confusions = confusions + left.mean(0)  # a class that no frame is aligned with: as all classes
    confusions = confusions.fill_diagonal_(0.0).clamp(min=TINY)
    rest = frames - posteriors @ means
    blank = own == BLANK
    tokens, blanks = (Deviations(peak[kind], rest[kind]) for kind in (~blank, blank))
    return RealPosteriors(means, confusions / confusions.sum(1, keepdim=True), tokens, blanks, held)


def simulate(text: Padded, lengths: Tensor, real: RealPosteriors, wrong: float = 0.0) -> tuple[Padded, Tensor]:
    """Simulate encoder frames and CTC posteriors of texts, with torch's global random numbers.

    Args:
        text: `(B, N)` CTC classes.
        lengths: `(B,)` frames that each text shall have; one too short for its classes gets as many as it needs.
        real: what to draw from.
        wrong: share of the classes that are replaced by one that they are confused with; by the blank, they are lost.

    Returns:
        `(B, T, dim)` frames, zero beyond the lengths.
        `(B, T, V)` posteriors of them.
    """
    ids = text.values
    mistaken = torch.multinomial(real.confusions[ids.flatten()], 1).view_as(ids)
    place, lengths = laid_out(text, lengths, real.held)  # (B, T) position in the text, -1 for a blank
    ids = torch.where(torch.rand(ids.shape, device=ids.device) < wrong, mistaken, ids)
    own = F.pad(ids, (1, 0), value=BLANK).gather(1, place + 1)  # (B, T)
    said = own != BLANK
    tokens, blanks = real.tokens.drawn(own.shape), real.blanks.drawn(own.shape)
    peak = torch.where(said, tokens.peak, blanks.peak)
    rest = torch.where(said[:, :, None], tokens.rest, blanks.rest)
    posteriors = (1 - peak[:, :, None]) * real.confusions[own]
    posteriors = posteriors.scatter(2, own[:, :, None], peak[:, :, None])
    inside = torch.arange(own.shape[1], device=ids.device) < lengths[:, None]
    return Padded((posteriors @ real.means + rest) * inside[:, :, None], lengths), posteriors

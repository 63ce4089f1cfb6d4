"""The paper's alignment analysis: whether the audio embeddings say in order what the text says.

A map is the cosine similarity between the projected audio embeddings of one utterance and the LLM's input embeddings of
its reference text. The paper finds the map close to monotonic: the LLM repeats, in order, what the audio
embeddings already say.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor

from speechllm_pl.core.padded import Padded
from speechllm_pl.models.direct_alignment import cosine_similarities
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.recognizer import Recognizer


@dataclass(frozen=True)
class AlignmentMap:
    """Similarities of one utterance's text with its audio."""

    similarities: np.ndarray
    """Cosines in -1 … 1, `(N, A)`: a row a text token, a column an audio embedding."""

    tokens: list[str]
    """Text that each token adds, N in all; a space in front begins a word."""

    seconds_per_embedding: float
    """Seconds of audio under one column."""

    @property
    def monotonicity(self) -> float:
        return monotonicity(self.similarities)


def alignment_map(audio: Tensor, text: Tensor, tokens: list[str], seconds_per_embedding: float) -> AlignmentMap:
    """Map of `(A, D)` audio embeddings and the `(N, D)` embeddings of the tokens."""
    similarities = cosine_similarities(audio.detach(), text.detach()).T  # (N, A)
    return AlignmentMap(similarities.cpu().numpy(), tokens, seconds_per_embedding)


@torch.inference_mode()
def align(recognizer: Recognizer, samples: np.ndarray, text: str) -> AlignmentMap:
    """Map of one utterance by a recogniser of stage 2, from `(T,)` samples at 16 kHz and the text that they say."""
    model, tokenizer, device = recognizer.model, recognizer.llm_tokenizer, recognizer.device
    assert isinstance(model, SpeechLLM)
    assert tokenizer is not None
    waveforms = torch.from_numpy(samples).to(device)[None]
    audio = model.listen(Padded(waveforms, torch.tensor([len(samples)], device=device)))
    (ids,) = tokenizer.encode([text])
    said = [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
    tokens = [longer[len(shorter) :] for shorter, longer in pairwise(said)]
    embeddings = model.text_embeddings[torch.tensor(ids, device=device)]
    return alignment_map(audio.embeddings[0], embeddings, tokens, model.seconds_per_embedding)


def monotonicity(similarities: np.ndarray) -> float:
    """How far the best audio embedding moves on with the text: a Spearman correlation in -1 … 1.

    Correlates each token's place in the text with the column where its similarity is greatest (the first
    such column); tokens that share a column share the mean of their ranks. 1: each token is best matched
    later than all before it. 0: no order, as expected of chance. NaN when fewer than two tokens or when all
    tokens share one column, since an order is then undefined.
    """
    best = similarities.argmax(axis=1)
    if len(np.unique(best)) < 2:
        return float("nan")
    return float(np.corrcoef(np.arange(len(best)), _ranks(best))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[position]


def draw(alignment: AlignmentMap, axis: Axes, *, cmap: str = "viridis", best: str = "white") -> AxesImage:
    """Draw a heat map on `axis`: seconds to the right, the text downwards, a dot on each token's best embedding.

    Args:
        cmap: any matplotlib colour map.
        best: colour of the dots.
    """
    tokens, embeddings = alignment.similarities.shape
    width = alignment.seconds_per_embedding
    image = axis.imshow(
        alignment.similarities,
        aspect="auto",
        cmap=cmap,
        interpolation="nearest",
        extent=(0, embeddings * width, tokens - 0.5, -0.5),
    )
    columns = alignment.similarities.argmax(axis=1)
    axis.plot(
        (columns + 0.5) * width,
        np.arange(tokens),
        "o",
        color=best,
        markeredgecolor="black",  # seen on the brightest cells too
        markersize=5,
        linestyle="none",
    )
    labels = [_label(token, place) for place, token in enumerate(alignment.tokens)]
    axis.set_yticks(range(tokens), labels, parse_math=False)  # a text may have dollar signs
    axis.set(xlabel="seconds", ylabel="text tokens")
    return image


def _label(token: str, place: int) -> str:
    """Label of a token, with a hyphen in front if it continues a word."""
    return token.strip() if place == 0 or token.startswith(" ") else f"-{token}"

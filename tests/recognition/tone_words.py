"""A recogniser of the tones of `conftest.speak` that needs no training, and an LLM that writes what a test says."""

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from conftest import RATE, WORDS, speak, train_tokenizer
from torch import nn

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.speech_llm import Audio
from speechllm_pl.recognition.ctc_greedy import greedy_ctc
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Heard, Recognizer

FRAME = 1280  # samples
LOUD = 0.05
"""Amplitude of a tone that is heard; it has 0.3."""

Llm = Callable[[str, DecodingOptions], Hypothesis]
"""Writes a text by what was heard and how it is asked."""


def faithful(heard: str, options: DecodingOptions) -> Hypothesis:
    return Hypothesis(heard)


@cache
def word_tokenizer() -> CtcTokenizer:
    """A SentencePiece model of which every word is a piece."""
    return train_tokenizer([" ".join(WORDS)] * 3, len(WORDS) + 1, model_type="word")


class ToneRecognizer(Recognizer):
    """Takes the tone of each frame of 80 ms for a word, by Fourier's coefficients.

    Args:
        llm: LLM of stage 2.

    Attributes:
        batches: texts of the CTC head in each batch that the LLM was asked about.
        encoded: lengths of the recordings in each batch that the encoder was given.
    """

    stage = "llm"
    device = torch.device("cpu")

    def __init__(self, llm: Llm = faithful, longest_seconds: float | None = None):
        tokenizer = word_tokenizer()
        super().__init__(cast(Any, nn.Identity()), tokenizer)
        self.llm, self.longest_seconds = llm, longest_seconds
        self.batches: list[list[str]] = []
        self.encoded: list[list[int]] = []
        self.classes = torch.tensor(tokenizer.encode(" ".join(WORDS)))

    @property
    def speech(self) -> Any:
        return SimpleNamespace(seconds_per_frame=FRAME / RATE, encode=self._encode)

    def _encode(self, waveforms: Padded) -> Padded:
        """Samples in frames, `(B, T, FRAME)`."""
        self.encoded.append(waveforms.lengths.tolist())
        missing = -waveforms.values.shape[1] % FRAME
        frames = nn.functional.pad(waveforms.values, (0, missing)).unflatten(1, (-1, FRAME))
        return Padded(frames, -(-waveforms.lengths // FRAME))

    def heard_in(self, encoded: Padded, options: DecodingOptions = DecodingOptions()) -> Heard:  # noqa: B008
        frames, counts = encoded
        frequencies = torch.tensor([250 * 1.5**number for number in range(len(WORDS))])
        waves = torch.exp(2j * torch.pi * frequencies[:, None] * torch.arange(FRAME) / RATE)
        amplitudes = 2 * (frames.to(waves.dtype) @ waves.T).abs() / FRAME  # (B, T, words)
        logits = torch.zeros(*frames.shape[:2], self.tokenizer.vocab_size)
        logits[..., 0] = 5.0
        most, best = amplitudes.max(-1)
        pure = most.square() / 2 > 0.4 * frames.square().mean(-1)
        heard = (most > LOUD) & pure
        logits[heard] = logits[heard].scatter(1, self.classes[best[heard]][:, None], 10.0)
        hypotheses = greedy_ctc(logits, counts, self.tokenizer)
        return Heard(logits, counts, hypotheses, Audio(frames, counts, frames, counts))

    def write(
        self,
        heard: Heard,
        languages: Sequence[str],
        options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
        all_ended: Callable[[bool], bool] = bool,
    ) -> list[Hypothesis]:
        self.batches.append([hypothesis.text for hypothesis in heard.hypotheses])
        return [self.llm(hypothesis.text, options) for hypothesis in heard.hypotheses]


def sentences(count: int, seed: int, most_words: int = 6) -> list[str]:
    """Random texts in which no word follows itself."""
    random = np.random.default_rng(seed)
    found, before = [], ""
    for _ in range(count):
        text: list[str] = []
        for _ in range(random.integers(1, most_words + 1)):
            before = str(random.choice([word for word in WORDS if word != before]))
            text.append(before)
        found.append(" ".join(text))
    return found


def with_pauses(texts: Sequence[str], seed: int, least: float = 0.35, most: float = 3.0) -> np.ndarray:
    """A recording of texts with pauses of so many seconds after them."""
    random = np.random.default_rng(seed)
    parts = [
        part
        for text in texts
        for part in (speak(text), np.zeros(round(random.uniform(least, most) * RATE), np.float32))
    ]
    return np.concatenate(parts)

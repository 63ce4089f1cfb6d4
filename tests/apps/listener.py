"""A recogniser without a model, for whatever does not depend on what is recognised."""

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from speechllm_pl.core.padded import Padded
from speechllm_pl.recognition.decoding_options import DecodingOptions, Precision
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Heard, Recognizer

NO_TOKENIZER = SimpleNamespace(unk=1, encode=lambda text: [1])


class Listener(Recognizer):
    """Says how many samples a recording has, and remembers what it was given, but does not hold it.

    Args:
        before: called before each batch with its number.
        precision: of a training.
    """

    def __init__(self, before: Callable[[int], Any] = lambda _: None, precision: Precision = "32-true") -> None:
        super().__init__(cast(Any, nn.Linear(1, 1)), cast(Any, NO_TOKENIZER), precision=precision)
        self.before = before
        self.batches: list[list[int]] = []  # lengths
        self.given: list[weakref.ref] = []
        self.alive: list[int] = []  # of the batches so far, at each
        self.dtypes: list[torch.dtype] = []

    speech = cast(Any, SimpleNamespace(seconds_per_frame=0.08, encode=lambda waveforms: waveforms))

    def heard_in(self, encoded: Padded, options: DecodingOptions = DecodingOptions()) -> Heard:  # noqa: B008 (frozen)
        waveforms, lengths = encoded
        if options.decoder == "ctc":  # the search for pauses, of which there are none
            sound = torch.tensor([0.0, 1.0]).expand(len(lengths), 1, 2)
            return Heard(sound, torch.ones_like(lengths), [Hypothesis("")] * len(lengths), None)
        self.before(len(self.batches))
        self.batches.append(lengths.tolist())
        self.given.append(weakref.ref(waveforms))
        gc.collect()
        self.alive.append(sum(waveforms() is not None for waveforms in self.given))
        self.dtypes.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        found = [Hypothesis(f"{length} samples") for length in lengths.tolist()]
        return Heard(torch.zeros(len(found), 1, 2), torch.ones_like(lengths), found, None)

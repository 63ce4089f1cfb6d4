"""Count the cost of a training step without weights, data or a GPU: the real modules run on fake tensors.

Weights, gradients and optimiser state follow from the parameters. Activations are counted storage by storage while
the step's own forward and backward run, so any architecture, kernel, LoRA or checkpointing counts as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from typing import Any, Literal, NamedTuple, Self, cast

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from speechllm_pl.core.audio.units import FFT, HOP, SAMPLING_RATE
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.adjustments import checkpoint_activations, replace_tensors
from speechllm_pl.models.config import CtcConfig, SpeechLlmConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.llm import SpecialTokens, decoder_layers
from speechllm_pl.models.losses import WeightedTerm, weighted_sum
from speechllm_pl.models.speech_llm import Audio, SpeechLLM, embedding_lengths
from speechllm_pl.planning.gpu_kernels import GpuKernels
from speechllm_pl.planning.live_bytes import LiveBytes
from speechllm_pl.recognition.draft_scorer import LlmDraftScorer
from speechllm_pl.recognition.text_end import EXTRA_TOKENS, TOKENS_PER_SECOND

ACTIVATIONS, LOGITS, GRADIENTS = "activations", "logits", "gradients"

Kernels = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Blueprint:
    """A model's description with what it names by file, so that the model can be built without weights.

    Attributes:
        config: the description.
        ctc_classes: size of the CTC vocabulary with its blank.
        llm: the LLM's shape; none in stage 1.
    """

    config: CtcConfig
    ctc_classes: int
    llm: transformers.PretrainedConfig | None = None

    def changed(self, **settings: Any) -> Self:
        """Blueprint with other settings of the description."""
        return replace(self, config=replace(self.config, **settings))

    def build(self) -> CtcModel | SpeechLLM:
        """Build the model with random weights, in training mode, on torch's default device."""
        with _Answers(truth=False):  # torchaudio asks its filter banks whether one is empty
            speech = self.config.build_speech(self.ctc_classes)
        if self.llm is None:
            return speech.train()
        assert isinstance(self.config, SpeechLlmConfig)
        llm = transformers.AutoModelForCausalLM.from_config(self.llm, dtype=self.config.dtype)
        return SpeechLLM(self.config, speech, llm.requires_grad_(False), SpecialTokens(0, 0, 0)).train()


@dataclass(frozen=True)
class StepShape:
    """A batch of equal utterances.

    Attributes:
        seconds: of each utterance.
        utterances: how many.
        tokens_per_second: of text; MLS has 15 characters a second, LLaMA's tokens three to four characters.
    """

    seconds: float
    utterances: int
    tokens_per_second: float = 5.0

    @classmethod
    def largest(cls, max_duration: float, max_seconds: float, tokens_per_second: float = 5.0) -> "StepShape":
        """Batch of `max_duration` seconds with the longest utterances, which takes the most memory."""
        utterances = max(1, -int(-max_duration // max_seconds))
        return cls(max_duration / utterances, utterances, tokens_per_second)

    @property
    def audio_seconds(self) -> float:
        return self.seconds * self.utterances

    @property
    def samples(self) -> int:
        return max(FFT, round(self.seconds * SAMPLING_RATE / HOP) * HOP)

    @property
    def tokens(self) -> int:
        return max(1, round(self.seconds * self.tokens_per_second))


@dataclass(frozen=True)
class StepCost:
    """Cost of one forward and backward pass on one device.

    Attributes:
        activations: bytes at the peak, without logits, weights and gradients of weights.
        logits: bytes at the same moment of logits, what the losses make of them, and their gradients.
        flops: floating point operations, two for a multiply-add; recomputation under checkpointing included.
    """

    activations: int
    logits: int
    flops: int

    @property
    def bytes(self) -> int:
        return self.activations + self.logits


def step_cost(
    blueprint: Blueprint,
    shape: StepShape,
    *,
    autocast: torch.dtype | None = torch.bfloat16,
    checkpointing: bool = False,
    kernels: Kernels = "cuda",
) -> StepCost:
    """Run forward and backward on fake tensors and count.

    Args:
        blueprint: what is trained.
        shape: the batch.
        autocast: dtype of mixed precision, none for plain fp32.
        checkpointing: keep no activations inside LLM layers and encoder blocks, and compute them twice.
        kernels: whose memory to count: a GPU's, or a CPU's as this project trains on it, without flash attention.
    """
    model = meta_model(blueprint)
    columns = audio_columns(blueprint, shape)
    with FakeTensorMode(), _kernels(kernels):
        replace_tensors(model, _fake)
        if checkpointing:
            layers = chain.from_iterable(repeated_layers(model))
            checkpoint_activations(
                layers, context_fn=lambda: (nullcontext(), _kernels(kernels))
            )  # backward leaves them
        live = LiveBytes([*model.parameters(), *model.buffers()], peak_of=(ACTIVATIONS, LOGITS))
        _mark_gradients_and_logits(model, live)
        with live:
            batch = silence(shape)
            with torch.autocast("cpu", autocast, enabled=autocast is not None):
                with _Answers(number=columns):
                    terms = losses(model, batch)
                live.count_from_now(ACTIVATIONS)
                for term, _ in terms.values():
                    term.total.register_hook(lambda _: live.count_from_now(LOGITS))  # its backward begins
                loss = weighted_sum(terms)
            loss.backward()
    return StepCost(live.at_peak[ACTIVATIONS], live.at_peak[LOGITS], live.flops)


def decoding_bytes(
    blueprint: Blueprint, shape: StepShape, *, autocast: torch.dtype | None = torch.bfloat16, kernels: Kernels = "cuda"
) -> int:
    """Bytes that recognising a batch takes beside the weights; arguments as for `step_cost`.

    The peak while the audio is heard, or that of the LLM's passes over drafts as long as the texts, up to the longest
    text that `generate` allows, if that is more.
    """
    model = meta_model(blueprint).eval()
    columns = audio_columns(blueprint, shape)
    text = ceil(shape.seconds * TOKENS_PER_SECOND) + EXTRA_TOKENS
    with FakeTensorMode(), _kernels(kernels), torch.no_grad():
        replace_tensors(model, _fake)
        live = LiveBytes([*model.parameters(), *model.buffers()], peak_of=(ACTIVATIONS,))
        with live, torch.autocast("cpu", autocast, enabled=autocast is not None):
            batch = silence(shape)
            if isinstance(model, CtcModel):
                model(batch.waveforms)
                return live.at_peak[ACTIVATIONS]
            with _Answers(number=columns):
                audio = model.listen(batch.waveforms)
                model.speech.head(audio.encoded)
                heard = live.at_peak[ACTIVATIONS]
                live.at_peak.clear()
                _write_drafts(model, audio, batch, text)
        return max(heard, live.at_peak[ACTIVATIONS])


def _write_drafts(model: SpeechLLM, audio: Audio, batch: "SilentBatch", most: int) -> None:
    """Check drafts as `speculative` does: before any text is written, and behind a text of nearly `most` tokens."""
    scorer = LlmDraftScorer(model, model.prompt(audio, batch.no_text))
    count, tokens = batch.text.values.shape
    _check(scorer, [[]] * count, tokens)
    written = max(tokens, most - tokens - 1)
    scorer.accept([written] * count)
    for layer in cast(Any, scorer.cache).layers:  # as if as much had been written in passes between
        columns = layer.keys.shape[-2] + written - tokens
        layer.keys, layer.values = (
            old.new_empty(*old.shape[:-2], columns, old.shape[-1]) for old in (layer.keys, layer.values)
        )
    _check(scorer, [[1]] * count, tokens)


def _check(scorer: LlmDraftScorer, last: list[list[int]], tokens: int) -> None:
    logits = scorer.score(last, [[1] * tokens] * len(last))  # (B, K + 1, V), in fp32
    (logits - logits.amax(-1, keepdim=True)).exp_()  # what logsumexp makes


def _mark_gradients_and_logits(model: nn.Module, live: LiveBytes) -> None:
    """Exclude weights' gradients from the count, and count logits apart from activations.

    What a head and its loss make counts as logits, and in the backward pass until the head's input has its gradient.
    """

    def settled(weight: Tensor) -> None:
        live.count_as(cast(Tensor, weight.grad), GRADIENTS)

    def scoring(_: nn.Module, inputs: tuple[Tensor | Padded, ...]) -> None:
        live.count_from_now(LOGITS)
        scored = inputs[0].values if isinstance(inputs[0], Padded) else inputs[0]
        if scored.requires_grad:
            scored.register_hook(lambda _: live.count_from_now(ACTIVATIONS))

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(settled)
    for head in _heads(model):
        head.register_forward_pre_hook(scoring)


def _heads(model: nn.Module) -> list[nn.Module]:
    """Modules that make logits."""
    if isinstance(model, CtcModel):
        return [model.head]
    assert isinstance(model, SpeechLLM)
    heads = [model.speech.head, model.alignment, cast(Any, model.llm).get_output_embeddings()]
    return [head for head in heads if head is not None]


# the step: shared with the benchmarks, which run it on real tensors


class SilentBatch(NamedTuple):
    """B utterances of silence, with a text that repeats one token."""

    waveforms: Padded  # (B, N)
    text: Padded  # (B, K), for the LLM and the CTC head alike

    @property
    def no_text(self) -> Padded:
        return Padded(self.text.values[:, :0], torch.zeros_like(self.text.lengths))


def silence(shape: StepShape, device: str | torch.device = "cpu") -> SilentBatch:
    waveforms = torch.zeros(shape.utterances, shape.samples, device=device)
    lengths = torch.full((shape.utterances,), shape.samples, device=device)
    ids = torch.ones(shape.utterances, shape.tokens, dtype=torch.long, device=device)
    return SilentBatch(Padded(waveforms, lengths), Padded(ids, torch.full_like(lengths, shape.tokens)))


def losses(model: nn.Module, batch: SilentBatch) -> dict[str, WeightedTerm]:
    """Compute the model's own losses of a batch; without an instruction in stage 2."""
    if isinstance(model, CtcModel):
        return model.losses(batch.waveforms, batch.text)
    assert isinstance(model, SpeechLLM)
    return model.losses(batch.waveforms, batch.text, batch.no_text, batch.text)


# activation checkpointing


def repeated_layers(model: nn.Module) -> list[list[nn.Module]]:
    """The encoder's blocks, and the layers of the LLM, if any."""
    if isinstance(model, CtcModel):
        return [list(model.layers)]
    assert isinstance(model, SpeechLLM)
    return [list(model.speech.layers), decoder_layers(model.llm)]


# what fake tensors cannot do


def meta_model(blueprint: Blueprint) -> CtcModel | SpeechLLM:
    """Build the model with weights that have shapes and dtypes, but neither values nor memory."""
    with torch.device("meta"):
        model = blueprint.build()
    if isinstance(model, SpeechLLM):
        model.most_positions = None  # a run leaves out what is longer
    return model


def audio_columns(blueprint: Blueprint, shape: StepShape) -> int:
    """Number of columns of the LLM's input before BOS, which a fake tensor cannot give."""
    config = blueprint.config
    return int(embedding_lengths(config, torch.tensor(shape.samples))) if isinstance(config, SpeechLlmConfig) else 0


def _fake(tensor: Tensor) -> Tensor:
    """Fake CPU tensor in place of a meta tensor. (PEFT cannot add LoRA to fake ones.)"""
    return torch.empty(tensor.shape, dtype=tensor.dtype)


@contextmanager
def _kernels(kernels: Kernels) -> Iterator[None]:
    attention = GpuKernels() if kernels == "cuda" else sdpa_kernel(SDPBackend.MATH)
    with attention, _CtcStandIn():
        yield


class _Answers(TorchFunctionMode):
    """Answers questions about values, which fake tensors do not have."""

    def __init__(self, *, truth: bool | None = None, number: int | None = None):
        super().__init__()
        self.answers = {Tensor.__bool__: truth, Tensor.__int__: number}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = self.answers.get(func)
        return func(*args, **(kwargs or {})) if answer is None else answer


class _CtcStandIn(TorchFunctionMode):
    """Runs `_CtcLoss`, since torch's own reads the lengths."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.ctc_loss:
            return _CtcLoss.apply(args[0], args[1])
        return func(*args, **(kwargs or {}))


class _CtcLoss(torch.autograd.Function):
    """The memory of torch's CTC loss: log probabilities of `(B, T, 2N + 1)` states, forward and backward."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, targets: Tensor) -> Tensor:  # (T, B, V), (B, N)
        frames, batch, _ = log_probs.shape
        ctx.save_for_backward(log_probs, log_probs.new_empty(batch, frames, 2 * targets.shape[1] + 1))
        return log_probs.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        log_probs, forward_states = ctx.saved_tensors
        torch.empty_like(forward_states)  # those from the end
        return torch.empty_like(log_probs), None

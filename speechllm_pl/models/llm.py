"""Any Hugging Face causal LM, frozen, with LoRA (arXiv 2106.09685) on its self-attention, or trained whole."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, NamedTuple, cast

import peft
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.config import Quantization
from speechllm_pl.models.hugging_face import (
    attention_projections,
    commit_of,
    from_pretrained,
    names_of_linear_layers,
    repeated_layers,
)

NF4_BLOCK = 64
"""Number of weights that share a scale."""


class SpecialTokens(NamedTuple):
    """Ids of the LLM's tokens that stand for no text."""

    bos: int
    eos: int
    unk: int


class LlmTokenizer:
    """The LLM's own tokenizer, reduced to what the prompt builder needs."""

    def __init__(self, name_or_path: str, revision: str | None = None):
        self.tokenizer = from_pretrained("LLM", transformers.AutoTokenizer, name_or_path, revision=revision)
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"LLM {name_or_path}: its tokenizer has no end-of-sequence token, so text cannot end")
        self.eos_id: int = self.tokenizer.eos_token_id
        self.bos_id = self._first_of(self.tokenizer.bos_token_id)
        self.unk_id = self._first_of(self.tokenizer.unk_token_id, self.tokenizer.pad_token_id)
        self.pad_id = self._first_of(self.tokenizer.pad_token_id)

    @property
    def special_tokens(self) -> SpecialTokens:
        return SpecialTokens(self.bos_id, self.eos_id, self.unk_id)

    def _first_of(self, *ids: int | None) -> int:
        return next((i for i in ids if i is not None), self.eos_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS or EOS."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without BOS or EOS."""
        return list(map(len, self.encode(texts)))

    @cached_property
    def digest(self) -> str:
        """Digest that differs between tokenizers that divide text differently."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = fast.to_str() if fast else f"{type(self.tokenizer)} {sorted(self.tokenizer.get_vocab().items())}"
        return hashlib.sha256(rules.encode()).hexdigest()[:16]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def load_llm(
    name_or_path: str,
    dtype: torch.dtype = torch.float32,
    quantize: Quantization = "none",
    revision: str | None = None,
) -> transformers.PreTrainedModel:
    """Load the causal LM of a folder or a hub name, with all parameters frozen.

    Args:
        revision: commit, branch or tag of a hub name; the newest if none is given.
        dtype: type of the weights. If they are quantised: of the arithmetic, the embeddings and the LM head.
        quantize: `nf4` keeps the layers' matrices in 4 bits, their scales in 8 (arXiv 2305.14314).

    Raises:
        UserError: neither a folder nor a name that can be loaded, or of a width that NF4 does not take.
    """
    options = {} if quantize == "none" else {"quantization_config": _nf4(dtype)}
    llm = from_pretrained(
        "LLM", transformers.AutoModelForCausalLM, name_or_path, revision=revision, dtype=dtype, **options
    )
    for name, layer in _quantized_layers(llm).items():
        if layer.in_features % NF4_BLOCK:  # on a CPU, bitsandbytes would take the scales of other weights
            raise UserError(
                f"LLM {name_or_path}: nf4 needs layers whose input width is a multiple of {NF4_BLOCK}, and {name} has"
                f" {layer.in_features}; set --model.quantize none"
            )
        # On some CPUs it would repack the weights for inference when first used in evaluation, with coarser scales,
        # and without a gradient from then on.
        layer.support_avx512bf16_for_cpu = False
    return llm.requires_grad_(False)


def empty_llm(
    name_or_path: str, dtype: torch.dtype = torch.float32, revision: str | None = None
) -> transformers.PreTrainedModel:
    """Build `load_llm`'s model without weights, on the meta device, for a rank that receives its part of them."""
    with torch.device("meta"):
        llm = transformers.AutoModelForCausalLM.from_config(llm_config(name_or_path, revision), dtype=dtype)
    with suppress(OSError):  # few folders have one
        llm.generation_config = transformers.GenerationConfig.from_pretrained(name_or_path, revision=revision or "main")
    return llm.requires_grad_(False).eval()  # as `from_pretrained` leaves it


def llm_config(name_or_path: str, revision: str | None = None) -> transformers.PretrainedConfig:
    """The shape of `load_llm`'s model, without its weights."""
    return from_pretrained("LLM", transformers.AutoConfig, name_or_path, revision=revision)


def most_positions(config: transformers.PretrainedConfig) -> int | None:
    """Number of positions of the LLM; None where nothing bounds them, as with ALiBi (BLOOM, some Falcons)."""
    config = config.get_text_config()
    return None if getattr(config, "alibi", False) else getattr(config, "max_position_embeddings", None)


def llm_commit(name_or_path: str, revision: str | None = None) -> str | None:
    """Commit of a hub name's revision (branch, tag, commit; the newest if none); None for a folder.

    Raises:
        UserError: neither a folder nor a name that can be loaded.
    """
    return commit_of("LLM", name_or_path, revision)


def _nf4(dtype: torch.dtype) -> transformers.BitsAndBytesConfig:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def embedding_table(llm: nn.Module) -> Tensor:
    """The LLM's input embeddings, `(V, D)`."""
    return cast(Any, llm).get_input_embeddings().weight


def decoder_layers(llm: nn.Module) -> list[nn.Module]:
    """The repeated blocks of the LLM in order, also under LoRA: the units of sharding and activation checkpointing.

    They are the largest `ModuleList` (by parameters: a mixture's list of experts stands inside one block) whose
    members share a class.

    Raises:
        UserError: the LLM has no such list.
    """
    layers = repeated_layers(llm)
    if not layers:
        raise UserError(f"LLM {type(llm).__name__} has no list of decoder layers of one class to work on one by one")
    return layers


def add_lora(llm: nn.Module, r: int, alpha: float, dropout: float) -> peft.PeftModel:
    """Put LoRA of rank `r` on the query, key, value and output projections; nothing else is trained.

    Its weights are float32 whatever the LLM's are: bf16 would round a step of training away.

    Raises:
        UserError: the projections are not found; the message lists the linear layers of the LLM.
    """
    targets = attention_projections(llm)
    if not targets:
        raise UserError(
            f"LoRA: {type(llm).__name__} has no linear layers in a self-attention of repeated decoder layers; its"
            f" linear layers are {names_of_linear_layers(llm)}. Set --model.lora_r 0 to keep the LLM frozen"
        )
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=cast(Any, alpha),
        lora_dropout=dropout,
        target_modules=sorted(targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in targets.values()),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # peft's use of transformers
        return cast(peft.PeftModel, peft.get_peft_model(cast(Any, llm), config))


@contextmanager
def merged_lora(llm: nn.Module) -> Iterator[None]:
    """Context in which LoRA is merged into the weights that it adapts; on exit they are restored exactly.

    Merged, each token costs fewer and larger operations. Sums in bf16 cannot be undone exactly, so a copy of the
    adapted weights is kept. The sums are rounded to the type of the weights, as in a permanently merged model. Not
    for quantised or sharded weights.
    """
    former: list[tuple[Any, Tensor]] = []
    try:
        with torch.no_grad():
            for layer in llm.modules():
                if isinstance(layer, LoraLayer):
                    weight = cast(Tensor, layer.get_base_layer().weight)
                    former.append((layer, weight.data))
                    delta = cast(Any, layer).get_delta_weight("default")
                    weight.data = (weight.data.float() + delta.float()).to(weight.dtype)
                    layer.merged_adapters.append("default")  # its forward then leaves LoRA out
        yield
    finally:
        for layer, weights in former:
            layer.get_base_layer().weight.data = weights
            layer.merged_adapters.clear()


@torch.no_grad()
def merge_lora(llm: nn.Module) -> transformers.PreTrainedModel:
    """Merge LoRA into a plain, unquantised transformers model. Consumes `llm`.

    LoRA was trained on the quantised weights, so it is added to these, in their type before quantisation.
    """
    wrapped = cast(Any, llm)
    adapted = isinstance(llm, peft.PeftModel)
    if not _quantized_layers(llm):
        return wrapped.merge_and_unload() if adapted else wrapped
    layers = {name: layer for name, layer in llm.named_modules() if isinstance(layer, LoraLayer)}
    updates = {
        name.removeprefix("base_model.model."): cast(Any, layer).get_delta_weight("default")
        for name, layer in layers.items()
    }
    plain = wrapped.unload() if adapted else wrapped
    for name, layer in _quantized_layers(plain).items():
        plain.set_submodule(name, _unquantized(layer, updates.get(name)))
    plain.hf_quantizer.remove_quantization_config(plain)
    return plain


def is_quantized(llm: nn.Module) -> bool:
    """Whether any layer of the LLM keeps its weights in 4 bits."""
    return bool(_quantized_layers(llm))


def _quantized_layers(llm: nn.Module) -> dict[str, Linear4bit]:
    return {name: layer for name, layer in llm.named_modules() if isinstance(layer, Linear4bit)}


def _unquantized(layer: Linear4bit, update: Tensor | None) -> nn.Module:
    """Convert a layer back to the class that transformers made, with an `(out, in)` update added to its weight."""
    state = cast(Any, layer.weight).quant_state
    weight = dequantize_4bit(layer.weight.data, state).float()
    weight = (weight if update is None else weight + update).to(state.dtype)
    with torch.device("meta"):  # the weights come with it
        if layer.source_cls is Conv1D:
            plain, weight = Conv1D(layer.out_features, layer.in_features), weight.T.contiguous()
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = layer.bias
    return plain

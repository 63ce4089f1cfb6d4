"""Any Hugging Face causal LM, frozen, with LoRA (arXiv 2106.09685) on its self-attention, or trained whole."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
import transformers
from torch import Tensor, nn

from speechllm_pl.core.errors import UserError

LORA_TARGETS = (
    {"q_proj", "k_proj", "v_proj", "o_proj"},  # LLaMA, Qwen, Mistral, Gemma
    {"query_key_value", "dense"},  # BLOOM, GPT-NeoX: queries, keys and values fused
)
"""Names of the self-attention's projections, one set per family of architectures (the paper adapts these only)."""


class LlmTokenizer:
    """The LLM's own tokenizer, reduced to what the prompt builder needs."""

    def __init__(self, name_or_path: str):
        self.tokenizer = _from_pretrained(transformers.AutoTokenizer, name_or_path)
        if self.tokenizer.eos_token_id is None:
            raise UserError(f"LLM {name_or_path}: its tokenizer has no end-of-sequence token, so text cannot end")
        self.eos_id: int = self.tokenizer.eos_token_id
        self.bos_id = self._first_of(self.tokenizer.bos_token_id)
        self.unk_id = self._first_of(self.tokenizer.unk_token_id, self.tokenizer.pad_token_id)
        self.pad_id = self._first_of(self.tokenizer.pad_token_id)

    def _first_of(self, *ids: int | None) -> int:
        return next((i for i in ids if i is not None), self.eos_id)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS or EOS."""
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def load_llm(name_or_path: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """The causal LM of a folder or a hub name, all parameters frozen.

    Raises:
        UserError: neither a folder nor a name that can be loaded.
    """
    llm = _from_pretrained(transformers.AutoModelForCausalLM, name_or_path, dtype=dtype)
    return llm.requires_grad_(False)


def empty_llm(name_or_path: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """`load_llm` without weights, on the meta device: for a rank that is sent its part of them."""
    config = _from_pretrained(transformers.AutoConfig, name_or_path)
    with torch.device("meta"):
        llm = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    return llm.requires_grad_(False)


def decoder_layers(llm: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a causal LM: the members of its longest list of modules.

    Raises:
        UserError: there is no such list.
    """
    lists = [list(module) for module in llm.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(f"{type(llm).__name__} has no list of layers that could be sharded or checkpointed one by one")
    return max(lists, key=len)


def embedding_table(llm: nn.Module) -> Tensor:
    """`(V, D)` the LLM's input embeddings."""
    return cast(Any, llm).get_input_embeddings().weight


def add_lora(llm: nn.Module, r: int, alpha: float, dropout: float) -> peft.PeftModel:
    """Put LoRA of rank `r` on the query, key, value and output projections; nothing else is trained.

    Raises:
        UserError: the projections are not found; the message lists the linear layers that there are.
    """
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=cast(Any, alpha),
        lora_dropout=dropout,
        target_modules=_targets(llm),
    )
    return cast(peft.PeftModel, peft.get_peft_model(cast(Any, llm), config))


def _targets(llm: nn.Module) -> list[str]:
    linear = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    for targets in LORA_TARGETS:
        if targets <= linear:
            return sorted(targets)
    raise UserError(
        f"LoRA: {type(llm).__name__} has no self-attention projections of a known name; its linear layers are"
        f" {', '.join(sorted(linear))}. Set --model.lora_r 0 to keep the LLM frozen"
    )


def _from_pretrained(auto_class: Any, name_or_path: str, **arguments: Any) -> Any:
    missing_folder = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1  # no hub name
    if missing_folder and not Path(name_or_path).is_dir():
        raise UserError(
            f"LLM folder {name_or_path} does not exist: give a Hugging Face folder or name with --model.llm"
            " (`make llm` builds the tiny one)"
        )
    try:
        return auto_class.from_pretrained(name_or_path, **arguments)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"LLM {name_or_path} is neither a folder nor a hub model that loads here: {reason}") from error

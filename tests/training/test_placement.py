"""One rank reads the weights of a model that is whole on every rank; the others are sent them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from ranks import in_ranks
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from speechllm_pl.models.conformer import ConformerConfig
from speechllm_pl.models.llm import empty_llm, load_llm
from speechllm_pl.training import llm_finetuning
from speechllm_pl.training.llm_finetuning import LlmFinetuning

ENCODER = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64, kernel_size=5)
TIED = LlamaConfig(
    vocab_size=12,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    tie_word_embeddings=True,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("a rank that is sent its weights has read some")


def digest(tensors: Iterable[Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().float().numpy().tobytes() for t in tensors)).hexdigest()


def module_on(rank: int, ranks: int, tokenizer: str, llm: str, **settings: Any) -> LlmFinetuning:
    """As Lightning has it before `configure_model`."""
    strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * ranks, cluster_environment=LightningEnvironment())
    module = LlmFinetuning(tokenizer, llm, ENCODER, **settings)
    module._trainer = SimpleNamespace(strategy=strategy, global_rank=rank, world_size=ranks, ckpt_path=None)  # type: ignore[assignment]
    return module


def _one_reads(rank: int, ranks: int, tokenizer: str, llm: str) -> None:
    torch.manual_seed(rank)  # what is not read is drawn, and must be the first rank's too
    LlmFinetuning.load_encoder = refuse if rank else lambda self: None  # type: ignore[method-assign]
    expected = load_llm(llm, torch.bfloat16)
    if rank:
        llm_finetuning.load_llm = refuse  # type: ignore[assignment]
    module = module_on(rank, ranks, tokenizer, llm, lora_r=2, llm_dtype="bfloat16", alignment_weight=0.1)
    module.configure_model()
    model: Any = module.model
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    assert not any(tensor.is_meta for tensor in tensors.values())
    assert any("inv_freq" in name for name in tensors)
    described = {name: (str(t.dtype), t.requires_grad, digest([t])) for name, t in tensors.items()}
    modes = [part.training for part in model.modules()]
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, (described, modes))
    assert found[0] == found[rank]
    inner = model.llm.get_base_model()
    assert inner.lm_head.weight is inner.get_input_embeddings().weight
    read = [p for name, p in inner.named_parameters() if "lora_" not in name]
    assert digest(read) == digest(expected.parameters())


def test_under_ddp_one_rank_reads_and_all_have_the_same_to_the_bit(tokenizer_file: Path, tmp_path: Path) -> None:
    from conftest import save_llm_tokenizer

    LlamaForCausalLM(TIED).to(torch.bfloat16).save_pretrained(tmp_path / "llm")
    save_llm_tokenizer(tmp_path / "llm")
    in_ranks(_one_reads, 2, tmp_path, str(tokenizer_file), str(tmp_path / "llm"))


def test_quantised_weights_are_read_by_every_rank(tokenizer_file: Path, llm_for_nf4: Path) -> None:
    given = (1, 2, str(tokenizer_file), str(llm_for_nf4))
    assert module_on(*given).receives_weights
    assert not module_on(*given, quantize="nf4").receives_weights
    assert not module_on(0, *given[1:]).receives_weights


def test_a_model_without_weights_generates_and_drops_out_as_one_that_was_read(tmp_path: Path) -> None:
    llm = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2, n_positions=8))  # has dropout
    llm.generation_config.suppress_tokens = [3]
    llm.save_pretrained(tmp_path)
    read, empty = load_llm(str(tmp_path)), empty_llm(str(tmp_path))
    assert [part.training for part in empty.modules()] == [part.training for part in read.modules()]
    assert empty.generation_config.to_dict() == read.generation_config.to_dict()
    (tmp_path / "generation_config.json").unlink()
    assert empty_llm(str(tmp_path)).generation_config.suppress_tokens is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_single_process_reads_for_itself(tokenizer_file: Path, llm_folder: Path, rank: int) -> None:
    module = module_on(rank, 1, str(tokenizer_file), str(llm_folder))
    assert not module.one_rank_reads

"""Who reads weights and who is sent them; validation of a model that no rank may hold whole."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from random_encoders import save_waveform, save_whisper
from ranks import in_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from speechllm_pl.data.batch import Batch
from speechllm_pl.models.encoders import family, pretrained
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.encoders.pretrained import PretrainedEncoderConfig
from speechllm_pl.models.llm import decoder_layers, empty_llm, load_llm
from speechllm_pl.training import llm_finetuning
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.sharding import ShardedStrategy
from speechllm_pl.training.stage import Stage

StageT = TypeVar("StageT", bound=Stage)

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


def module_on(
    rank: int, ranks: int, tokenizer: str, llm: str, strategy: ParallelStrategy | None = None, **settings: Any
) -> LlmFinetuning:
    """Module of stage 2 as Lightning has it before `configure_model`, under DDP by default."""
    return placed(LlmFinetuning(tokenizer, llm=llm, **{"encoder": ENCODER} | settings), rank, ranks, strategy)


def placed(module: StageT, rank: int, ranks: int, strategy: ParallelStrategy | None = None) -> StageT:
    """Give a module the rank and the strategy that a trainer would give it."""
    strategy = strategy or DDPStrategy()
    strategy.parallel_devices = [torch.device("cpu")] * ranks
    strategy.cluster_environment = LightningEnvironment()
    trainer = {"strategy": strategy, "global_rank": rank, "world_size": ranks, "precision": "32-true"}
    module._trainer = SimpleNamespace(**trainer, ckpt_path="one to resume")  # type: ignore[assignment]
    return module


def _one_reads(rank: int, ranks: int, tokenizer: str, llm: str) -> None:
    torch.manual_seed(rank)  # what is not read is drawn, and must be the first rank's too
    LlmFinetuning.load_encoder = refuse if rank else lambda self: None  # type: ignore[method-assign]
    expected = load_llm(llm, torch.bfloat16)
    if rank:
        llm_finetuning.load_llm = refuse  # type: ignore[assignment]
    module = module_on(rank, ranks, tokenizer, llm, lora_r=2, llm_dtype="bfloat16", alignment_weight=0.1)
    module.trainer.ckpt_path = None
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


def _one_reads_the_encoder(rank: int, ranks: int, tokenizer: str, llm: str, encoder: str) -> None:
    torch.manual_seed(rank)
    described = PretrainedEncoderConfig(name=encoder, adapt="lora")
    alone = CtcPretraining(tokenizer, encoder=described)
    alone.configure_model()
    if rank:
        family.from_pretrained = refuse  # type: ignore[assignment]
        pretrained.weights_digest = refuse  # type: ignore[assignment]
    for module in (
        placed(CtcPretraining(tokenizer, encoder=described), rank, ranks),
        module_on(rank, ranks, tokenizer, llm, encoder=described),
    ):
        module.configure_model()
        assert module.encoder_digest == module.speech.digest == alone.encoder_digest != ""
        speech = module.speech.eval()
        tensors = dict(speech.named_parameters()) | dict(speech.named_buffers())
        assert not any(tensor.is_meta for tensor in tensors.values())
        found: list[Any] = [None] * ranks
        trained = {name: (tensor.requires_grad, digest([tensor])) for name, tensor in tensors.items()}
        with torch.no_grad():
            logits, _ = speech(noise(0.7, 1.9).audio)
        dist.all_gather_object(found, (trained, digest([logits]), [part.training for part in speech.modules()]))
        assert found[0] == found[rank]
        read = {name: p for name, p in alone.speech.named_parameters() if "pretrained" in name and "lora_" not in name}
        assert digest(read.values()) == digest(tensors[name] for name in read)


@pytest.mark.parametrize("save", [save_whisper, partial(save_waveform, kind="WavLMModel")], ids=["whisper", "wavlm"])
def test_one_rank_reads_a_pretrained_encoder_and_all_have_it(
    tokenizer_file: Path, llm_folder: Path, tmp_path: Path, save: Callable[[Path], Path]
) -> None:
    given = (str(tokenizer_file), str(llm_folder), str(save(tmp_path / "encoder")))
    in_ranks(_one_reads_the_encoder, 2, tmp_path, *given)


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


# validation


def noise(*seconds: float) -> Batch:
    """Utterances of no meaning, of which a random model makes texts of unequal lengths."""
    lengths = torch.tensor([int(16_000 * s) for s in seconds])
    waveforms = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        waveforms[row, :length] = torch.randn(length, generator=torch.Generator().manual_seed(length))
    return Batch(waveforms, lengths, [""] * len(seconds), ["en"] * len(seconds), [f"{s}" for s in seconds], [])


NOTHING = Batch(torch.zeros(0, 0), torch.zeros(0, dtype=torch.long), [], [], [], [])


def _in_lockstep(rank: int, ranks: int, tokenizer: str, llm: str) -> None:
    batches = [
        (noise(0.5, 2.0), noise(0.3)),
        (NOTHING, noise(1.5, 1.6, 1.7)),
        (noise(1.0), NOTHING),
        (noise(0.7), NOTHING),
    ]
    torch.manual_seed(0)
    whole = LlmFinetuning(tokenizer, llm=llm, encoder=ENCODER)
    whole.configure_model()
    whole.eval()
    torch.manual_seed(0)
    strategy = ShardedStrategy(gather_up_to_gib=1e-6)
    strategy._device_mesh = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    module = module_on(rank, ranks, tokenizer, llm, strategy)
    module.configure_model()
    module.eval()
    layers = [*module.speech.encoder.blocks, *decoder_layers(module.model.llm)]
    passes = [0]

    def at_work(layer: nn.Module, *_: Any) -> None:
        passes[0] += 1
        gathered = [other for other in layers if not any(isinstance(p, DTensor) for p in other.parameters())]
        assert gathered == [layer]

    for layer in layers:
        layer.register_forward_pre_hook(at_work)
    module.on_validation_epoch_start()
    assert module.in_lockstep
    with torch.no_grad():
        for shares in batches:
            found = module.recognized(shares[rank])
            assert found == (whole.transcribe(shares[rank]) if shares[rank].ids else {})
    module._release()
    assert all(isinstance(p, DTensor) for p in module.model.parameters())
    counts: list[Any] = [None] * ranks
    dist.all_gather_object(counts, passes[0])
    assert counts[0] == counts[1] > 4 * len(layers)


def test_a_model_too_large_to_gather_is_validated_layer_by_layer_by_all_ranks_together(
    tokenizer_file: Path, llm_folder: Path, tmp_path: Path
) -> None:
    """Their batches and texts are of unequal lengths, and some have none: each finds what the whole model finds."""
    in_ranks(_in_lockstep, 2, tmp_path, str(tokenizer_file), str(llm_folder))


# training the LLM


def _in_bf16(rank: int, ranks: int, tokenizer: str, llm: str) -> None:
    strategy = ShardedStrategy()
    strategy._device_mesh = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    module = module_on(rank, ranks, tokenizer, llm, strategy, lora_r=0, train_llm=True)
    module.trainer.precision = "bf16-mixed"
    module.configure_model()
    seen = []
    for layer in (*decoder_layers(module.model.llm), *module.speech.encoder.blocks):
        layer.register_forward_pre_hook(lambda part, _: seen.append({p.dtype for p in part.parameters()}))
    with torch.autocast("cpu", torch.bfloat16):
        terms = module.loss_terms(noise(1.0, 0.5)._replace(texts=["one two", "three"]))
    assert seen == [{torch.float32}, {torch.bfloat16}, {torch.bfloat16}]  # the encoder's block comes first
    terms["next_token_loss"].term.total.backward()
    trained = list(module.model.llm.parameters())
    assert {p.dtype for p in trained} == {cast(Tensor, p.grad).dtype for p in trained} == {torch.float32}


def test_an_llm_that_is_trained_is_gathered_in_bf16_and_keeps_weights_and_gradients_in_fp32(
    tokenizer_file: Path, llm_folder: Path, tmp_path: Path
) -> None:
    in_ranks(_in_bf16, 2, tmp_path, str(tokenizer_file), str(llm_folder))

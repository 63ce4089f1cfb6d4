import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim import muon_adamw as optimizers
from speechllm_pl.optim.muon_adamw import MuonAdamW, grouped, orthogonalised
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning


@pytest.fixture(autouse=True)
def in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply in bf16 on every machine, as torch's Muon does."""
    monkeypatch.setattr(optimizers, "bf16_is_faster", lambda device: True)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def backward(network: nn.Module, seed: int) -> None:
    network.zero_grad()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))
    network(x).square().mean().backward()


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def test_only_matrices_inside_are_set_apart(network) -> None:
    groups = grouped(network.parameters(), inside=network[1], lr=0.5)
    found = {group["hidden_matrices"]: group["params"] for group in groups}
    assert [id(p) for p in found[True]] == [id(network[1].weight)]
    assert len(found[False]) == 7
    assert {group["lr"] for group in groups} == {0.5}


def test_steps_are_those_of_muon_and_adamw_apart(network) -> None:
    """Compared with the two optimisers of torch, each on its own parameters."""
    other = copy.deepcopy(network)
    ours = MuonAdamW(
        grouped(network.parameters(), network[1]), lr=0.02, betas=(0.8, 0.9), momentum=0.7, weight_decay=0.1
    )
    rest = [p for p in other.parameters() if p is not other[1].weight]
    adamw = torch.optim.AdamW(rest, lr=0.02, betas=(0.8, 0.9), weight_decay=0.1, fused=True)
    muon = torch.optim.Muon([other[1].weight], lr=0.02, momentum=0.7, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        backward(network, step)
        backward(other, step)
        ours.step()
        adamw.step()
        muon.step()
    for found, expected in zip(weights(network), weights(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16)])
def test_orthogonalised_together_as_each_by_its_singular_value_decomposition(shape, bf16, monkeypatch) -> None:
    """Muon's iterations leave singular values within a third or so of one: as far from the exact factor, no further."""
    monkeypatch.setattr(optimizers, "bf16_is_faster", lambda device: bf16)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices)
    assert found.dtype == (torch.bfloat16 if bf16 else torch.float32)
    for matrix, other in zip(matrices, found.float(), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ other @ right.T  # diagonal where singular vectors are kept
        torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=0.05)
        assert inside.diagonal().min() > 0.6
        assert inside.diagonal().max() < 1.3


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    numbers = []

    def counting(own: torch.Tensor) -> torch.Tensor:
        numbers.append(len(own))
        return orthogonalised(own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "bf16_is_faster", lambda device: True)
        patch.setattr(optimizers, "orthogonalised", counting)
        found = {"shared": optimizers.shared(two_stacks()), "whole": stepped(fully_shard=None)}
        found["sharded"] = stepped(fully_shard)
    torch.save({**found, "numbers": numbers}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def two_stacks() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((3, 8, 12), (2, 12, 8))]


def stepped(fully_shard: Callable[[nn.Module], Any] | None) -> list[torch.Tensor]:
    """The weights of a network after three steps on the same gradients on every rank."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    if fully_shard is not None:
        fully_shard(network)
    optimizer = MuonAdamW(grouped(network.parameters(), network), lr=0.02)
    for step in range(3):
        backward(network, step)
        optimizer.step()
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in weights(network)]


def test_ranks_share_the_work_and_agree_to_the_bit(two_ranks) -> None:
    """Three matrices on two ranks, which does not come out even, and two; then three steps of two of other shapes."""
    for found in two_ranks:
        assert found["numbers"] == [2, 1] + 6 * [1]
        whole = [orthogonalised(stack) for stack in two_stacks()]
        torch.testing.assert_close(found["shared"], whole, rtol=0, atol=0)
        torch.testing.assert_close(found["whole"], stepped(fully_shard=None), rtol=0, atol=0)


def test_sharded_weights_move_as_whole_ones_do(two_ranks) -> None:
    """But for the order of sums in bf16: three steps of 0.02."""
    for found in two_ranks:
        torch.testing.assert_close(found["sharded"], found["whole"], rtol=0, atol=2e-3)


def test_resumed_from_its_state_it_goes_on_as_before(network) -> None:
    optimizer = MuonAdamW(grouped(network.parameters(), network[1]), lr=0.02)
    for step in range(3):
        backward(network, step)
        optimizer.step()
    resumed_network = copy.deepcopy(network)
    resumed = MuonAdamW(grouped(resumed_network.parameters(), resumed_network[1]), lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        for each, its in ((network, optimizer), (resumed_network, resumed)):
            backward(each, step)
            its.step()
    for found, expected in zip(weights(resumed_network), weights(network), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_copy_steps_as_the_original_does(network) -> None:
    optimizer = MuonAdamW(grouped(network.parameters(), network[1]), lr=0.02)
    backward(network, 0)
    optimizer.step()
    both = {"network": network, "optimizer": optimizer}
    other = copy.deepcopy(both)
    for each in (both, other):
        backward(each["network"], 1)
        each["optimizer"].step()
    for found, expected in zip(weights(other["network"]), weights(network), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_group_that_comes_later_is_trained_too(network, hidden) -> None:
    late = nn.Parameter(torch.ones(3, 3))
    optimizer = MuonAdamW(grouped(network.parameters(), network[1]), lr=0.02)
    optimizer.add_param_group({"params": [late], "hidden_matrices": hidden})
    late.grad = torch.eye(3)
    optimizer.step()
    assert (late.diagonal() < 0.999).all()  # weight decay alone gives 0.9998


def test_a_scheduler_reaches_both_parts(network) -> None:
    optimizer = MuonAdamW(grouped(network.parameters(), network[1]), lr=0.02)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)  # sets the first step's rate when it is made
    before = weights(network)
    backward(network, 0)
    optimizer.step()
    for found, expected in zip(weights(network), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("inside", [nn.Identity(), None], ids=["no hidden matrix", "nothing else"])
def test_one_kind_of_parameter_is_enough(inside) -> None:
    layer = nn.Linear(3, 3, bias=False)
    optimizer = MuonAdamW(grouped(layer.parameters(), inside or layer), lr=0.1)
    before = layer.weight.detach().clone()
    loss = layer(torch.ones(2, 3)).square().sum()
    assert optimizer.step(partial(_closure, loss)) == pytest.approx(loss.item())
    assert not torch.equal(layer.weight, before)


def _closure(loss: torch.Tensor) -> float:
    loss.backward()
    return loss.item()


ENCODER = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64)
MATRICES = {
    f"model.speech.encoder.blocks.0.{name}.weight"
    for name in (
        *("attention.query_key_value", "attention.output", "convolution.gate", "convolution.output"),
        *("feed_forward.1", "feed_forward.3"),
    )
}


@pytest.mark.parametrize("stage", ["ctc", "llm"])
def test_muon_is_given_the_matrices_of_the_encoder_blocks(stage, ctc_tokenizer, llm_folder) -> None:
    optimizer = partial(MuonAdamW, lr=0.4)
    if stage == "ctc":
        module, lr = CtcPretraining(ctc_tokenizer, encoder=ENCODER, optimizer=optimizer), 0.4
    else:
        described = {"llm": str(llm_folder), "encoder": ENCODER}
        module = LlmFinetuning(ctc_tokenizer, encoder_lr_factor=0.25, optimizer=optimizer, **described)
        lr = 0.1
    module.configure_model()
    names = {id(p): name for name, p in module.named_parameters()}
    groups = module.make_optimizer(module.parameter_groups()).param_groups
    hidden = [group for group in groups if group["hidden_matrices"]]
    assert [group["lr"] for group in hidden] == [pytest.approx(lr)]
    found = {names[id(p)].replace("model.encoder", "model.speech.encoder") for p in hidden[0]["params"]}
    assert found == MATRICES
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in module.parameters())

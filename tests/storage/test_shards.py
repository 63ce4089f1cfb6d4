"""Folders of shards, as one process without a process group writes and reads them; ranks are in test_sharding."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.shards import (
    MODEL,
    OPTIMIZER,
    join_shards,
    load_shards,
    optimizer_groups,
    optimizer_tensors,
    refuse_other_keys,
    refuse_other_shapes,
    save_shards,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed")  # one process is enough


@pytest.fixture
def trained() -> tuple[dict[nn.Parameter, str], torch.optim.Optimizer]:
    """Three parameters in two groups after a step of Adam, the last of them without a gradient."""
    torch.manual_seed(0)
    names = {nn.Parameter(torch.randn(2, 3)): "a", nn.Parameter(torch.randn(4)): "b", nn.Parameter(torch.ones(1)): "c"}
    a, b, c = names
    optimizer = torch.optim.Adam([{"params": [b]}, {"params": [a, c], "lr": 0.5}])
    (a.square().sum() + b.sum()).backward()
    optimizer.step()
    return names, optimizer


def test_one_file_and_shards_hold_the_same(trained: tuple, tmp_path: Path) -> None:
    names, optimizer = trained
    single = optimizer.state_dict()
    tensors = {MODEL + name: parameter.detach() for parameter, name in names.items()}
    tensors |= optimizer_tensors(names, optimizer)
    record = {"optimizer_states": [{"param_groups": optimizer_groups(names, optimizer)}]}
    save_shards(tmp_path / "a.ckpt", record, tensors)
    found = torch.load(tmp_path / "a.ckpt" / "record.pt", weights_only=True)
    join_shards(tmp_path / "a.ckpt", found, optimizer=True)
    assert found["state_dict"].keys() == {"a", "b", "c"}
    assert all(torch.equal(found["state_dict"][name], parameter) for parameter, name in names.items())
    (saved,) = found["optimizer_states"]
    assert saved["param_groups"] == single["param_groups"]
    assert saved["state"].keys() == single["state"].keys() == {0, 1}
    for place, state in single["state"].items():
        assert all(torch.equal(saved["state"][place][key], value) for key, value in state.items())
    by_name = optimizer_tensors(names, optimizer, single)
    assert by_name.keys() == {name for name in tensors if name.startswith(OPTIMIZER)}


def test_tensors_are_filled_in_place_and_the_optimisers_only_where_both_have_them(tmp_path: Path) -> None:
    save_shards(tmp_path / "a.ckpt", {}, {f"{MODEL}w": torch.arange(5.0), f"{OPTIMIZER}w/step": torch.ones(())})
    weights, steps = torch.zeros(5), torch.zeros(())
    load_shards(tmp_path / "a.ckpt", {f"{MODEL}w": weights})
    assert torch.equal(weights, torch.arange(5.0))
    load_shards(tmp_path / "a.ckpt", {f"{MODEL}w": weights, f"{OPTIMIZER}w/step": steps})
    assert steps == 1
    with pytest.raises(UserError, match=f"lacks {MODEL}v"):
        load_shards(tmp_path / "a.ckpt", {f"{MODEL}v": weights})


def test_keys_and_shapes_that_differ_are_named() -> None:
    refuse_other_keys({"a", "b"}, ["b", "a"])
    with pytest.raises(UserError, match=r"lacks a, b, c \(4 in all\)"):
        refuse_other_keys(set("abcd"), [])
    with pytest.raises(UserError, match=r"has unexpected z \(1 in all\)"):
        refuse_other_keys({"a"}, ["a", "z"])
    ours: dict[str, Tensor] = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    refuse_other_shapes(ours, {"a": torch.ones(2, 3), "z": torch.zeros(9)})
    with pytest.raises(UserError, match=r"a has the shape \(3, 2\), but its settings make it \(2, 3\)"):
        refuse_other_shapes(ours, {"a": torch.ones(3, 2)})

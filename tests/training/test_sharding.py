"""Sharded weights and checkpoints: what one rank reads all have, what two wrote others resume, nothing frozen moves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import command, finish, rows
from ranks import in_ranks
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from speechllm_pl.models.llm import add_lora, decoder_layers, empty_llm, load_llm
from speechllm_pl.storage.checkpoints import newest_complete, read_checkpoint
from speechllm_pl.storage.shards import MODEL, join_shards, load_shards, optimizer_tensors, save_shards
from speechllm_pl.training.sharding import gather, release, shard

ADAM = ("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "3e-3")
SHORT = ("--trainer.max_epochs", 99, "--data.max_duration", 1.6, *ADAM)  # seven batches
EACH_STEP = ("--last_checkpoints.every_n_steps", 1)
WAYS = {
    "one": {"more": ("--trainer.accumulate_grad_batches", 2)},
    "one, one batch a step": {},
    "ddp on 2": {"trainer": "ddp", "devices": 2},
    "fsdp on 1": {"trainer": "fsdp"},
    "fsdp on 2": {"trainer": "fsdp", "devices": 2},
    "fsdp on 4": {"trainer": "fsdp", "devices": 4},
}

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`train(way, resumed)` → the folder of a stage-1 run of three steps, perhaps from the second of another run on."""

    def run(way: str, resumed: Path | None = None, steps: int = 3) -> Path:
        folder = tmp_path_factory.mktemp("run")
        start = () if resumed is None else ("--ckpt_path", resumed / "checkpoints" / "step=00000002.ckpt")
        settings = dict(WAYS[way])
        more = (*SHORT, *EACH_STEP, "--trainer.max_steps", steps, *start, *settings.pop("more", ()))
        finish(command("pretrain_ctc", small_config, folder, *more, **settings), ranks=settings.get("devices", 1))
        return folder

    return run


@pytest.fixture(scope="module")
def saved(train: Train) -> Path:
    """A run of two sharded ranks; its second step is four of seven batches on."""
    return train("fsdp on 2")


def ids(run: Path, ranks: int, until: int = 99) -> list[str]:
    """Ids of the first epoch, over all ranks, up to a step."""
    found = [row for rank in range(ranks) for row in rows(run, rank) if row["epoch"] == 0 and row["step"] <= until]
    return [id_ for row in found for id_ in row["ids"]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    path = newest_complete(run / "checkpoints")
    assert path is not None
    return read_checkpoint(path)["state_dict"]


@pytest.mark.parametrize(("way", "ranks"), [("fsdp on 1", 1), ("fsdp on 4", 4)])
def test_another_number_of_ranks_goes_on_with_just_the_rest(train: Train, saved: Path, way: str, ranks: int) -> None:
    done = ids(saved, 2, until=2)
    rest = ids(train(way, saved, steps=6), ranks)
    assert len(done) == len(set(done))
    assert set(done) | set(rest) == {f"train-{number}" for number in range(8)}
    assert set(done).isdisjoint(rest) == (ranks == 1)  # four ranks, three batches left: one is repeated


def test_sharded_and_single_checkpoints_resume_each_other(train: Train, saved: Path) -> None:
    whole, single = weights(saved), train("one")
    resumed = {
        "sharded, by shards": train("fsdp on 2", saved),
        "sharded, by copies": train("ddp on 2", saved),
        "single, by shards": train("fsdp on 2", single),
    }
    for way, run in resumed.items():
        found = weights(run)
        assert set(found) == set(whole)
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4, msg=f"{way}: {name}")
    before = read_checkpoint(saved / "checkpoints" / "step=00000002.ckpt")["state_dict"]
    assert any((before[name] - value).abs().max() > 1e-3 for name, value in whole.items())


def test_what_shards_hold_can_be_evaluated_averaged_and_consolidated(
    speechllm, corpus: Path, saved: Path, tmp_path: Path
) -> None:
    checkpoint = newest_complete(saved / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.is_dir()
    assert speechllm("consolidate", "--checkpoint", checkpoint, "--output", tmp_path / "folder").status == 0
    given = ("--cuts", corpus / "test.jsonl.gz", "--output")
    scores = []
    for path in (checkpoint, tmp_path / "folder"):
        assert speechllm("evaluate", "--checkpoint", path, *given, tmp_path / "scores").status == 0
        scores.append((tmp_path / "scores" / "hypotheses.jsonl").read_text())
    assert scores[0] == scores[1]
    state, again = read_checkpoint(checkpoint)["state_dict"], read_checkpoint(tmp_path / "folder")["state_dict"]
    assert set(state) == set(again)
    assert all(torch.equal(value, again[name]) for name, value in state.items())


# one process group in a test


def _train_sharded(rank: int, ranks: int, folder: str) -> None:
    whole = load_llm(folder, torch.bfloat16)
    llm = load_llm(folder, torch.bfloat16) if rank == 0 else empty_llm(folder, torch.bfloat16)
    model = add_lora(llm, r=4, alpha=8, dropout=0.0)
    shard(model, decoder_layers(model), init_device_mesh("cpu", (ranks,)))
    assert all(isinstance(p, DTensor) and not p.is_meta for p in model.parameters())
    local = sum(p.to_local().numel() for p in model.parameters())
    assert local < 0.6 * sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids = torch.arange(6)[None] + rank
    with torch.no_grad():
        expected = whole(ids).logits
    losses = []
    for _ in range(2):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]  # in bf16, what LoRA learnt is seen at once
    frozen = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            former = frozen[name.removeprefix("base_model.model.").replace(".base_layer", "")]
            assert torch.equal(parameter.full_tensor(), former), name  # type: ignore[attr-defined]
        else:
            assert parameter.dtype == torch.float32
    gather(model)
    with torch.no_grad(), model.disable_adapter():
        for _ in range(rank + 1):  # other numbers of forward passes on each rank, and none waits
            torch.testing.assert_close(model(ids).logits, expected)
    release(model)
    assert all(isinstance(p, DTensor) for p in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_weights_come_from_one_rank_and_stay_as_they_were(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "llm")
    in_ranks(_train_sharded, 2, tmp_path, str(tmp_path / "llm"))


# within nodes, and alike on all of them


def _layouts(rank: int, ranks: int, folder: Path) -> None:
    flat = init_device_mesh("cpu", (ranks,))
    hybrid = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replicate", "shard"))

    def trained(mesh: DeviceMesh, seed: int) -> dict[str, torch.Tensor]:
        """LoRA and the optimiser's state after a step, as they lie."""
        torch.manual_seed(seed)
        read = load_llm if rank == 0 else empty_llm
        model = add_lora(read(str(folder / "llm")), r=4, alpha=8, dropout=0.0)
        shard(model, decoder_layers(model), mesh)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
        ids = torch.arange(6)[None] + rank + seed
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        state = {MODEL + name: value for name, value in model.state_dict().items() if "lora_" in name}
        return state | optimizer_tensors({p: name for name, p in model.named_parameters()}, optimizer)

    def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}

    first = trained(hybrid, seed=1)
    halves = [t.to_local().numel() / t.numel() for t in first.values() if isinstance(t, DTensor)]
    assert halves == [0.5] * len(halves)
    save_shards(folder / "hybrid", {}, first)
    expected = whole(first)
    for mesh, source, target in ((flat, "hybrid", "flat"), (hybrid, "flat", "again")):
        tensors = trained(mesh, seed=2)
        assert not all(torch.equal(value, expected[name]) for name, value in whole(tensors).items())
        load_shards(folder / source, tensors)
        for name, value in whole(tensors).items():
            assert torch.equal(value, expected[name]), (target, name)
        save_shards(folder / target, {}, tensors)
    if rank == 0:
        torch.save(expected, folder / "expected.pt")


def test_a_checkpoint_of_two_nodes_is_read_by_one_rank_by_four_and_by_two_nodes_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=41, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    in_ranks(_layouts, 4, tmp_path, tmp_path)
    expected = torch.load(tmp_path / "expected.pt")
    for name in ("hybrid", "flat", "again"):
        found: dict = {}
        join_shards(tmp_path / name, found, optimizer=True)
        state = {MODEL + key: value for key, value in found["state_dict"].items()}
        assert set(state) == {key for key in expected if key.startswith(MODEL)}
        assert all(torch.equal(value, expected[key]) for key, value in state.items())

"""Damage to what was saved is named when it is read, in every form that a checkpoint has."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_ranks
from test_checkpoints import save

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import read_checkpoint
from speechllm_pl.storage.consolidated import WEIGHTS, save_consolidated
from speechllm_pl.storage.shards import MODEL, OPTIMIZER, load_shards, save_shards
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining

DAMAGE = "damaged or was edited"
BROKEN = "head.weight"


@pytest.fixture
def whole(ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(CtcPretraining(ctc_tokenizer, encoder=small_encoder), tmp_path / "whole.ckpt")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    found = read_checkpoint(whole)
    save_consolidated(tmp_path / "folder", found["speechllm"], found["state_dict"])
    return tmp_path / "folder"


@pytest.fixture
def shards(whole: Path, tmp_path: Path) -> Path:
    found = read_checkpoint(whole)
    record = {key: value for key, value in found.items() if key not in ("state_dict", "digests")}
    tensors = {MODEL + name: value for name, value in found["state_dict"].items()}
    save_shards(tmp_path / "shards", record, tensors)
    return tmp_path / "shards"


def flipped(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << random.Random(byte).randrange(8)
    path.write_bytes(content)


def weights_begin(path: Path, tensor: torch.Tensor) -> int:
    """Place of a tensor's bytes in a file."""
    return path.read_bytes().index(tensor.numpy().tobytes())


@pytest.mark.parametrize("form", ["whole", "folder", "shards"])
def test_what_is_whole_is_read_without_a_word(
    form: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    path = request.getfixturevalue(form)
    caplog.clear()
    caplog.set_level("INFO")
    Recognizer.load(path)
    assert caplog.messages == []


@pytest.mark.parametrize("form", ["whole", "folder", "shards"])
def test_a_flipped_bit_in_a_tensor_is_named(form: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(form)
    tensor = read_checkpoint(path)["state_dict"]["model." + BROKEN]
    file = {"whole": path, "folder": path / WEIGHTS, "shards": next(path.glob("*.safetensors"), path)}[form]
    flipped(file, weights_begin(file, tensor) + 40)
    with pytest.raises(UserError, match=rf"{form}.* is {DAMAGE}: .*({BROKEN}|safetensors)") as caught:
        Recognizer.load(path)
    assert "delete it" in str(caught.value)


@pytest.mark.parametrize("form", ["whole", "folder", "shards"])
def test_no_flipped_bit_passes_for_what_was_saved(form: str, request: pytest.FixtureRequest) -> None:
    """Anywhere in any file: it is refused in one line, or all is as it was."""
    path: Path = request.getfixturevalue(form)
    before = read_checkpoint(path)["state_dict"]
    files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    chance, refused = random.Random(1), 0
    for number in range(40):
        file = files[number % len(files)]
        content = file.read_bytes()
        flipped(file, chance.randrange(len(content)))
        try:
            found = read_checkpoint(path, optimizer=number % 4 < 2)["state_dict"]  # mapped, and not
        except UserError:
            refused += 1
        else:
            assert set(found) == set(before)
            assert all(torch.equal(found[name], value) for name, value in before.items())
        file.write_bytes(content)
    assert refused > 25


def test_an_edited_setting_is_named(whole: Path, folder: Path, tmp_path: Path) -> None:
    found = torch.load(whole, weights_only=True)
    found["speechllm"]["settings"]["encoder"]["num_heads"] = 4
    torch.save(found, tmp_path / "edited.ckpt")
    with pytest.raises(UserError, match=rf"edited\.ckpt is {DAMAGE}: speechllm "):
        Recognizer.load(tmp_path / "edited.ckpt")
    config = folder / "speechllm.json"
    config.write_text(re.sub('"num_heads": 2', '"num_heads": 4', config.read_text()))
    with pytest.raises(UserError, match=rf"folder is {DAMAGE}: speechllm "):
        Recognizer.load(folder)


def test_an_earlier_checkpoint_is_read_and_told(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = torch.load(whole, weights_only=True)
    found.pop("digests", None)
    torch.save(found, tmp_path / "earlier.ckpt")
    caplog.set_level("INFO")
    Recognizer.load(tmp_path / "earlier.ckpt")
    (told,) = (message for message in caplog.messages if "earlier.ckpt" in message)
    assert "without digests" in told


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(whole: Path, tmp_path: Path, value: float) -> None:
    found: dict[str, Any] = torch.load(whole, weights_only=True)
    found["state_dict"]["model." + BROKEN][3, 2] = value
    AtomicCheckpointIO().save_checkpoint(found, tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match=rf"nan\.ckpt: model\.{BROKEN} .*not finite"):
        Recognizer.load(tmp_path / "nan.ckpt")
    with pytest.raises(UserError, match="not finite"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "nan.ckpt")


def _damaged_shards(rank: int, ranks: int, folder: Path) -> None:
    tensors = {MODEL + "a": torch.arange(6.0), OPTIMIZER + "a/b": torch.ones(3)}
    save_shards(folder / "shards", {}, tensors)
    load_shards(folder / "shards", tensors)
    if rank == 0:
        file = next((folder / "shards").glob("*.safetensors"))
        flipped(file, file.stat().st_size - 2)
    torch.distributed.barrier()
    with pytest.raises(UserError, match=DAMAGE):  # on both, or one would wait for ever
        load_shards(folder / "shards", tensors)
    tensors[MODEL + "a"][1] = torch.nan
    save_shards(folder / "nan", {}, tensors)
    with pytest.raises(UserError, match=f"{MODEL}a .*not finite"):
        load_shards(folder / "nan", tensors)


def test_all_ranks_refuse_damaged_shards(tmp_path: Path) -> None:
    in_ranks(_damaged_shards, 2, tmp_path, tmp_path)

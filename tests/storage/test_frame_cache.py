"""Frames come back as they were added, or not at all: from shards of several processes, killed ones among them."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage import frame_cache
from speechllm_pl.storage.frame_cache import FrameCache


def frames(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(5 + seed, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def write(folder: Path, *seeds: int) -> Path:
    cache = FrameCache(folder)
    for seed in seeds:
        cache.add(f"u{seed}", frames(seed))
    cache.flush()
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_frames_are_read_as_they_were_computed(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = FrameCache(tmp_path / "frames")
    for seed in range(3):
        cache.add(f"u{seed}", frames(seed, dtype).t().contiguous().t())  # laid out in another order
    assert "u2" in cache
    cache.flush()
    for found in (cache, FrameCache(tmp_path / "frames")):
        assert "u2" in found
        assert "u3" not in found
        for seed in range(3):
            read = found.read(f"u{seed}")
            assert read.dtype == dtype
            assert torch.equal(read, frames(seed, dtype))


def test_a_shard_is_written_as_soon_as_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_cache, "SHARD_BYTES", 2 * frames(1).nbytes)
    cache = FrameCache(tmp_path)
    written = []
    for _ in range(4):
        cache.add(f"u{len(written)}", frames(1))
        written.append(len(list(tmp_path.glob("*.safetensors"))))
    assert written == [0, 1, 1, 2]


def test_shards_of_several_processes_stand_side_by_side(tmp_path: Path) -> None:
    first, second = FrameCache(tmp_path), FrameCache(tmp_path)
    for cache, seed in ((first, 0), (second, 1)):
        cache.add(f"u{seed}", frames(seed))
        cache.add("both", frames(2))
    first.flush()
    second.flush()
    found = FrameCache(tmp_path)
    assert [torch.equal(found.read(name), frames(seed)) for seed, name in enumerate(("u0", "u1", "both"))] == [True] * 3


def killed_before_the_end_of_a_write(folder: Path) -> None:
    write(folder, 0)
    os.replace = lambda *_: os._exit(9)  # type: ignore[assignment]
    write(folder, 1)


def test_what_a_killed_process_was_writing_is_not_taken_for_frames(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=killed_before_the_end_of_a_write, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(os.listdir(tmp_path)) == 2  # a shard, and what never became one
    found = FrameCache(tmp_path)
    assert "u0" in found
    assert "u1" not in found
    write(tmp_path, 1)
    assert torch.equal(FrameCache(tmp_path).read("u1"), frames(1))


def test_a_shard_that_is_cut_short_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, 0, 1)
    found = FrameCache(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    for opened in (lambda: FrameCache(tmp_path), lambda: found.read("u0")):
        with pytest.raises(UserError, match=f"{path} are damaged: delete this file"):
            opened()


def test_frames_that_are_not_those_written_are_never_read(tmp_path: Path) -> None:
    path = write(tmp_path, 0, 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last utterance
    path.write_bytes(content)
    found = FrameCache(tmp_path)
    assert torch.equal(found.read("u0"), frames(0))
    with pytest.raises(UserError, match=f"{path} are damaged: delete this file"):
        found.read("u1")


def test_frames_that_are_not_there_and_a_folder_that_is_a_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"not in {tmp_path}"):
        FrameCache(tmp_path).read("u0")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"frames cannot be written to .*file"):
        write(tmp_path / "file", 0)

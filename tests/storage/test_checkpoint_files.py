"""Files and folders of checkpoints: put in place, given second names, removed, and errors named."""

import os
from pathlib import Path

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoint_files import link, named_errors, partial_name, remove, rename


def made(path: Path, content: str, kind: str) -> Path:
    if kind == "folder":
        path.mkdir()
        (path / "inside").write_text(content)
    else:
        path.write_text(content)
    return path


def content(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("former", ["none", "file", "folder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_checkpoint_replaces_a_former_one_of_either_kind(tmp_path: Path, kind: str, former: str) -> None:
    target = tmp_path / "a.ckpt"
    if former != "none":
        made(target, "former", former)
    rename(made(partial_name(target), "new", kind), target)
    assert content(target) == "new"
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_stays_when_the_first_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise OSError

    if not links:
        monkeypatch.setattr("os.link", no_links)
    source, target = made(tmp_path / "a.ckpt", "weights", kind), made(tmp_path / "best.ckpt", "former", kind)
    link(source, target)
    inside = "inside" if kind == "folder" else ""
    assert (target / inside).samefile(source / inside) == links
    named = target.stat().st_ino
    link(source, target)  # again: nothing is lost where both are one file
    assert not links or target.stat().st_ino == named  # who reads a folder keeps it
    remove(source)
    assert content(target) == "weights"
    assert os.listdir(tmp_path) == ["best.ckpt"]


@pytest.mark.parametrize("name", ["a.ckpt", ".a.ckpt.partial"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_is_left_of_what_is_removed(tmp_path: Path, kind: str, name: str) -> None:
    path = made(tmp_path / name, "x", kind)
    remove(path)
    remove(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("write fell short"),
        CheckpointException("", {1: (OSError("full"), [])}),
    ],  # type: ignore
    ids=repr,
)
def test_errors_of_writing_name_the_checkpoint_and_the_remedy(error: BaseException) -> None:
    with (
        pytest.raises(UserError, match=r"^checkpoint a\.ckpt could not be written .*: free disk space"),
        named_errors(Path("a.ckpt")),
    ):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("Connection closed by peer"), ValueError("other")], ids=repr)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), named_errors(Path("a.ckpt")):
        raise error

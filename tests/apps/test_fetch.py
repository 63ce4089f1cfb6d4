"""An LLM and an encoder of the hub are fetched once; what is here already asks for no network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from speechllm_pl.apps.fetch import fetch
from speechllm_pl.apps.program_options import FetchOptions
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.checkpoints import RECORD


class Hub:
    """A hub of which a repository has these files; remembers what was asked for."""

    def __init__(self, folder: Path, *names: str):
        self.folder, self.names = folder, names
        self.asked: list[tuple[str, str | None]] = []

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        self.asked.append((name, revision))
        chosen = filter_repo_objects(self.names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in chosen:
            (self.folder / file).parent.mkdir(exist_ok=True)
            (self.folder / file).touch()
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def of(*names: str) -> Hub:
        made = Hub(tmp_path, *names)
        monkeypatch.setattr("speechllm_pl.apps.fetch.snapshot_download", made.snapshot_download)
        return made

    return of


def configuration(run: str = "nosuch", encoder: dict[str, str] | None = None, **model: Any) -> Any:
    from jsonargparse import Namespace

    if encoder is not None:
        model["encoder"] = Namespace(class_path="PretrainedEncoderConfig", init_args=Namespace(**encoder))
    return Namespace(run=run, ckpt_path=None, model=Namespace(init_args=Namespace(**model)))


def test_settings_and_one_kind_of_weights_are_fetched(hub: Callable[..., Hub], tmp_path: Path) -> None:
    again = ("original/params.json", "consolidated.safetensors", "adapter_model.safetensors")
    both = hub("config.json", "tokenizer.model", "a.safetensors", "a.bin", "a.h5", *again)
    fetch(FetchOptions(), configuration(llm="org/name", llm_revision="abc"))
    assert both.asked == [("org/name", "abc")]
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "tokenizer.model", "a.safetensors"}


def test_a_run_that_goes_on_has_its_commit_fetched(hub: Callable[..., Hub], tmp_path: Path) -> None:
    """The one that it began with, though the hub has a newer one."""
    encoder = {"class_path": "PretrainedEncoderConfig", "init_args": {"name": "org/encoder", "revision": "fed"}}
    settings = {"tokenizer": b"model", "encoder": encoder, "llm": "org/name", "llm_digest": "", "llm_revision": "abc"}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save(
        {RECORD: {"stage": "llm", "settings": settings}}, tmp_path / "run" / "checkpoints" / "step=00000001.ckpt"
    )
    files = hub("config.json", "a.safetensors")
    run = str(tmp_path / "run")
    for model in ({"llm": "org/name"}, {"llm": "org/other"}, {"llm": "org/name", "llm_revision": "def"}):
        fetch(FetchOptions(), configuration(run, **model))
    assert files.asked == [("org/name", "abc"), ("org/other", None), ("org/name", "def")]
    fetch(FetchOptions(), configuration(run, encoder={"name": "org/encoder"}))
    assert files.asked[3:] == [("org/encoder", "fed")]


def test_an_encoder_is_fetched_beside_the_llm_or_alone(hub: Callable[..., Hub], llm_folder: Path, capsys) -> None:
    files = hub("config.json", "a.safetensors")
    fetch(FetchOptions(), configuration(encoder={"name": "org/encoder", "revision": "abc"}))
    fetch(FetchOptions(), configuration(encoder={"name": "org/encoder"}, llm="org/name"))
    fetch(FetchOptions(), configuration(encoder={"name": str(llm_folder)}, llm=str(llm_folder)))
    fetch(FetchOptions(), configuration(encoder={"dim": "32"}))  # of the conformer
    assert files.asked == [("org/encoder", "abc"), ("org/name", None), ("org/encoder", None)]
    assert capsys.readouterr().out.count("org/encoder is in ") == 2


def test_an_older_model_has_weights_of_one_kind_only(hub: Callable[..., Hub], tmp_path: Path) -> None:
    hub("config.json", "a.bin", "a.h5")
    fetch(FetchOptions(), configuration(llm="org/name"))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "a.bin"}


def test_a_folder_and_a_stage_without_an_llm_need_nothing(hub: Callable[..., Hub], llm_folder: Path) -> None:
    nothing = hub()
    fetch(FetchOptions(), configuration(llm=str(llm_folder)))
    fetch(FetchOptions(), configuration())
    assert not nothing.asked


def test_no_network_is_said_in_a_line(hub: Callable[..., Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network here\nand more")

    monkeypatch.setattr("speechllm_pl.apps.fetch.snapshot_download", fail)
    with pytest.raises(UserError, match=r"LLM org/name .* no network here; run the same.*\(LLM=\)"):
        fetch(FetchOptions(), configuration(llm="org/name"))
    with pytest.raises(UserError, match=r"encoder org/name .* no network here; run the same.*\(ENCODER=\)"):
        fetch(FetchOptions(), configuration(encoder={"name": "org/name"}))

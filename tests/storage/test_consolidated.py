"""A trained model as one folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.consolidated import (
    CONFIG,
    LLM,
    RECORD,
    TOKENIZER,
    WEIGHTS,
    is_consolidated,
    read_consolidated,
    save_consolidated,
)

RECORDED = {
    "stage": "llm",
    "precision": "bf16-mixed",
    "languages": ["de"],
    "skipped_steps": 3,
    "settings": {"tokenizer": b"\x00model", "llm": "org/name", "lora_r": 0, "instruction": "größe"},
}
STATE = {"model.a": torch.arange(6.0).reshape(2, 3), "model.b": torch.arange(6.0).reshape(2, 3).T}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_consolidated(tmp_path / "whole", RECORDED, STATE)
    return tmp_path / "whole"


def test_what_is_read_is_what_was_saved_without_what_training_alone_needs(folder: Path) -> None:
    found = read_consolidated(folder)
    assert found[RECORD] == {name: value for name, value in RECORDED.items() if name != "skipped_steps"}
    assert found["state_dict"].keys() == STATE.keys()
    assert all(torch.equal(found["state_dict"][name], STATE[name]) for name in STATE)
    assert found["optimizer_states"] == []


def test_its_files_are_read_by_anyone(folder: Path) -> None:
    assert torch.equal(load_file(folder / WEIGHTS)["model.b"], STATE["model.b"])
    assert (folder / TOKENIZER).read_bytes() == b"\x00model"
    assert json.loads((folder / CONFIG).read_text())["settings"]["instruction"] == "größe"
    assert "größe" in (folder / CONFIG).read_text()


@pytest.mark.parametrize("file", [CONFIG, TOKENIZER])
def test_an_edited_file_is_refused(folder: Path, file: str) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes().replace(b"de", b"en").replace(b"model", b"nodel"))
    with pytest.raises(UserError, match="damaged or was edited"):
        read_consolidated(folder)


def test_the_llm_may_have_another_place(folder: Path) -> None:
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("org/name", "/elsewhere"))
    assert read_consolidated(folder)[RECORD]["settings"]["llm"] == "/elsewhere"


def test_a_merged_llm_lies_inside_and_is_found_there_wherever_the_folder_is(tmp_path: Path) -> None:
    class Part:
        def save_pretrained(self, folder: Path) -> None:
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text("{}")

    save_consolidated(tmp_path / "whole", RECORDED, STATE, llm=(Part(),))
    (tmp_path / "whole").rename(tmp_path / "moved")
    settings = read_consolidated(tmp_path / "moved")[RECORD]["settings"]
    assert settings["llm"] == str(tmp_path / "moved" / LLM)
    assert settings["llm_digest"]


def test_it_replaces_one_of_its_kind_and_an_empty_folder_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    changed: dict[str, Any] = {**RECORDED, "precision": "32-true"}
    save_consolidated(folder, changed, STATE)
    assert read_consolidated(folder)[RECORD]["precision"] == "32-true"
    (tmp_path / "empty").mkdir()
    save_consolidated(tmp_path / "empty", RECORDED, STATE)
    assert is_consolidated(tmp_path / "empty")
    for other in (tmp_path / "other", tmp_path / "file"):
        (other / "mine").mkdir(parents=True) if other.name == "other" else other.write_text("mine")
        with pytest.raises(UserError, match="is not such a folder"):
            save_consolidated(other, RECORDED, STATE)
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]

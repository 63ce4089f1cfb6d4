"""An LLM's files: which they are, and whether they are those of the training."""

import hashlib
from pathlib import Path

import pytest
from test_checkpoints import wide_llm  # noqa: F401 (fixture)

from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.pretrained_files import refuse_other_weights, weights_digest


def test_the_digest_tells_weights_apart_and_is_empty_for_hub_names_that_are_not_here(
    wide_llm: Path,  # noqa: F811
    llm_folder: Path,
) -> None:
    assert weights_digest(str(wide_llm)) != weights_digest(str(llm_folder))
    before = weights_digest(str(wide_llm))
    weights = wide_llm / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert weights_digest(str(wide_llm)) != before
    assert weights_digest("meta-llama/Llama-2-7b-hf") == ""


@pytest.mark.parametrize("changed", ["config.json", "model-2.safetensors"])
def test_the_configuration_and_every_file_of_weights_count_and_nothing_else(tmp_path: Path, changed: str) -> None:
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors", "notes.txt"):
        (tmp_path / name).write_text(f"content of {name}")
    before = weights_digest(str(tmp_path))
    (tmp_path / "notes.txt").write_text("other")
    assert weights_digest(str(tmp_path)) == before
    (tmp_path / changed).write_text("other")
    assert weights_digest(str(tmp_path)) != before


@pytest.mark.parametrize(("place", "told"), [(0, True), (2**20 + 5, False), (3 * 2**20 - 1, True)])
def test_of_large_files_size_and_both_ends_are_read_and_the_middle_if_it_is_asked_for(
    tmp_path: Path, place: int, told: bool
) -> None:
    weights = tmp_path / "model.safetensors"
    content = bytearray(3 * 2**20)
    weights.write_bytes(content)
    before, of_all = weights_digest(str(tmp_path)), weights_digest(str(tmp_path), whole=True)
    content[place] = 1
    weights.write_bytes(content)
    assert (weights_digest(str(tmp_path)) != before) == told
    assert weights_digest(str(tmp_path), whole=True) != of_all
    weights.write_bytes(bytes(4 * 2**20))
    assert weights_digest(str(tmp_path)) != before


@pytest.mark.parametrize("others", [("pytorch_model.bin",), ("consolidated.safetensors", "training_args.bin")], ids=str)
def test_a_folder_of_all_files_has_the_digest_of_a_hub_name_for_which_the_needed_ones_were_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: tuple[str, ...]
) -> None:
    clone, fetched = tmp_path / "clone", tmp_path / "hub" / "models--someone--llm" / "snapshots" / ("1" * 40)
    for folder in (clone, fetched):
        folder.mkdir(parents=True)
        for name in ("config.json", "model-1.safetensors", "model-2.safetensors"):
            (folder / name).write_text(f"content of {name}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    before = weights_digest(str(clone))
    for name in others:
        (clone / name).write_text(f"content of {name}")
    assert weights_digest("someone/llm", "1" * 40) == weights_digest(str(clone)) == before != ""


def test_what_an_earlier_version_recorded_of_a_folder_with_other_files_is_accepted(tmp_path: Path) -> None:
    """Then the weights of all kinds counted."""
    kept = {"config.json": b"{}", "model.safetensors": b"the same", "pytorch_model.bin": b"the same again"}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    recorded = hashlib.sha256(b"".join(f"{name} {len(kept[name])}".encode() + 2 * kept[name] for name in sorted(kept)))
    found = weights_digest(str(tmp_path))
    former = recorded.hexdigest()[:16]
    assert found != former
    refuse_other_weights("LLM", str(tmp_path), found, former)
    (tmp_path / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="its digest differs"):
        refuse_other_weights("LLM", str(tmp_path), weights_digest(str(tmp_path)), former)


def test_another_llm_is_refused_with_the_remedies_and_an_unknown_one_is_told() -> None:
    told: list[str] = []
    refuse_other_weights("LLM", "mine", "abc", "abc", warn=told.append)
    assert not told
    with pytest.raises(UserError, match=r"LLM mine is not the one .* put the former one back, or else, or give"):
        refuse_other_weights("LLM", "mine", "abc", "def", ", or else", warn=told.append)
    refuse_other_weights("LLM", "mine", "abc", "", warn=told.append)
    assert told == ["the checkpoint does not say which weights its LLM had: mine is taken on trust"]

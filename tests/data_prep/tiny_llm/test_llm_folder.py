"""The Hugging Face folder: ordinary, the same from two runs, and made once."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lhotse import CutSet, MonoCut, SupervisionSegment
from small_llm import EIGHT_LANGUAGES, SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.tiny_llm.llm_folder import build
from data_prep.tiny_llm.subwords import BOS_ID, EOS_ID, FILLER_ID, SPECIAL_TOKENS
from speechllm_pl.core.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("llm") / "llm"
    build(EIGHT_LANGUAGES, output, recipe=SMALL, evaluated=2)
    return output


def write_manifest(path: Path, texts: dict[str, list[str]]) -> Path:
    cuts = []
    for language, of_language in texts.items():
        for number, text in enumerate(of_language):
            name = f"{language}-{number}"
            supervision = SupervisionSegment(name, name, 0.0, 1.0, text=text, language=language)
            cuts.append(MonoCut(name, 0.0, 1.0, 0, supervisions=[supervision]))
    CutSet.from_cuts(cuts).to_file(path)
    return path


def test_the_folder_is_an_ordinary_hugging_face_folder(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.filler_token_id == tokenizer.convert_tokens_to_ids("<filler>") == FILLER_ID
    assert tokenizer.filler_token == "<filler>"
    for name in ("bos", "eos", "pad"):
        ids = {getattr(part, f"{name}_token_id") for part in (model.config, model.generation_config, tokenizer)}
        assert len(ids) == 1
        assert None not in ids


def test_the_tokenizer_gives_texts_of_eight_languages_back_and_adds_nothing(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in [text for of_language in EIGHT_LANGUAGES.values() for text in of_language]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == tokenizer(text).input_ids
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert tokenizer.decode(ids) == text
        around = [BOS_ID, FILLER_ID, *ids, FILLER_ID, EOS_ID]
        assert tokenizer.decode(around, skip_special_tokens=True) == text


def test_loss_falls(folder: Path) -> None:
    loss = json.loads((folder / "pretraining.json").read_text())["loss"]
    assert loss["last"] < 0.8 * loss["first"]


def test_two_runs_give_identical_weights_and_tokenizers(folder: Path, tmp_path: Path) -> None:
    build(EIGHT_LANGUAGES, tmp_path / "again", recipe=SMALL, evaluated=2)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_rerun_does_nothing_and_other_settings_build_anew(tmp_path: Path, capsys) -> None:
    output = tmp_path / "llm"
    short = replace(SMALL, steps=2)
    build(EIGHT_LANGUAGES, output, recipe=short, evaluated=1)
    before = (output / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    build(EIGHT_LANGUAGES, output, recipe=short, evaluated=1)
    assert (output / "model.safetensors").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().out
    build(EIGHT_LANGUAGES, output, recipe=replace(short, seed=1), evaluated=1)
    assert (output / "model.safetensors").stat().st_mtime_ns != before
    assert [path.name for path in tmp_path.iterdir()] == ["llm"]


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not made by tiny_llm"):
        build(EIGHT_LANGUAGES, tmp_path, recipe=SMALL)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_program_works_on_ten_digit_words(tmp_path: Path) -> None:
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    manifest = write_manifest(tmp_path / "train.jsonl.gz", {"en": digits})
    program = [sys.executable, "-m", "data_prep.tiny_llm", "--manifest", manifest, "--steps", "2"]
    done = subprocess.run([*program, "--output", tmp_path / "llm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "held-out" in done.stdout
    assert 5 < len(AutoTokenizer.from_pretrained(tmp_path / "llm")) < 100

"""A corpus is prepared from where it lies, whole or in parts, and what is there already is left alone."""

import subprocess
from pathlib import Path

import pytest
from commands import last_words, lines

from speechllm_pl.recipes import preparation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("data", ["mls", "common_voice", "voxpopuli", "librispeech"])
def test_a_published_corpus_is_prepared_from_where_it_was_unpacked(speechllm, data: str) -> None:
    given = ("--corpus", "/my corpora/x", "--root", "data/new", "--jobs", "7", "--prepare_args", "--check header")
    words = last_words(speechllm, "data", "--data", data, *given)
    assert (ROOT / "data_prep" / f"{data}.py").is_file()
    options = ["--corpus", "/my corpora/x", "--output", "data/new", "--jobs", "7", "--check", "header"]
    assert words == ["python", "-m", f"data_prep.{data}", *options]
    message = speechllm("run", "data", "--data", data, "--root", "data/new").error()
    assert f"DATA={data} needs CORPUS=<folder" in message


def test_own_data_needs_a_table(speechllm) -> None:
    assert "TABLE=<folder or table>" in speechllm("run", "data", "--data", "table", "--root", "data/nosuch").error()


def test_a_corpus_of_one_language_is_not_asked_for_languages(speechllm) -> None:
    given = ("--corpus", "/x", "--root", "data/new", "--languages", "en")
    assert "--languages" not in last_words(speechllm, "data", "--data", "librispeech", *given)
    assert last_words(speechllm, "data", "--data", "mls", *given)[-2:] == ["--languages", "en"]


@pytest.mark.parametrize("data", ["mls", "common_voice", "voxpopuli", "spoken_numbers"])
def test_languages_of_a_corpus_are_parts_of_it(speechllm, data: str) -> None:
    given = ("--data", data, "--corpus", "/x", "--parts", "en pl", "--root", "data/new")
    *parts, joined = lines(speechllm, "data", *given)
    for part, language in zip(parts, ("en", "pl"), strict=True):
        assert f"data_prep.{data} " in part
        assert f"--output data/new/parts/{language} " in part
        assert f"--languages {language}" in part
    assert "data/new/parts/en data/new/parts/pl" in joined
    (part,) = lines(speechllm, "data", *given, "--part", "2")
    assert "--languages pl" in part


def test_folders_of_a_table_are_parts_of_it(speechllm) -> None:
    given = ("--data", "table", "--table", "t", "--root", "data/new", "--parts", "en de")
    (part,) = lines(speechllm, "data", *given, "--part", "2")
    assert "data_prep.table --table t/de --output data/new/parts/de" in part
    refused = speechllm("run", "data", "--data", "fsdd", "--root", "data/new", "--parts", "en de")
    assert "DATA=fsdd cannot be prepared in parts" in refused.error()


def test_a_table_of_which_nothing_is_dev_is_prepared_again(speechllm, tmp_path: Path) -> None:
    """With the arguments that the preparation has advised; a part of a corpus may have no dev."""
    (tmp_path / "parts" / "en").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "parts" / "en"):
        (folder / "train.jsonl.gz").touch()
    given = ("--data", "table", "--table", "t", "--root", str(tmp_path))
    (line,) = lines(speechllm, "data", *given, "--prepare_args=--dev-fraction 0.05")
    assert "data_prep.table --table t " in line
    assert line.endswith("--dev-fraction 0.05")
    assert lines(speechllm, "data", *given, "--parts", "en") == []
    assert (
        lines(speechllm, "tokenizer", "--data", "table", "--root", str(tmp_path))[0].split()[2] == "data_prep.tokenizer"
    )
    (tmp_path / "dev.jsonl.gz").touch()
    assert lines(speechllm, "data", *given) == []


def test_spoken_english_is_spoken_numbers_and_fsdd_joined(speechllm) -> None:
    given = ("--data", "spoken_english", "--root", "data/new", "--hours", "0.5", "--fsdd", "/my fsdd")
    numbers, fsdd, joined = lines(speechllm, "data", *given)
    assert "data_prep.spoken_numbers --output data/new/parts/spoken_numbers --hours 0.5 " in numbers
    assert numbers.endswith("--languages en")
    assert "data_prep.fsdd --corpus '/my fsdd' --output data/new/parts/fsdd " in fsdd
    assert "--joined-train" in fsdd
    assert "data/new/parts/spoken_numbers data/new/parts/fsdd" in joined
    (part,) = lines(speechllm, "data", *given, "--parts", "fsdd", "--part", "1")
    assert part == fsdd


def test_parts_are_joined_as_files_one_after_another(speechllm, tmp_path: Path) -> None:
    for part, splits in {"en": ("train", "dev"), "de": ("train",)}.items():
        folder = tmp_path / "parts" / part
        folder.mkdir(parents=True)
        for split in splits:
            (folder / f"{split}.jsonl.gz").write_text(f"{part} {split}\n")
    given = ("--data", "spoken_numbers", "--root", str(tmp_path), "--parts", "en de")
    (line,) = lines(speechllm, "data", *given)
    subprocess.run(["bash", "-eu", "-c", line], check=True)
    written = {path.name: path.read_text() for path in tmp_path.glob("*.gz")}
    assert written == {"train.jsonl.gz": "en train\nde train\n", "dev.jsonl.gz": "en dev\n"}


def test_training_cuts_are_packed(speechllm) -> None:
    words = last_words(speechllm, "shar", "--data", "fsdd", "--codec", "flac", "--jobs", "3")
    options = ["--manifest", "data/fsdd/train.jsonl.gz", "--output", "data/fsdd/shar/train", "--codec", "flac"]
    assert words[1:] == ["-m", "data_prep.shar", *options, "--jobs", "3"]


@pytest.mark.parametrize(
    ("given", "pieces"),
    [(("--data", "spoken_numbers"), "256"), (("--data", "fsdd"), "64"), (("--size", "paper"), "1547")],
)
def test_the_tokenizer_has_as_many_pieces_as_data_and_size_want(speechllm, given, pieces: str) -> None:
    given = (*given, "--root", "data/nosuch")
    line = lines(speechllm, "tokenizer", *given)[-1]
    assert f"--vocab-size {pieces} " in line
    assert (
        "--vocab-size 7 --max-piece-length 2 " in lines(speechllm, "tokenizer", *given, "--vocab", "7", "--piece=2")[-1]
    )


def test_own_cuts_are_taken_as_they_are(speechllm, tmp_path: Path) -> None:
    given = ("pretrain-ctc", "--data", "librispeech", "--root", str(tmp_path))
    for name in ("train.jsonl.gz", "tokenizer.model"):
        (tmp_path / name).touch()
    assert len(lines(speechllm, *given)) == 1


def test_smollm2_is_made_from_its_package_for_whichever_target_asks_for_it(
    speechllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"llm: {preparation.SMOLLM2}\n" in (ROOT / "conf" / "llm" / "smollm2.yaml").read_text()
    monkeypatch.setattr(preparation, "SMOLLM2", Path("data/nosuch/smollm2"))  # which nobody has made
    making = "python -m data_prep.smollm2 --output data/nosuch/smollm2"
    for target in ("llm", "finetune", "experiment"):
        found = lines(speechllm, target, "--llm", "smollm2", "--name", "nosuch", "--root", "data/nosuch")
        assert [line.endswith(making) for line in found].count(True) == 1, target
        assert not any("tiny_llm" in line for line in found)
    (finetune,) = [line for line in found if "conf/finetune.yaml" in line]
    assert "--config conf/llm/smollm2.yaml" in finetune
    assert not any("smollm2" in line for line in lines(speechllm, "pretrain-ctc", "--llm", "smollm2"))


def test_a_tiny_llm_is_made_where_no_other_is_named(speechllm) -> None:
    for given in ((), ("--llm", "data/nosuch/llm"), ("--llm", "org/name")):
        (line,) = lines(speechllm, "llm", "--root", "data/nosuch", *given)[-1:]
        assert "data_prep.tiny_llm --manifest data/nosuch/train.jsonl.gz" in line

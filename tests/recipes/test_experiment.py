"""The demo is a graph of the commands that its targets run."""

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from commands import lines, value

from speechllm_pl.recipes.steps import Step

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_a_clone_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are finished are left out of an experiment."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def voices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the recordings, and no pretrained models."""
    folder = tmp_path / "shared" / "cc0-voices" / "en"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SPEECHLLM_DATA", str(tmp_path / "shared"))
    monkeypatch.setenv("SPEECHLLM_MODELS", str(tmp_path / "models"))
    return folder


@pytest.mark.parametrize(
    ("target", "folder", "data"),
    [
        ("demo", "demo", "spoken_numbers"),
        ("fsdd", "fsdd", "fsdd"),
        ("demo-short", "demo_short", "spoken_numbers_short"),
    ],
)
def test_an_experiment_is_both_stages_scores_transcripts_and_a_report(speechllm, target, folder, data) -> None:
    found = lines(speechllm, target)
    programs = [re.search(r"-m (data_prep\.\w+) |^speechllm (\w+) ", line) for line in found]
    names = [match[1] or match[2] for match in programs if match]
    assert names[1:] == ["data_prep.tokenizer", "fit", "data_prep.tiny_llm", "fit", "evaluate", "transcribe", "report"]
    fits = [shlex.split(line) for line in found if " fit " in line]
    assert [value(words, "--run") for words in fits] == [
        f"runs/{folder}/{stage}" for stage in ("pretrain_ctc", "finetune")
    ]
    assert value(fits[1], "--model.encoder_checkpoint") == f"runs/{folder}/pretrain_ctc/checkpoints/best.ckpt"
    assert value(fits[1], "--model.llm") == f"data/{data}/llm"
    (scores,) = [shlex.split(line) for line in found if " evaluate " in line]
    assert value(scores, "--output") == f"runs/{folder}"
    assert "--devices" not in scores
    assert ("--max_wer" in scores) == (target == "demo-short")


def test_the_split_that_is_chosen_is_scored_and_reported(speechllm) -> None:
    for given, split in (((), "test"), (("--split", "dev"), "dev")):
        found = [shlex.split(line) for line in lines(speechllm, "demo", *given)]
        ends = [words for words in found if words[1] in ("evaluate", "report")]
        assert [value(words, "--cuts") for words in ends] == [f"data/spoken_numbers/{split}.jsonl.gz"] * 2


def test_demo_english_trains_two_ranks_side_by_side_on_one_encoder_and_scores_each_on_both_corpora(speechllm) -> None:
    found = [shlex.split(line) for line in lines(speechllm, "demo-english", "--fsdd", "/f")]
    stage_one, *stage_two = [words for words in found if words[1] == "fit"]
    assert value(stage_one, "--run") == "runs/demo_english/pretrain_ctc"
    assert "--trainer.devices" not in stage_one
    assert [value(words, "--model.lora_r") for words in stage_two] == ["0", "8"]
    for words in stage_two:
        assert value(words, "--run") == f"runs/demo_english/lora_r{value(words, '--model.lora_r')}"
        assert value(words, "--model.encoder_checkpoint") == "runs/demo_english/pretrain_ctc/checkpoints/best.ckpt"
        assert value(words, "--trainer.devices") == "1"
        assert ("--model.instruction" in words) == (value(words, "--model.lora_r") == "0")
        assert "conf/llm/smollm2.yaml" in words
    scored = {value(words, "--output"): words for words in found if words[1] == "evaluate"}
    systems = ["ctc", *(f"lora_r{rank}-{search}" for rank in (0, 8) for search in ("greedy", "joint"))]
    assert list(scored) == [
        f"runs/demo_english/scores/{corpus}/{system}" for system in systems for corpus in ("spoken_numbers", "fsdd")
    ]
    for output, words in scored.items():
        corpus, system = Path(output).parts[-2:]
        assert value(words, "--cuts") == f"data/spoken_english/parts/{corpus}/test.jsonl.gz"
        run = "pretrain_ctc" if system == "ctc" else system.partition("-")[0]
        assert value(words, "--checkpoint") == f"[runs/demo_english/{run}/checkpoints/best.ckpt]"
        assert ("--ctc_weight" in words) == system.endswith("joint")
    assert found[-1] == ["speechllm", "compare", "--scores", "runs/demo_english/scores"]
    assert any("data_prep.smollm2" in words for words in found)


def test_other_arguments_are_another_comparison_of_which_nothing_is_finished(
    speechllm, voices: Path, tmp_path: Path
) -> None:
    for target, name in (("demo-english", "demo_english"), ("demo-speech", "demo_speech")):

        def folders(*given: str, target: str = target) -> set[Path]:
            found = [shlex.split(line) for line in lines(speechllm, target, *given)]
            fits = [words for words in found if words[1] == "fit"]
            if "--" in given:
                assert all(words[-1] == given[-1] for words in fits)
            runs = [value(words, "--run") for words in fits]
            scores = [value(words, "--output") for words in found if words[1] == "evaluate"]
            return {tmp_path / Path(path).parents[0] for path in runs} | {
                tmp_path / Path(path).parents[2] for path in (*scores, f"{value(found[-1], '--scores')}/a/b")
            }

        usual, other, rank = folders(), folders("--", "--seed_everything=2"), folders("--lora_r", "64")
        assert usual == {tmp_path / "runs" / name}
        assert len(other) == len(rank) == len(usual | other | rank) - 2 == 1
        assert folders("--", "--seed_everything=2") == other  # goes on where it was stopped


def test_the_table_of_a_finished_comparison_is_shown_again(
    speechllm, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def finish(step: Step) -> subprocess.Popen:
        assert step.makes is not None
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        step.makes.write_text("the table\n")
        for split in ("dev", "test"):
            (step.makes.parent / f"{split}.jsonl.gz").touch()
        os.utime(step.makes, (len(made), len(made)))
        made.append(step.makes)
        return subprocess.Popen(["true"])

    monkeypatch.setattr("speechllm_pl.recipes.steps._started", finish)
    os.utime(voices, (0, 0))
    assert "the table" not in speechllm("run", "demo-speech").out
    assert made[-1] == Path("runs/demo_speech/scores.md")
    assert Path("runs/demo_speech/scores/test/llm-greedy/scores.json") in made  # of a split that was found on the way
    count = len(made)
    assert speechllm("run", "demo-speech").out.splitlines() == ["the table", f"{made[-1]} is finished"]
    speechllm("run", "demo-speech", "--", "--model.lora_r", "64")
    assert len(made) > count


def test_demo_english_goes_on_where_it_was_stopped(speechllm, tmp_path: Path) -> None:
    data, run = "data/spoken_english", "runs/demo_english"
    made = [*(f"{data}/parts/{corpus}/train.jsonl.gz" for corpus in ("fsdd", "spoken_numbers"))]
    made += [f"{data}/train.jsonl.gz", f"{data}/tokenizer.model", "data/llms/smollm2/config.json"]
    made += [f"{run}/pretrain_ctc/finished.json", f"{run}/scores/fsdd/ctc/scores.json"]
    made += [f"{run}/scores/spoken_numbers/ctc/scores.json", f"{run}/lora_r0/finished.json"]
    for second, name in enumerate(made):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (second, second))
    found = [shlex.split(line) for line in lines(speechllm, "demo-english")]
    fits = [value(words, "--run") for words in found if words[1] == "fit"]
    assert fits == ["runs/demo_english/lora_r8"]
    assert len([words for words in found if words[1] == "evaluate"]) == 8


def test_demo_speech_trains_ctc_then_the_llm_and_scores_its_searches_on_dev_and_other_voices(
    speechllm, voices: Path, tmp_path: Path
) -> None:
    (tmp_path / "talks").mkdir()
    found = [shlex.split(line) for line in lines(speechllm, "demo-speech", "--eval-table", "talks")]
    others, own = [words for words in found if "data_prep.table" in words]
    assert value(own, "--table") == str(voices)
    assert value(own, "--output") == "data/demo_speech"
    assert float(value(own, "--dev-fraction")) == 0.1  # where nothing names a split, there is something to validate on
    assert value(own, "--language") == value(others, "--language") == "en"
    assert value(others, "--table") == "talks"
    assert value(others, "--only-split") == "test"
    assert float(value(others, "--max-seconds")) > 3600
    other = Path(value(others, "--output"))
    assert other.parent == Path("data/demo_speech/other")

    fits = [words for words in found if words[1] == "fit"]
    assert [value(words, "--run") for words in fits] == ["runs/demo_speech/pretrain_ctc", "runs/demo_speech/finetune"]
    assert found.index(others) < found.index(fits[0])  # what is wrong with it is told before an hour of training
    for words, stage in zip(fits, ("pretrain_ctc", "finetune"), strict=True):
        assert "conf/encoder/whisper-tiny-en.yaml" in words
        assert value(words, "--config") == f"conf/demo_speech/{stage}.yaml"  # after that of the encoder and the LLM
    assert "conf/llm/smollm2.yaml" in fits[1]
    assert value(fits[1], "--model.encoder_checkpoint") == "runs/demo_speech/pretrain_ctc/checkpoints/best.ckpt"

    scored = {value(words, "--output"): words for words in found if words[1] == "evaluate"}
    systems = ("ctc", "llm-greedy", "llm-joint", "llm-guarded")
    cuts = {"dev": "data/demo_speech/dev.jsonl.gz", other.name: str(other / "test.jsonl.gz")}
    assert set(scored) == {f"runs/demo_speech/scores/{corpus}/{system}" for corpus in cuts for system in systems}
    for output, words in scored.items():
        corpus, system = Path(output).parts[-2:]
        assert value(words, "--cuts") == cuts[corpus]
        run = "pretrain_ctc" if system == "ctc" else "finetune"
        assert value(words, "--checkpoint") == f"[runs/demo_speech/{run}/checkpoints/best.ckpt]"
        assert ("--ctc_weight" in words) == (system in ("llm-joint", "llm-guarded"))
        assert ("--guard" in words) == (system == "llm-guarded")
        assert ("--long_form" in words) == (corpus != "dev")
    assert found[-1] == ["speechllm", "compare", "--scores", "runs/demo_speech/scores"]
    assert any("data_prep.smollm2" in words for words in found)


def test_demo_speech_with_other_parts_has_other_folders(speechllm, voices: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").touch()

    def folders(*given: str) -> tuple[str, str]:
        found = [shlex.split(line) for line in lines(speechllm, "demo-speech", *given)]
        assert not any("--only-split" in words for words in found)
        (data,) = [value(words, "--output") for words in found if "data_prep.table" in words]
        return data, value(found[-1], "--scores")

    usual = folders()
    table = folders("--table", "mine.tsv")
    encoder = folders("--encoder", "some/encoder")
    assert len({usual[0], table[0]}) == 2
    assert encoder[0] == usual[0]  # of the same recordings
    assert len({usual[1], table[1], encoder[1], folders("--llm", "some/llm")[1]}) == 4
    assert folders("--table", str(voices), "--encoder", "whisper-tiny-en") == usual
    assert folders("--root", "data/here")[0] == "data/here"
    args = ("--prepare-args", "--dev-fraction 0.05")
    assert len({usual[0], table[0], folders(*args)[0], folders("--table", "mine.tsv", *args)[0]}) == 4


def test_demo_speech_scores_test_beside_dev_where_there_is_one_and_the_split_that_is_named(
    speechllm, voices: Path, tmp_path: Path
) -> None:
    def scored(*given: str) -> set[tuple[str, str]]:
        found = [shlex.split(line) for line in lines(speechllm, "demo-speech", *given)]
        ends = [words for words in found if words[1] == "evaluate"]
        return {(Path(value(words, "--output")).parent.name, value(words, "--cuts")) for words in ends}

    dev, test, mine = ((name, f"data/demo_speech/{name}.jsonl.gz") for name in ("dev", "test", "mine"))
    assert scored() == scored("--split", "dev") == {dev}
    assert scored("--split", "mine") == {dev, mine}
    (tmp_path / "data" / "demo_speech").mkdir(parents=True)
    (tmp_path / test[1]).touch()
    assert scored() == {dev, test}


def test_demo_speech_prepares_recordings_that_were_added(speechllm, voices: Path, tmp_path: Path) -> None:
    """Those to train on as other data; those to score in the place of the former ones."""
    mine, others = tmp_path / "mine", tmp_path / "others"
    for folder in (mine, others):
        folder.mkdir()
        (folder / "a.txt").touch()

    def folders() -> tuple[str, str, list[str]]:
        found = [
            shlex.split(line) for line in lines(speechllm, "demo-speech", "--table", "mine", "--eval-table", "others")
        ]
        prepared = {value(words, "--table"): value(words, "--output") for words in found if "data_prep.table" in words}
        scored = [value(words, "--output") for words in found if words[1] == "evaluate"]
        return prepared.get("mine", ""), prepared.get("others", ""), scored

    own, other, scored = folders()
    assert folders() == (own, other, scored)
    made = [f"{own}/{name}" for name in ("dev.jsonl.gz", "train.jsonl.gz", "tokenizer.model")]
    made += [f"{other}/test.jsonl.gz"]
    made += [f"{Path(scored[0]).parents[2]}/{stage}/finished.json" for stage in ("pretrain_ctc", "finetune")]
    for path in (tmp_path / name for name in (*made, *(f"{output}/scores.json" for output in scored))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert folders() == ("", "", [])
    (others / "b.txt").touch()
    later = time.time() + 1  # file systems tell times apart by milliseconds
    os.utime(others / "b.txt", (later, later))
    _, again, rescored = folders()
    assert again == other
    assert rescored == [output for output in scored if Path(output).parts[-2] == Path(other).name]
    (mine / "b.txt").touch()
    more, *_, anew = folders()
    assert more not in ("", own)
    assert not set(anew) & set(scored)


@pytest.mark.parametrize(("option", "variable"), [("--table", "TABLE=gone"), ("--eval-table", "EVAL_TABLE=gone")])
def test_demo_speech_names_the_variable_of_recordings_that_are_not_there(
    speechllm, voices: Path, option: str, variable: str
) -> None:
    assert f"{variable} does not exist" in speechllm("run", "demo-speech", "--dry-run", option, "gone").error()


def test_demo_speech_says_what_to_give_where_there_are_no_recordings(
    speechllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHLLM_DATA", str(tmp_path / "nowhere"))
    message = speechllm("run", "demo-speech", "--dry-run").error()
    assert "TABLE=" in message
    assert "SPEECHLLM_DATA" in message

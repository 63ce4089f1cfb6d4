"""A recipe's settings reach the `fit` line, and its run's name follows them; a wrong choice is told in one line."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from speechllm_pl.recipes.recipe import Recipe, Stage, run_name

CONF = Path("conf")
STAGES = ("pretrain_ctc", "finetune")


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's conf/ and no runs."""
    (tmp_path / "conf").symlink_to(CONF.resolve())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(run: str, at: float | None = None) -> None:
    best = Path(run, "checkpoints", "best.ckpt")
    best.parent.mkdir(parents=True)
    best.touch()
    if at is not None:
        os.utime(best, (at + 10, at + 10))


@pytest.mark.parametrize("stage", STAGES)
def test_data_size_trainer_and_overrides_reach_the_command(stage) -> None:
    given = ("--trainer.max_epochs", "3", "--model.a", "b c")
    recipe = Recipe(stage, "fsdd", "tiny", "single", run="runs/mine", overrides=given)
    line = " ".join(recipe.fit_arguments)
    for part in ("conf/data/fsdd.yaml", "conf/size/tiny.yaml", "conf/trainer/single.yaml", "--run runs/mine"):
        assert f" {part}" in line
    assert recipe.fit_arguments[-4:] == list(given)


def test_what_a_stage_does_differently_at_a_size_is_a_file_of_its_own() -> None:
    assert CONF / "finetune" / "tiny.yaml" in Recipe("finetune").configurations
    assert CONF / "finetune" / "paper.yaml" not in Recipe("finetune", size="paper").configurations


def test_checkpoints_are_chosen_by_name() -> None:
    assert "--model.encoder_checkpoint a.ckpt" in " ".join(Recipe("finetune", ckpt="a.ckpt").fit_arguments)
    assert "--ckpt_path a.ckpt" in " ".join(Recipe("pretrain_ctc", ckpt="a.ckpt").fit_arguments)


def test_another_llm_is_not_the_tiny_one() -> None:
    recipe = Recipe("finetune", "fsdd", llm="/models/llama")
    assert "--model.llm /models/llama" in " ".join(recipe.fit_arguments)
    assert recipe.tiny_llm is None
    assert Recipe("finetune", "fsdd").tiny_llm == Recipe("finetune", "fsdd", llm="data/fsdd/llm").tiny_llm
    assert Recipe("pretrain_ctc").tiny_llm is None


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "llm").glob("*.yaml")))
def test_an_llm_of_the_configuration_is_given_as_its_file(name: str) -> None:
    recipe = Recipe("finetune", "fsdd", llm=name)
    assert f"--config conf/llm/{name}.yaml" in " ".join(recipe.fit_arguments)
    assert "--model.llm" not in recipe.fit_arguments
    assert recipe.tiny_llm is None


def test_ablations_become_overrides_with_a_run_folder_of_their_own_and_are_empty_by_default() -> None:
    given = Recipe("finetune", stride="6", lora_r="0", masking="0.125", overrides=("--model.bridge.stride", "3"))
    line = " ".join(given.fit_arguments)
    assert line.endswith("--model.bridge.stride 6 --model.lora_r 0 --model.text_masking 0.125 --model.bridge.stride 3")
    named = replace(given, overrides=()).run_folder
    assert named == Path("runs/finetune/spoken_numbers-tiny-stride6-r0-masking0.125")
    plain = Recipe("finetune").fit_arguments
    assert not {"--model.bridge.stride", "--model.lora_r", "--model.text_masking"} & set(plain)


def test_augmentation_is_one_more_file_and_names_the_run() -> None:
    assert not any("augment" in str(path) for path in Recipe("pretrain_ctc").configurations)
    recipe = Recipe("pretrain_ctc", augment="noisy")
    assert recipe.configurations[-1] == CONF / "augment" / "noisy.yaml"
    assert recipe.run_folder == Path("runs/pretrain_ctc/spoken_numbers-tiny-noisy")
    recipe = Recipe("finetune", augment="noisy", stride="6")
    assert recipe.run_folder == Path("runs/finetune/spoken_numbers-tiny-noisy-stride6")
    encoder = "runs/pretrain_ctc/spoken_numbers-tiny-noisy/checkpoints/best.ckpt"
    assert f"--model.encoder_checkpoint {encoder}" in " ".join(recipe.fit_arguments)


def test_names_that_were_in_use_stay() -> None:
    assert Recipe("pretrain_ctc").run_folder == Path("runs/pretrain_ctc/spoken_numbers-tiny")
    assert Recipe("finetune").run_folder == Path("runs/finetune/spoken_numbers-tiny")
    assert Recipe("finetune", "mls", "paper-24", "ddp").run_folder == Path("runs/finetune/mls-paper-24")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of pretrained models, which is empty."""
    monkeypatch.setenv("SPEECHLLM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize("stage", ["pretrain_ctc", "finetune"])
def test_an_encoder_of_the_configuration_is_its_file_and_the_folder_of_its_weights_if_there_is_one(
    stage: Stage, models: Path
) -> None:
    recipe = Recipe(stage, encoder="whisper-tiny-en")
    assert "--config conf/encoder/whisper-tiny-en.yaml" in " ".join(recipe.fit_arguments)
    assert "--model.encoder.name" not in recipe.fit_arguments
    (models / "whisper-tiny-en").mkdir(parents=True)
    (models / "whisper-tiny-en" / "config.json").touch()
    assert f"--model.encoder.name {models}/whisper-tiny-en" in " ".join(recipe.fit_arguments)
    assert recipe.run_folder == Path(f"runs/{stage}/spoken_numbers-tiny-whisper-tiny-en")
    place = recipe.fit_arguments.index("--run")
    without_run = recipe.fit_arguments[:place] + recipe.fit_arguments[place + 2 :]
    assert run_name(without_run) == str(recipe.run_folder)


def test_another_encoder_is_given_by_its_name(models: Path) -> None:
    recipe = Recipe("pretrain_ctc", encoder="facebook/wav2vec2-base")
    line = " ".join(recipe.fit_arguments)
    assert "--config conf/encoder/pretrained.yaml --model.encoder.name facebook/wav2vec2-base" in line
    assert recipe.run_folder.name.startswith("spoken_numbers-tiny-wav2vec2-base-")


@pytest.mark.parametrize(("encoder", "frame_ms"), [("whisper-tiny-en", 40), ("wav2vec2-base-960h", 20), ("a/b", 40)])
@pytest.mark.parametrize("settings", [(), ("--config", "conf/demo_speech/finetune.yaml")])
def test_an_llm_has_an_audio_embedding_every_120_ms_with_each_pretrained_encoder(
    models: Path, encoder: str, frame_ms: int, settings: tuple[str, ...]
) -> None:
    words = Recipe("finetune", encoder=encoder, overrides=settings).fit_arguments
    files = [Path(value) for name, value in pairwise(words) if name == "--config"]
    bridges = [yaml.safe_load(file.read_text()).get("model", {}).get("init_args", {}).get("bridge") for file in files]
    assert [each["stride"] for each in bridges if each][-1] * frame_ms == 120


def test_stage_2_with_a_pretrained_encoder_takes_stage_1_if_it_was_run(models: Path, elsewhere: Path) -> None:
    recipe = Recipe("finetune", encoder="whisper-tiny-en")
    assert "--model.encoder_checkpoint" not in recipe.fit_arguments
    plain = Recipe("finetune")
    assert f"--model.encoder_checkpoint {plain.stage_one.best}" in " ".join(plain.fit_arguments)
    before, best = recipe.run_folder, recipe.stage_one.best
    assert "whisper-tiny-en" in str(best)
    best.parent.mkdir(parents=True)
    best.touch()
    recipe = Recipe("finetune", encoder="whisper-tiny-en")
    assert f"--model.encoder_checkpoint {best}" in " ".join(recipe.fit_arguments)
    assert recipe.run_folder == before


def test_a_name_follows_everything_that_makes_it_another_run() -> None:
    plain = Recipe("finetune")
    settings = {"data": "fsdd", "size": "paper", "augment": "speed", "root": "data/other", "llm": "llama-7b"}
    others = [replace(plain, **{name: value}) for name, value in settings.items()]  # type: ignore[reportArgumentType]
    others += [replace(plain, llm=name) for name in ("a/b", "c/b")]
    others += [replace(plain, encoder=name) for name in ("whisper-tiny-en", "a/b", "c/b")]
    others += [replace(plain, root="elsewhere/other"), replace(plain, stride="2"), replace(plain, lora_r="4")]
    others += [replace(plain, overrides=given) for given in (("--a", "1"), ("--a", "2"), ("--b", "1"))]
    others += [replace(plain, ckpt=name) for name in ("a.ckpt", "b.ckpt")] + [replace(plain, ctc_run="runs/mine")]
    others += [replace(plain, overrides=("--model.tokenizer", "other.model"))]
    assert len({recipe.run_folder for recipe in (plain, *others)}) == 1 + len(others)
    same = [replace(plain, trainer="ddp"), replace(plain, root="data/spoken_numbers/")]
    assert {recipe.run_folder for recipe in same} == {plain.run_folder}
    assert replace(plain, llm="llama-7b").run_folder.name == "spoken_numbers-tiny+llama-7b"
    spellings = [("--a=1",), ("--a", "1")]
    assert len({replace(plain, overrides=given).run_folder for given in spellings}) == 1


@pytest.mark.parametrize(
    "overrides",
    [
        "--data.num_workers 4",
        "--data.timeout_seconds=600",
        "--data.max_skipped_share 0.5 --data.other_data true",
        "--data.val_utterances null --data.val_max_duration 90",
        "--trainer.max_epochs 20 --trainer.max_steps 9 --trainer.limit_val_batches 2",
        "--trainer.devices 1 --trainer.num_nodes 2 --trainer.strategy ddp --trainer.precision bf16-mixed",
        "--trainer.accumulate_grad_batches 2 --trainer.callbacks+=Timer --trainer.logger.class_path CSVLogger",
        "--trainer.val_check_interval 0.5 --trainer.log_every_n_steps 1 --trainer.enable_progress_bar false",
        "--model.max_skipped_steps 3 --model.activation_checkpointing true --model.compile_encoder true",
        "--last_checkpoints.every_n_minutes 5 --whole_dev.every 3 --largest_batches false",
        "--model.tokenizer data/spoken_numbers/tokenizer.model",
        "--model.encoder_checkpoint ./runs/pretrain_ctc/spoken_numbers-tiny/checkpoints/best.ckpt",
    ],
)
def test_what_may_change_on_resuming_is_no_other_run(overrides: str) -> None:
    plain = Recipe("finetune")
    for other in ((), ("--model.ctc_weight", "0")):
        given = replace(plain, overrides=(*other, *overrides.split()))
        assert given.run_folder == replace(plain, overrides=other).run_folder
        place = given.fit_arguments.index("--run")
        assert run_name(given.fit_arguments[:place] + given.fit_arguments[place + 2 :]) == str(given.run_folder)


def test_an_encoder_is_part_of_the_name_of_stage_two_alone() -> None:
    assert Recipe("pretrain_ctc", ckpt="a.ckpt").run_folder == Recipe("pretrain_ctc").run_folder
    plain = Recipe("finetune")
    usual = replace(plain, ckpt=str(plain.stage_one.best))
    assert usual.run_folder == plain.run_folder
    given = replace(plain, overrides=("--model.encoder_checkpoint", "a.ckpt"))
    assert given.run_folder == replace(plain, ckpt="a.ckpt").run_folder


def test_another_root_is_given() -> None:
    assert "--data.root data/other" in " ".join(Recipe("pretrain_ctc", root="data/other").fit_arguments)
    assert "--data.root" not in Recipe("pretrain_ctc").fit_arguments


def test_stage_two_begins_with_the_stage_one_that_there_is(elsewhere: Path) -> None:
    recipe, stage_one = Recipe("finetune", size="paper"), "runs/pretrain_ctc/spoken_numbers-paper"
    assert recipe.stage_one.best == Path(stage_one, "checkpoints/best.ckpt")
    trained(f"{stage_one}-24")
    trained(f"{stage_one}-24+01234567")
    assert recipe.stage_one.best == Path(stage_one, "checkpoints/best.ckpt")
    trained(f"{stage_one}+01234567")
    assert recipe.stage_one.best == Path(f"{stage_one}+01234567", "checkpoints/best.ckpt")
    trained(stage_one)
    assert recipe.stage_one.best == Path(stage_one, "checkpoints/best.ckpt")
    assert replace(recipe, ctc_run="runs/mine").stage_one.best == Path("runs/mine/checkpoints/best.ckpt")


def test_the_newest_run_is_the_best_one_and_another_llm_is_the_last_choice(elsewhere: Path) -> None:
    recipe, plain = Recipe("finetune"), "runs/finetune/spoken_numbers-tiny"
    for age, run in enumerate((plain, f"{plain}+01234567", f"{plain}+llama-7b")):
        trained(run, at=age)
    assert recipe.best == Path(f"{plain}+01234567", "checkpoints/best.ckpt")
    assert replace(recipe, llm="llama-7b").best == Path(f"{plain}+llama-7b", "checkpoints/best.ckpt")
    trained(f"{plain}+89abcdef", at=-1)
    assert recipe.best == Path(f"{plain}+01234567", "checkpoints/best.ckpt")
    assert replace(recipe, run=plain).best == Path(plain, "checkpoints/best.ckpt")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("pretrain_ctc"),
        Recipe("finetune", "fsdd", "paper", "ddp", "noisy", llm="llama-7b", stride="3"),
        Recipe("finetune", "mls", "paper", llm="a/b", overrides=("--model.ctc_weight", "0")),
        Recipe("pretrain_ctc", root="data/other", overrides=("--trainer.max_epochs=3",)),
        Recipe("pretrain_ctc", encoder="whisper-tiny-en"),
        Recipe("finetune", encoder="someone/encoder", overrides=("--model.encoder.adapt", "lora")),
    ],
    ids=lambda recipe: recipe.run_folder.name,
)
def test_a_fit_without_a_run_has_the_name_of_its_recipe(recipe: Recipe) -> None:
    arguments = recipe.fit_arguments
    place = arguments.index("--run")
    assert run_name(arguments[:place] + arguments[place + 2 :]) == str(recipe.run_folder)


def test_a_fit_of_other_files_has_a_name_that_follows_its_arguments() -> None:
    one, other = run_name(["--config", "mine.yaml"]), run_name(["--config", "mine.yaml", "--a", "b"])
    assert one.startswith("runs/fit/")
    assert one != other
    assert run_name(["--config", "conf/finetune.yaml", "--data.root", "x"]).startswith("runs/finetune/")
    assert run_name([]).startswith("runs/fit/")


@pytest.mark.parametrize(
    ("name", "known"), [("data", "fsdd"), ("size", "paper-24"), ("trainer", "ddp"), ("augment", "noisy")]
)
def test_an_unknown_choice_is_refused_with_those_that_exist(speechllm, name: str, known: str) -> None:
    message = speechllm("run", "pretrain-ctc", f"--{name}", "nosuch").error()
    assert f"{name.upper()}=nosuch" in message
    assert known in message


def test_outside_the_project_the_message_says_where_to_run(speechllm, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = speechllm("run", "pretrain-ctc").error()
    assert "run this in the project's folder" in message
    assert "spoken_numbers.yaml" not in message


def test_an_adaptation_to_text_goes_on_with_a_checkpoint_of_stage_2() -> None:
    recipe = Recipe("finetune", "fsdd", ckpt="two.ckpt", text="some/domain.txt", text_share="0.8")
    words = recipe.fit_arguments
    assert words[words.index("--model.llm_checkpoint") + 1] == "two.ckpt"
    assert "--model.encoder_checkpoint" not in words
    assert CONF / "adapt_text.yaml" in recipe.configurations
    sources = yaml.safe_load(words[words.index("--data.train") + 1])
    assert sources == {"audio": "train.jsonl.gz", "text": {"cuts": recipe.texts_alone.name, "share": 0.8}}
    assert recipe.texts_alone.parent == Path("data/fsdd")
    assert str(recipe.run_folder).startswith("runs/adapt_text/fsdd-tiny-domain+")


def test_other_texts_shares_and_checkpoints_make_other_runs() -> None:
    recipe = Recipe("finetune", "fsdd", ckpt="two.ckpt", text="some/domain.txt")
    others = [{"ckpt": "three.ckpt"}, {"text": "other/domain.txt"}, {"text_share": "0.5"}]
    folders = {recipe.run_folder, *(replace(recipe, **other).run_folder for other in others)}
    assert len(folders) == 4
    assert replace(recipe, text="other/domain.txt").texts_alone != recipe.texts_alone

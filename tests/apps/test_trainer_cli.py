"""Shipped configurations compose, overrides win, and a mistake ends with one line that names what was meant."""

import inspect
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import Trainer
from lightning.pytorch.cli import LightningCLI

from speechllm_pl.apps import trainer_cli
from speechllm_pl.apps.main import main
from speechllm_pl.apps.trainer_cli import fit_configuration
from speechllm_pl.data import augmentation
from speechllm_pl.data.mixture import TrainSource
from speechllm_pl.data.positions import LlmInput
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.encoders.conformer import Conformer, ConformerConfig
from speechllm_pl.models.features import SpecAugmentConfig
from speechllm_pl.optim.muon_adamw import MuonAdamW
from speechllm_pl.optim.schedules import OneCycle, WarmupExponential
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.sharding import ShardedStrategy

CONF = Path(__file__).parents[2] / "conf"
STAGES = {"pretrain_ctc": CtcPretraining, "finetune": LlmFinetuning}
BLOCKS = {"tiny": None, "paper": 18, "paper-24": 24, "paper-36": 36}  # None: whatever the embedded default has


def names(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONF / folder).glob("*.yaml"))


def configs(stage: str, data: str = "fsdd", size: str = "tiny", trainer: str = "cpu") -> list[str]:
    """The arguments that the Makefile gives to `fit`."""
    names = (
        f"{stage}.yaml",
        f"data/{data}.yaml",
        f"size/{size}.yaml",
        f"{stage}/{size}.yaml",
        f"trainer/{trainer}.yaml",
    )
    files = (CONF / name for name in names)  # not every size has a file for a stage
    arguments = ["fit", *(part for file in files if file.is_file() for part in ("--config", str(file)))]
    return arguments + (["--model.llm", "some/llm"] if stage == "finetune" else [])


@pytest.fixture(scope="module")
def parser() -> Iterator:
    """The parser of the real command, built once; parsing then takes a fraction of a second."""
    built = []

    class Built(Exception):
        pass

    def stop(_: LightningCLI, parser, arguments) -> None:
        built.append(parser)
        raise Built

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningCLI, "parse_arguments", stop)
        patch.setattr(sys, "argv", ["speechllm", "fit"])
        with pytest.raises(Built):
            main()
    return built[0]


# shipped configurations


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("data", names("data"))
def test_every_stage_data_size_and_trainer_compose(parser, stage: str, data: str) -> None:
    for size in names("size"):
        for trainer in names("trainer"):
            config = parser.parse_args([*configs(stage, data, size, trainer), "--run", "runs/here"]).fit
            assert config.data.root == f"data/{data}"
            assert config.model.class_path.endswith(STAGES[stage].__name__)
            assert config.trainer.default_root_dir == "runs/here"
            assert config.last_checkpoints.every_minutes == 15
            if isinstance(config.trainer.val_check_interval, int):  # of which an epoch may have fewer batches
                assert config.trainer.check_val_every_n_epoch is None
            assert BLOCKS[size] in (None, config.model.init_args.encoder.init_args.num_blocks)


@pytest.mark.parametrize("name", names("augment"))
def test_every_set_of_augmentations_instantiates(parser, name: str, tokenizer_file: Path) -> None:
    path = CONF / "augment" / f"{name}.yaml"
    given = ["--config", str(path), "--model.tokenizer", str(tokenizer_file)]
    config = parser.parse_args([*configs("pretrain_ctc", size="paper"), *given])
    written = yaml.safe_load(path.read_text())["data"]["augmentations"]
    made = parser.instantiate_classes(config).fit.data.augmentations
    assert [type(each).__name__ for each in made] == [each["class_path"].split(".")[-1] for each in written]
    for each, asked in zip(made, written, strict=True):
        for key, value in asked["init_args"].items():
            assert getattr(each, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", names("size"))
@pytest.mark.parametrize("encoder", names("encoder"))
def test_every_encoder_takes_the_place_of_the_conformer(parser, stage: str, size: str, encoder: str) -> None:
    path = CONF / "encoder" / f"{encoder}.yaml"
    written = yaml.safe_load(path.read_text())["model"]["init_args"]["encoder"]
    named = written["init_args"].get("name", "a/folder")
    arguments = [*configs(stage, size=size), "--config", str(path), "--model.encoder.name", named]
    chosen = parser.parse_args(arguments).fit.model.init_args.encoder
    assert chosen.class_path.endswith("PretrainedEncoderConfig")
    assert chosen.init_args.name == named
    assert written["init_args"].items() <= vars(chosen.init_args).items()


def test_adapting_to_text_trains_neither_encoder_nor_bridge(parser) -> None:
    path = CONF / "adapt_text.yaml"
    config = parser.parse_args([*configs("finetune"), "--config", str(path)]).fit
    written = yaml.safe_load(path.read_text())
    assert written["model"]["init_args"].items() <= vars(config.model.init_args).items()
    assert config.trainer.max_epochs == written["trainer"]["max_epochs"]
    assert config.model.init_args.freeze_encoder
    assert config.model.init_args.freeze_bridge


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_ranks_may_be_given_more_time_to_wait_for_a_large_llm(parser, trainer: str) -> None:
    longer = ["--trainer.strategy.init_args.timeout", "2:00:00"]
    strategy = parser.parse_args([*configs("finetune", trainer=trainer), *longer]).fit.trainer.strategy
    assert strategy.init_args.timeout == timedelta(hours=2)
    assert ShardedStrategy(timeout=timedelta(hours=2))._timeout == timedelta(hours=2)


def check_written(config, written: dict) -> None:
    """Every value of a file is in the configuration; arguments of a class may be written without `init_args`."""
    for key, value in written.items():
        found = config[key] if key in config else config["init_args"][key]
        if isinstance(value, dict):
            check_written(found, value)
        else:
            assert (list(found) if isinstance(value, list) else found) == value, key


@pytest.mark.parametrize("stage", STAGES)
def test_the_settings_of_the_demo_on_real_speech_are_taken_over(parser, stage: str) -> None:
    files = [CONF / "encoder" / "whisper-tiny-en.yaml", CONF / "demo_speech" / f"{stage}.yaml"]
    given = [word for file in files for word in ("--config", str(file))]
    config = parser.parse_args([*configs(stage, "table"), *given]).fit
    check_written(config, yaml.safe_load(files[1].read_text()))
    assert config.model.init_args.encoder.init_args.name == "openai/whisper-tiny.en"  # which it does not repeat


def test_every_shipped_file_is_tried_above() -> None:
    assert set(names("size")) == set(BLOCKS)
    folders = {path.relative_to(CONF).parts[0] for path in CONF.glob("*/*.yaml")}
    tried = {"data", "size", "trainer", "augment", "encoder", "demo_speech", *STAGES}
    assert folders <= {*tried, "llm"}  # llm: tests/test_paper_systems.py
    alone = {path.stem for path in CONF.glob("*.yaml")}
    assert alone == {*STAGES, "adapt_text", "qlora"}  # qlora: tests/apps/test_qlora.py
    of_stages = {path.stem for stage in STAGES for path in (CONF / stage).glob("*.yaml")}
    assert of_stages <= {*names("size"), *names("encoder")}
    assert set(names("demo_speech")) == set(STAGES)


@pytest.mark.parametrize("size", names("size"))
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_and_size_instantiates(
    parser, stage: str, size: str, tokenizer_file: Path, llm_folder: Path
) -> None:
    llm = ["--model.llm", str(llm_folder)] if stage == "finetune" else []
    config = parser.parse_args([*configs(stage, size=size), "--model.tokenizer", str(tokenizer_file), *llm])
    made = parser.instantiate_classes(config).fit
    model = made.model
    assert isinstance(model, STAGES[stage])
    assert isinstance(made.data.llm_input, LlmInput) == (stage == "finetune")  # linked
    with torch.device("meta"):
        encoder = Conformer(model.config.encoder)
    assert len(encoder.blocks) == config.fit.model.init_args.encoder.init_args.num_blocks
    optimizer = model.make_optimizer(list(encoder.parameters()))
    assert optimizer.param_groups[0]["lr"] == config.fit.model.init_args.optimizer.init_args.lr
    assert 0 < model.schedule.factor(0, 100.0) <= 1


@pytest.mark.parametrize("trainer", ["cpu", "single"])  # ddp.yaml needs GPUs
def test_trainers_instantiate(parser, trainer: str, tmp_path: Path, tokenizer_file: Path) -> None:
    given = ["--model.tokenizer", str(tokenizer_file), "--run", str(tmp_path), "--trainer.accelerator", "cpu"]
    config = parser.parse_args([*configs("pretrain_ctc", trainer=trainer), *given])
    options = parser.instantiate_classes(config).fit.trainer
    made = Trainer(**{**options.as_dict(), "logger": False})
    assert made.num_devices == {"cpu": 2, "single": 1}[trainer]


# overrides


def test_hyphens_and_underscores_are_alike_in_options(speechllm) -> None:
    given = ["--model.lora-r", "16", "--trainer.max-epochs=3", "--data.max_duration", "7", "--print-config"]
    status, out, _ = speechllm(*configs("finetune"), *given)
    assert status == 0
    printed = yaml.safe_load(out)
    assert printed["model"]["init_args"]["lora_r"] == 16
    assert printed["trainer"]["max_epochs"] == 3
    assert printed["data"]["max_duration"] == 7


def test_dotted_overrides_win_over_files(parser) -> None:
    arguments = ["--model.lora_r", "16", "--trainer.max_epochs", "3", "--data.max_duration", "7"]
    config = parser.parse_args([*configs("finetune"), *arguments, "--model.encoder.num_blocks", "5"]).fit
    assert config.model.init_args.lora_r == 16
    assert config.model.init_args.encoder.init_args.num_blocks == 5
    assert config.model.init_args.encoder.init_args.dim == 128  # the rest of the group stays
    assert config.trainer.max_epochs == 3
    assert config.data.max_duration == 7


def test_tokenizer_and_run_follow_from_other_values_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speechllm"])
    given = configs("pretrain_ctc", "mls")[1:]
    config = fit_configuration(given)
    assert config.model.init_args.tokenizer == "data/mls/tokenizer.model"
    assert config.run == config.trainer.default_root_dir == "runs/pretrain_ctc/mls-tiny"
    other = [*given, "--data.root", "data/other"]
    assert fit_configuration(other).model.init_args.tokenizer == "data/other/tokenizer.model"
    other += ["--model.tokenizer", "mine.model"]
    assert fit_configuration(other).model.init_args.tokenizer == "mine.model"


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_on_a_cpu_is_the_faster_one_unless_given(fast, precision, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(trainer_cli, "bf16_is_faster", lambda device: fast)
    given = configs("pretrain_ctc")[1:]
    assert fit_configuration(given).trainer.precision == precision
    assert fit_configuration([*given, "--trainer.precision", "16-mixed"]).trainer.precision == "16-mixed"


def test_later_files_win(parser, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {max_epochs: 77}\n")
    config = parser.parse_args([*configs("pretrain_ctc"), "--config", str(tmp_path / "mine.yaml")]).fit
    assert config.trainer.max_epochs == 77


def test_another_optimizer_by_class_path(parser) -> None:
    optimizer = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.25"]
    chosen = parser.parse_args([*configs("pretrain_ctc"), *optimizer]).fit.model.init_args.optimizer
    assert (chosen.class_path, chosen.init_args.lr) == ("torch.optim.SGD", 0.25)


def test_encoder_and_bridge_are_chosen_by_class(parser) -> None:
    chosen = ["--model.encoder", "ConformerConfig", "--model.encoder.dim", "64", "--model.bridge", "ProjectorConfig"]
    model = parser.parse_args([*configs("finetune"), *chosen, "--model.bridge.stride", "6"]).fit.model.init_args
    assert model.encoder.class_path == "speechllm_pl.models.encoders.ConformerConfig"
    assert (model.encoder.init_args.dim, model.encoder.init_args.num_blocks) == (64, 8)
    assert model.bridge.class_path == "speechllm_pl.models.bridges.ProjectorConfig"
    assert model.bridge.init_args.stride == 6


@pytest.mark.parametrize("part", ["encoder", "bridge"])
def test_what_is_no_encoder_or_bridge_is_refused(speechllm, part: str) -> None:
    for other in ("Nope", "torch.nn.Linear", "null", "3"):
        assert part in speechllm(*configs("finetune"), f"--model.{part}", other).error()


def test_the_stride_is_read_where_earlier_versions_had_it(speechllm, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {init_args: {stride: 6}}\n")
    mine = ("--config", tmp_path / "mine.yaml")
    for arguments, stride in ((mine, 6), (("--model.stride", 2), 2), (("--model.stride=2",), 2), ((*mine, *mine), 6)):
        status, out, _ = speechllm(*configs("finetune"), *arguments, "--print_config")
        assert status == 0
        settings = yaml.safe_load(out)["model"]["init_args"]
        assert settings["bridge"]["init_args"] == {"stride": stride}
        assert "stride" not in settings


@pytest.mark.parametrize("stage", STAGES)
def test_the_printed_config_is_itself_a_config(parser, speechllm, stage: str, tmp_path: Path) -> None:
    status, out, _ = speechllm(
        *configs(stage), "--model.encoder.dropout", "0.375", "--run", "runs/here", "--print_config"
    )
    assert status == 0
    assert yaml.safe_load(out)["model"]["init_args"]["encoder"]["init_args"]["dropout"] == 0.375
    printed = tmp_path / "config.yaml"
    printed.write_text(out)
    again = parser.parse_args(["fit", "--config", str(printed)]).fit
    assert again.model.init_args.encoder.init_args.dropout == 0.375
    assert again.run == "runs/here"
    status, repeated, _ = speechllm("fit", "--config", str(printed), "--print_config")
    assert (status, yaml.safe_load(repeated)) == (0, yaml.safe_load(out))


# help

AUGMENTATIONS = [kind for name in augmentation.__all__ if inspect.isclass(kind := getattr(augmentation, name))]
CHOSEN = (*STAGES.values(), ConformerConfig, ProjectorConfig, SpecAugmentConfig, TrainSource, ShardedStrategy)
"""Classes of which the command line makes options, beside those of `fit` itself."""


def check_help(parser: ArgumentParser, ours: tuple[str, ...]) -> None:
    """Options whose names begin with one of `ours` have a line of help, with a capital and a full stop."""
    actions = [action for action in parser._actions if action.dest.startswith(ours) and action.dest != "help"]
    assert actions
    for action in actions:
        assert re.fullmatch(r"[A-Z].*\.", action.help or "", re.DOTALL), (action.dest, action.help)


def test_options_of_fit_have_help_that_stands_by_itself(parser) -> None:
    fit = parser._subcommands_action._name_parser_map["fit"]
    check_help(fit, ("data.", "run", "last_checkpoints.", "largest_batches."))


@pytest.mark.parametrize("kind", [*CHOSEN, *AUGMENTATIONS, WarmupExponential, OneCycle, MuonAdamW])
def test_settings_of_a_class_have_help_that_stands_by_itself(kind: type) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(kind, as_group=False, skip={"params"})
    check_help(parser, ("",))


# mistakes


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["--model.lora_rr", "4"], "lora_r"),
        (["--trainer.max_epoch", "3"], "trainer.max_epochs"),  # no abbreviation is taken for the whole
        (["--trainer.devcies=2"], "trainer.devices"),
        (["--dta.root", "x"], "data.root"),
        (["--model.encoder.dimm", "3"], "dim"),
        (["--model.optimizer.lrr", "3"], "lr"),
        (["--model.schedule.warm_share", "0.3"], "warmup_share"),
        (["--runn", "x"], "run"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_misspelt_option_is_refused_with_the_nearest_name(speechllm, arguments: list[str], meant: str) -> None:
    assert speechllm(*configs("finetune"), *arguments).error().endswith(f"Did you mean {meant}?")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("trainer: {max_epoch: 3}", "trainer.max_epochs"),
        ("model: {init_args: {lora_rr: 3}}", "lora_r"),
        ("model: {init_args: {encoder: {dimm: 3}}}", "dim"),
        ("model: {init_args: {optimizer: {init_args: {lrr: 3}}}}", "lr"),
        ("dta: {root: x}", "data.root"),
        ("mdoel: {init_args: {stride: 3}}", "model"),
        ("data: {max_durations: 3}", "data.max_duration"),
    ],
)
def test_a_misspelt_key_in_a_file_is_refused_with_the_nearest_name(
    speechllm, tmp_path: Path, text: str, meant: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert (
        speechllm(*configs("finetune"), "--config", str(tmp_path / "mine.yaml"))
        .error()
        .endswith(f"Did you mean {meant}?")
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fit"], "data.root"),
        (["fit", "--config", "conf/nosuch.yaml"], "conf/nosuch.yaml"),
        ([*configs("finetune"), "--trainer.max_epochs", "many"], "trainer.max_epochs"),
        ([*configs("finetune"), "--model.bridge.stride", "two"], "stride"),
        ([*configs("finetune"), "--model", "Nope"], "Nope"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_other_mistakes_are_one_line_too(speechllm, arguments: list[str], named: str) -> None:
    assert named in speechllm(*arguments).error()


BOMB = "\n".join(["m0: &m0 [x]", *(f"m{n}: &m{n} [*m{n - 1}, *m{n - 1}]" for n in range(1, 41))]) + "\n"


@pytest.mark.parametrize("command", ["fit", "plan", "fetch"])
@pytest.mark.parametrize(
    "content",
    [BOMB.encode(), b"data: " + 1000 * b"[" + 1000 * b"]", b"data: [", b"data: \x80"],
    ids=["aliases", "levels", "no YAML", "not UTF-8"],
)
def test_a_configuration_that_cannot_be_read_is_named(speechllm, tmp_path: Path, command: str, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert str(path) in speechllm(command, "--config", path).error()


@pytest.mark.parametrize("setting", ["trainer: {max_epochs: %r}", "data: {augmentations: %r}", "data: %r"])
def test_a_text_in_a_configuration_is_read_within_bounds_too(speechllm, tmp_path: Path, setting: str) -> None:
    """jsonargparse takes texts for YAML where no text is wanted."""
    path = tmp_path / "config.yaml"
    path.write_text(setting.replace("%r", '"' + BOMB.replace("\n", "\\n") + '"'))
    message = speechllm("fit", "--config", path).error()
    assert str(path) in message
    assert len(message) < 10 * len(BOMB)

"""Checkpoints that somebody has edited, and saved without digests, are refused in one line before a module is built."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import ctc_file, llm_file, wide_llm  # noqa: F401 (fixtures)

from speechllm_pl.apps.main import main
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.encoders import ConformerConfig
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import RECORD, by_steps, read_checkpoint, read_record, write_file
from speechllm_pl.storage.consolidated import save_consolidated
from speechllm_pl.storage.shards import MODEL, RECORD_FILE, save_shards
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning

Edit = Callable[[dict[str, Any]], Any]
CONF = Path(__file__).parents[2] / "conf"
WEIGHT = "model.encoder.norm.weight"


def setting(name: str, value: Any) -> Edit:
    return lambda found: found[RECORD]["settings"].update({name: value})


def size(name: str, value: Any) -> Edit:
    return lambda found: found[RECORD]["settings"]["encoder"]["init_args"].update({name: value})


def choice(name: str, value: Any) -> Edit:
    return lambda found: found[RECORD]["settings"]["encoder"].update({name: value})


def weight(value: Any) -> Edit:
    return lambda found: found["state_dict"].update({WEIGHT: value})


def edited(path: Path, edit: Edit) -> Path:
    """The same file, without digests: these would tell."""
    found = torch.load(path, weights_only=True)
    found.pop("digests", None)
    edit(found)
    torch.save(found, path)
    return path


EDITS: dict[str, tuple[Edit, str]] = {
    "no state": (lambda found: found.pop("state_dict"), "no weights"),
    "empty state": (lambda found: found["state_dict"].clear(), "no weights"),
    "state a list": (lambda found: found.update(state_dict=[1]), "no weights"),
    "a number for a tensor": (weight(1.0), f"{WEIGHT} among its weights is no tensor"),
    "a tensor of one value repeated": (weight(torch.ones(1).expand(10**12)), "said to have 1000000000000 values"),
    "a tensor without most values": (weight(torch.ones(8).to_sparse()), f"{WEIGHT} is said to have 8 values"),
    "a tensor on no device": (weight(torch.ones(8, device="meta")), f"{WEIGHT} is said to have 8 values"),
    "unknown stage": (lambda found: found[RECORD].update(stage="tts"), "stage is 'tts', which is unknown"),
    "stage a list": (lambda found: found[RECORD].update(stage=[]), r"stage is \[\], which is unknown"),
    "digests a text": (lambda found: found.update(digests="none"), "digests cannot be 'none'"),
    "record a list": (lambda found: found.update({RECORD: [1]}), "its record is none"),
    "precision a number": (lambda found: found[RECORD].update(precision=16), "its precision cannot be 16"),
    "count of skipped steps a text": (lambda found: found[RECORD].update(skipped_steps="1"), "skipped_steps cannot be"),
    "languages a number": (lambda found: found[RECORD].update(languages=1), "its languages cannot be 1"),
    "languages of numbers": (lambda found: found[RECORD].update(languages=[1]), "its languages are no texts"),
    "no settings": (lambda found: found[RECORD].pop("settings"), "no settings"),
    "no tokenizer": (lambda found: found[RECORD]["settings"].pop("tokenizer"), "lacks the setting tokenizer"),
    "no encoder": (lambda found: found[RECORD]["settings"].pop("encoder"), "lacks the setting encoder"),
    "tokenizer of other bytes": (setting("tokenizer", b"junk"), "tokenizer"),
    "tokenizer a text": (setting("tokenizer", "a"), "tokenizer cannot be 'a'"),
    "encoder a list": (setting("encoder", [1]), r"encoder cannot be \[1\]"),
    "unknown setting": (setting("colour", 1), "colour, which is unknown"),
    "width of values that are not there": (size("dim", torch.ones(1).expand(10**12)), "encoder.dim cannot be tensor"),
    "unknown size": (size("depth", 1), "encoder.depth, which is unknown"),
    "width a text": (size("dim", "32"), "encoder.dim cannot be '32'"),
    "width true": (size("dim", True), "encoder.dim cannot be True"),
    "absurd width": (size("dim", 10**9), "dim is 1000000000, which its weights are not of"),
    "absurd depth": (size("num_blocks", 10**9), "num_blocks is 1000000000, which its weights are not of"),
    "no heads": (size("num_heads", 0), "num_heads 0 must be at least 1"),
    "unknown encoder": (choice("class_path", "os.system"), "encoder.class_path cannot be 'os.system'"),
    "class a list": (choice("class_path", [1]), r"encoder.class_path cannot be \[1\]"),
    "sizes a list": (choice("init_args", [1]), r"encoder.init_args cannot be \[1\]"),
    "negative width": (size("ffn_dim", -8), "ffn_dim is -8"),
    "another width": (size("ffn_dim", 40), "has the shape .* but its settings make it"),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_checkpoint_is_refused(ctc_file: Path, kind: str) -> None:  # noqa: F811
    edit, said = EDITS[kind]
    with pytest.raises(UserError, match=said) as refused:
        Recognizer.load(edited(ctc_file, edit))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["no state", "unknown stage", "no settings", "no tokenizer", "encoder a list"])
def test_it_is_refused_on_resuming_too(ctc_file: Path, kind: str) -> None:  # noqa: F811
    edit, said = EDITS[kind]
    with pytest.raises(UserError, match=said):
        AtomicCheckpointIO().load_checkpoint(edited(ctc_file, edit))


def test_an_absurd_width_is_not_that_of_the_run_which_resumes(ctc_file: Path) -> None:  # noqa: F811
    trained = Recognizer.load(ctc_file)
    module = CtcPretraining(trained.tokenizer, encoder=trained.speech.encoder.config)
    with pytest.raises(UserError, match=r"has encoder\.dim 1000000000, but this run 32"):
        module.on_load_checkpoint(read_checkpoint(edited(ctc_file, EDITS["absurd width"][0])))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("llm_dtype", "save", "llm_dtype cannot be 'save'"),
        ("quantize", "int1", "quantize cannot be 'int1'"),
        ("lora_r", 10**9, "lora_r is 1000000000"),
        ("lora_r", -1, "lora_r is -1"),
        ("stride", 10**9, "stride is 1000000000"),
        ("lora_alpha", "16", "lora_alpha cannot be '16'"),
        ("llm", None, "llm cannot be None"),
        ("llm_digest", 1, "llm_digest cannot be 1"),
        ("optimizer", 1, "optimizer, which is unknown"),
    ],
)
def test_settings_of_stage_two_are_looked_at(llm_file: Path, name: str, value: Any, said: str) -> None:  # noqa: F811
    with pytest.raises(UserError, match=said):
        Recognizer.load(edited(llm_file, setting(name, value)))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda record: record.update(stage="tts"), "stage is 'tts', which is unknown"),
        (lambda record: record.pop("settings"), "is not a checkpoint of this project, or is damaged"),
        (
            lambda record: record["settings"]["encoder"]["init_args"].update(dim=10**9),
            "dim is 1000000000, which its weights",
        ),
        (lambda record: record["settings"].pop("encoder"), "lacks the setting encoder"),
    ],
)
def test_an_edited_folder_is_refused(ctc_file: Path, tmp_path: Path, edit: Edit, said: str) -> None:  # noqa: F811
    whole, folder = torch.load(ctc_file, weights_only=True), tmp_path / "folder"
    save_consolidated(folder, whole[RECORD], whole["state_dict"])
    record = json.loads((folder / "speechllm.json").read_text())
    del record["digests"]
    edit(record)
    (folder / "speechllm.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=said):
        Recognizer.load(folder)


def test_settings_of_an_earlier_version_may_be_fewer(llm_file: Path) -> None:  # noqa: F811
    def age(found: dict[str, Any]) -> None:
        settings = found[RECORD]["settings"]
        settings["lora_alpha"] = 16
        training = ("spec_augment", "text_masking", "freeze_encoder", "ctc_weight", "alignment_classes")
        for name in ("llm_revision", "llm_dtype", "quantize", "instruction", *training):
            del settings[name]
        del found[RECORD]["skipped_steps"]

    assert Recognizer.load(edited(llm_file, age)).stage == "llm"


def without_choice(found: dict[str, Any]) -> None:
    """Settings as they were when there was one encoder, and one bridge with one setting."""
    settings = found[RECORD]["settings"]
    settings["encoder"] = settings["encoder"]["init_args"]
    if bridge := settings.pop("bridge", None):
        settings["stride"] = bridge["init_args"]["stride"]


@pytest.mark.filterwarnings("ignore:torch.distributed")  # one process is enough
@pytest.mark.parametrize("kind", ["file", "shards", "folder"])
def test_a_checkpoint_is_read_that_names_no_class_of_encoder_and_bridge(
    llm_file: Path,  # noqa: F811
    ctc_tokenizer: CtcTokenizer,
    small_encoder: ConformerConfig,
    tmp_path: Path,
    kind: str,
) -> None:
    found, path = torch.load(llm_file, weights_only=True), tmp_path / "former.ckpt"
    without_choice(found)
    if kind == "folder":
        save_consolidated(path, found[RECORD], found["state_dict"])
    elif kind == "shards":
        save_shards(path, {RECORD: found[RECORD]}, {MODEL + name: value for name, value in found["state_dict"].items()})
    else:
        write_file(found, path)
    model = Recognizer.load(path).model
    assert isinstance(model, SpeechLLM)
    assert (model.config.bridge, model.config.encoder) == (ProjectorConfig(3), small_encoder)
    settings = {"llm": model.config.llm, "encoder": small_encoder, "alignment_weight": 0.5, "instruction": "{language}"}
    resumed = read_record(path) if kind == "shards" else read_checkpoint(path)
    module = LlmFinetuning(ctc_tokenizer, bridge=ProjectorConfig(3), **settings)
    module.configure_model()
    module.on_load_checkpoint(resumed)
    other = LlmFinetuning(ctc_tokenizer, bridge=ProjectorConfig(2), **settings)
    with pytest.raises(UserError, match=r"has bridge\.stride 3, but this run 2"):
        other.on_load_checkpoint(resumed)


def test_an_encoder_of_an_earlier_checkpoint_begins_stage_two(
    ctc_file: Path,  # noqa: F811
    ctc_tokenizer: CtcTokenizer,
    small_encoder: ConformerConfig,
    llm_folder: Path,
) -> None:
    path = str(edited(ctc_file, without_choice))
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, encoder_checkpoint=path)
    module.configure_model()
    module.load_encoder()
    weights = module.speech.state_dict()["encoder.norm.weight"]
    assert torch.equal(weights, torch.load(path, weights_only=True)["state_dict"][WEIGHT])


@pytest.mark.filterwarnings("ignore:torch.distributed")  # one process is enough
def test_a_cut_file_of_a_folder_of_shards_without_digests_is_told(ctc_file: Path, tmp_path: Path) -> None:  # noqa: F811
    whole, folder = torch.load(ctc_file, weights_only=True), tmp_path / "shards"
    save_shards(folder, {RECORD: whole[RECORD]}, {MODEL + name: value for name, value in whole["state_dict"].items()})
    edited(folder / RECORD_FILE, lambda record: None)
    shard = next(folder.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 50)
    with pytest.raises(UserError, match="is not a checkpoint of this project, or is damaged"):
        Recognizer.load(folder)


# what a run goes on from


def without(name: str) -> Edit:
    return lambda found: found.pop(name)


def with_entry(name: str, value: Any) -> Edit:
    return lambda found: found.update({name: value})


def of_states(change: Edit) -> Edit:
    return lambda found: change(found["optimizer_states"][0])


PROGRESS: dict[str, tuple[Edit, str]] = {
    "no version": (without("pytorch-lightning_version"), "of no version of Lightning"),
    "version a word": (with_entry("pytorch-lightning_version", "new"), "of no version of Lightning"),
    "no step": (without("global_step"), "it lacks global_step"),
    "step a text": (with_entry("global_step", "7"), "its global_step cannot be '7'"),
    "no loops": (without("loops"), "it lacks loops"),
    "loops a list": (with_entry("loops", [7]), r"its loops cannot be \[7\]"),
    "loops of nothing": (with_entry("loops", {}), "its loops are none of fit"),
    "callbacks a list": (with_entry("callbacks", [7]), r"its callbacks cannot be \[7\]"),
    "no schedule": (without("lr_schedulers"), "it lacks lr_schedulers"),
    "schedules numbers": (with_entry("lr_schedulers", [7]), "lr_schedulers are none"),
    "schedules a number": (with_entry("lr_schedulers", 7), "its lr_schedulers cannot be 7"),
    "optimisers a number": (with_entry("optimizer_states", 7), "its optimizer_states cannot be 7"),
    "optimisers numbers": (with_entry("optimizer_states", [7]), "its optimizer_states or lr_schedulers are none"),
    "data a list": (with_entry("SpeechDataModule", [7]), r"its SpeechDataModule cannot be \[7\]"),
    "no groups": (of_states(lambda saved: saved.pop("param_groups")), "optimizer_states have no param_groups"),
    "another parameter": (of_states(lambda saved: saved["state"].update({999: {}})), "have a parameter 999"),
    "a state too short": (  # a fused optimiser would write past its end
        of_states(lambda saved: saved["state"][0].update(exp_avg=torch.zeros(1), momentum_buffer=torch.zeros(1))),
        "of parameter 0 in its optimizer_states has another shape than the parameter",
    ),
}


@pytest.fixture(scope="module")
def begun(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The arguments of a run, and the state that it has ended with."""
    run = tmp_path_factory.mktemp("begun")
    given = ["--config", CONF / "pretrain_ctc.yaml", "--config", CONF / "size" / "tiny.yaml", "--config", small_config]
    arguments = [str(part) for part in ("speechllm", "fit", *given)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, "--run", str(run)])
        main()
    return arguments[1:], by_steps(run / "checkpoints")[-1]


@pytest.mark.parametrize("kind", PROGRESS)
def test_a_run_does_not_go_on_from_what_was_edited(speechllm, begun, tmp_path: Path, kind: str) -> None:
    edit, said = PROGRESS[kind]
    arguments, state = begun
    path = tmp_path / "edited.ckpt"
    path.write_bytes(state.read_bytes())
    line = speechllm(*arguments, "--run", tmp_path / "run", "--ckpt_path", edited(path, edit)).error()
    assert f"{path} is damaged or was edited: " in line
    assert re.search(said, line)

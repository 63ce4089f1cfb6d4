"""What a checkpoint holds, what is refused, and that a failed write leaves the last good one."""

import os
import pickle
import resource
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import save_llm_tokenizer
from sentencepiece import SentencePieceTrainer
from transformers import LlamaConfig, LlamaForCausalLM

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoint_files import remove
from speechllm_pl.storage.checkpoints import RECORD, mend, newest, read_checkpoint
from speechllm_pl.storage.tokenizers import read_tokenizer
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.stage import Stage


def save(module: Stage, path: Path) -> Path:
    """Save a checkpoint as a trainer does, without one."""
    module.configure_model()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return path


def rewritten(source: Path, target: Path, **entries: Any) -> Path:
    torch.save({**torch.load(source, weights_only=True), **entries}, target)
    return target


@pytest.fixture
def ctc_file(ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(CtcPretraining(ctc_tokenizer, encoder=small_encoder), tmp_path / "ctc.ckpt")


@pytest.fixture
def wide_llm(tmp_path: Path) -> Path:
    """An LLM of 1.2 million weights: a checkpoint that held it could not be small."""
    folder = tmp_path / "wide"
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=12, hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4)
    ).save_pretrained(folder)
    save_llm_tokenizer(folder)
    return folder


@pytest.fixture
def llm_file(ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, wide_llm: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module = LlmFinetuning(
        ctc_tokenizer, llm=str(wide_llm), encoder=small_encoder, alignment_weight=0.5, instruction="{language}"
    )
    return save(module, tmp_path / "llm.ckpt")


def file_of(tensor: torch.Tensor) -> str:
    """Path of the file in whose mapping the tensor's values lie; empty if there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        start, end = (int(place, 16) for place in span.split("-"))
        if start <= tensor.data_ptr() < end:
            return "".join(path)
    return ""


# what is saved


@pytest.mark.parametrize("lora_r", [0, 4])
def test_a_checkpoint_holds_what_was_trained_and_nothing_of_the_frozen_llm(
    lora_r: int, ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, wide_llm: Path, tmp_path: Path
) -> None:
    module = LlmFinetuning(ctc_tokenizer, llm=str(wide_llm), encoder=small_encoder, lora_r=lora_r, ctc_weight=0.3)
    path = save(module, tmp_path / "a.ckpt")
    saved = read_checkpoint(path)["state_dict"]
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in module.named_buffers() if ".features." in name}  # window and mel filters
    assert set(saved) == set(trained) | buffers
    expected = sum(value.numel() * value.element_size() for value in trained.values())
    expected += sum(saved[name].numel() * saved[name].element_size() for name in buffers)
    expected += len(ctc_tokenizer.to_bytes())
    assert expected < path.stat().st_size < expected + 100_000  # names and settings
    assert path.stat().st_size < (wide_llm / "model.safetensors").stat().st_size / 2


def test_a_wholly_trained_llm_is_saved(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_folder: Path, tmp_path: Path
) -> None:
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, lora_r=0, train_llm=True)
    saved = read_checkpoint(save(module, tmp_path / "a.ckpt"))["state_dict"]
    assert {name for name in module.state_dict() if name.startswith("model.llm.")} <= set(saved)


@pytest.mark.parametrize("stage", ["ctc", "llm"])
def test_what_is_restored_is_what_was_saved(stage: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(f"{stage}_file")
    saved = torch.load(path, weights_only=True)["state_dict"]
    module = Recognizer.load(path)
    assert module.stage == stage
    assert not module.model.training
    state = module.model.state_dict()
    assert all(torch.equal(state[name.removeprefix("model.")], value) for name, value in saved.items())
    if isinstance(module.model, SpeechLLM):
        assert module.prompt.instruction == "{language}"
        assert module.model.alignment is not None


def test_an_llm_that_has_moved_is_found_by_its_new_name(llm_file: Path, wide_llm: Path, tmp_path: Path) -> None:
    moved = wide_llm.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="wide does not exist"):
        Recognizer.load(llm_file)
    module = Recognizer.load(llm_file, llm=str(moved))
    assert isinstance(module.model, SpeechLLM)
    assert module.model.llm.config._name_or_path == str(moved)


# what is refused


def test_another_llm_than_that_of_the_training_is_refused(llm_file: Path, llm_folder: Path) -> None:
    with pytest.raises(UserError, match="digest differs"):
        Recognizer.load(llm_file, llm=str(llm_folder))


@pytest.mark.parametrize("stage", ["ctc", "llm"])
def test_a_missing_key_is_named(stage: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(f"{stage}_file")
    state = torch.load(path, weights_only=True)["state_dict"]
    lost = next(name for name in state if "encoder.blocks.1.attention.output.weight" in name)
    del state[lost]
    with pytest.raises(UserError, match=rf"lacks {lost} \(1 in all\)"):
        Recognizer.load(rewritten(path, tmp_path / "lacking.ckpt", state_dict=state))


def test_an_unexpected_key_is_named(ctc_file: Path, tmp_path: Path) -> None:
    state = torch.load(ctc_file, weights_only=True)["state_dict"]
    state["model.something.else"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"unexpected model\.something\.else"):
        Recognizer.load(rewritten(ctc_file, tmp_path / "more.ckpt", state_dict=state))


def test_a_checkpoint_of_the_wrong_stage_is_refused(
    ctc_file: Path,
    llm_file: Path,
    ctc_tokenizer: CtcTokenizer,
    small_encoder: ConformerConfig,
    llm_folder: Path,
) -> None:
    with pytest.raises(UserError, match=r"llm\.ckpt is of stage 2.*stage 1.*needed"):
        read_checkpoint(llm_file, stage="ctc")
    assert read_checkpoint(ctc_file, stage="ctc")
    stage_two = LlmFinetuning(
        ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, encoder_checkpoint=str(llm_file), lora_r=0
    )
    stage_two.configure_model()
    with pytest.raises(UserError, match="is of stage 2"):
        stage_two.load_encoder()
    with pytest.raises(UserError, match=r"is of stage 1.*stage 2.*needed"):
        stage_two.on_load_checkpoint(torch.load(ctc_file, weights_only=True))


def test_stage_two_starts_from_the_encoder_of_stage_one(
    ctc_file: Path, ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_folder: Path
) -> None:
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder, encoder_checkpoint=str(ctc_file))
    module.configure_model()
    module.load_encoder()
    saved = torch.load(ctc_file, weights_only=True)["state_dict"]
    state = module.speech.state_dict()
    assert {f"model.{name}" for name in state} == set(saved)
    assert all(torch.equal(value, saved[f"model.{name}"]) for name, value in state.items())


def test_an_encoder_of_another_size_is_refused(ctc_file: Path, ctc_tokenizer: CtcTokenizer, llm_folder: Path) -> None:
    other = ConformerConfig(dim=16, num_blocks=1, num_heads=2, ffn_dim=32)
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=other, encoder_checkpoint=str(ctc_file))
    module.configure_model()
    with pytest.raises(UserError, match=r"encoder\.dim 32, but this run 16"):
        module.load_encoder()


def test_a_tokenizer_of_another_size_is_refused(
    ctc_file: Path, small_encoder: ConformerConfig, llm_folder: Path, tmp_path: Path
) -> None:
    SentencePieceTrainer.Train(
        sentence_iterator=iter(["ab ba abba"] * 5),
        model_prefix=str(tmp_path / "other"),
        vocab_size=6,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    other = read_tokenizer(tmp_path / "other.model")
    pieces = other.vocab_size - 1
    module = LlmFinetuning(other, llm=str(llm_folder), encoder=small_encoder, encoder_checkpoint=str(ctc_file))
    module.configure_model()
    with pytest.raises(UserError, match=rf"tokenizer \({pieces} pieces\) is not the one"):
        module.load_encoder()
    with pytest.raises(UserError, match=rf"tokenizer \({pieces} pieces\) is not the one"):
        CtcPretraining(other, encoder=small_encoder).on_load_checkpoint(torch.load(ctc_file, weights_only=True))


def test_without_a_stage_one_checkpoint_there_is_no_stage_two(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, llm_folder: Path, tmp_path: Path
) -> None:
    module = LlmFinetuning(ctc_tokenizer, llm=str(llm_folder), encoder=small_encoder)
    with pytest.raises(UserError, match="encoder_checkpoint"):
        module.load_encoder()
    with pytest.raises(UserError, match="no checkpoint matches"):
        newest(str(tmp_path / "*.ckpt"))


def test_the_newest_match_is_taken(tmp_path: Path) -> None:
    for age, name in enumerate(["b.ckpt", "c.ckpt", "a.ckpt"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    assert newest(str(tmp_path / "*.ckpt")) == tmp_path / "b.ckpt"
    assert newest(str(tmp_path / "a.ckpt")) == tmp_path / "a.ckpt"


@pytest.mark.parametrize("damage", ["cut short", "overwritten", "empty", "text", "of something else"])
def test_a_damaged_file_is_refused_by_name(ctc_file: Path, damage: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "damaged.ckpt", ctc_file.read_bytes()
    if damage == "of something else":
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(
            {
                "cut short": whole[: len(whole) // 2],
                "overwritten": b"\0" * 500 + whole[500:],
                "empty": b"",
                "text": b"not a checkpoint",
            }[damage]
        )
    with pytest.raises(UserError, match=r"damaged\.ckpt is not a checkpoint of this project, or is damaged"):
        Recognizer.load(path)
    with pytest.raises(UserError, match=r"damaged\.ckpt is not a checkpoint"):
        AtomicCheckpointIO().load_checkpoint(path)  # as when a run is resumed


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.ckpt does not exist"):
        Recognizer.load(tmp_path / "nothing.ckpt")


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_no_pickled_code_runs_from_a_checkpoint(ctc_file: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    pickle.loads(pickle.dumps(Trap(harm)))
    assert harm.exists()  # the trap works
    harm.unlink()
    path = rewritten(ctc_file, tmp_path / "trap.ckpt", trap=Trap(harm))
    with pytest.raises(UserError, match="trap"):
        Recognizer.load(path)
    with pytest.raises(UserError, match="trap"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)  # as Lightning asks for
    assert not harm.exists()


# writing


def _write_on_a_full_disk(path: Path) -> str:
    """What is said when no file may grow beyond 1 MB: the kernel then refuses to write, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(1_000_000)}, path)
    except UserError as error:
        return str(error)
    return ""


def test_a_full_disk_leaves_the_previous_checkpoint_and_no_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    record = {"stage": "ctc", "settings": {"tokenizer": b"a model", "encoder": {}}}
    weights = {"weights": torch.arange(5)}
    AtomicCheckpointIO().save_checkpoint({RECORD: record, "state_dict": weights}, path)
    before = path.read_bytes()
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as other_process:
        message = other_process.submit(_write_on_a_full_disk, path).result()
    assert "last.ckpt could not be written" in message
    assert "free disk space" in message
    assert len(message.splitlines()) == 1
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.equal(read_checkpoint(path)["state_dict"]["weights"], torch.arange(5))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_ranks_that_resume_a_run_share_the_pages_of_its_file_and_who_keeps_it_has_a_copy(
    ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path: Path
) -> None:
    module = CtcPretraining(ctc_tokenizer, encoder=small_encoder)
    module.configure_model()
    means = {"state": {0: {"exp_avg": torch.ones(10_000)}}, "param_groups": [{"lr": 1.0, "params": [0]}]}
    checkpoint = {
        "state_dict": module.state_dict(), "optimizer_states": [means], "pytorch-lightning_version": L.__version__
    }  # fmt: skip
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    resumed = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    average = resumed["optimizer_states"][0]["state"][0]["exp_avg"]
    assert {file_of(tensor) for tensor in (average, *resumed["state_dict"].values())} == {str(tmp_path / "a.ckpt")}
    average.zero_()  # is no change of the file
    kept = read_checkpoint(tmp_path / "a.ckpt")
    assert str(tmp_path / "a.ckpt") not in {file_of(tensor) for tensor in kept["state_dict"].values()}
    assert bool((kept["optimizer_states"][0]["state"][0]["exp_avg"] == 1).all())


def test_an_interrupted_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(5)}, path)
    before = path.read_bytes()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.arange(6)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_what_a_killed_run_left_is_mended(tmp_path: Path) -> None:
    """Unfinished checkpoints of either kind go; one that was being replaced is put back unless the new one is there."""
    for name in (".step=1.ckpt.partial", ".best.ckpt.former", ".step=2.ckpt.former", "step=2.ckpt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text(name)
    (tmp_path / ".step=3.ckpt.partial").write_text("")
    mend(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "step=2.ckpt"]
    assert (tmp_path / "best.ckpt" / "inside").read_text() == ".best.ckpt.former"
    assert (tmp_path / "step=2.ckpt" / "inside").read_text() == "step=2.ckpt"
    remove(tmp_path / "step=2.ckpt")
    remove(tmp_path / "not there")
    assert os.listdir(tmp_path) == ["best.ckpt"]

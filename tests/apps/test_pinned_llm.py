"""An LLM by its hub name: what was loaded is what is loaded again, though the name stands for something else today.

The hub is a cache folder as huggingface_hub lays it out, without a network.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from conftest import save_llm
from jsonargparse import Namespace
from safetensors.torch import load_file, save_file

from speechllm_pl.apps.pinned_llm import pin_llm
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.llm import llm_commit, load_llm
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.checkpoints import RECORD, read_checkpoint
from speechllm_pl.storage.digests import DIGESTS
from speechllm_pl.storage.pretrained_files import weights_digest
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.stage import Stage

ROOT = Path(__file__).parents[2]
NAME = "someone/tiny"
FIRST, SECOND = "1" * 40, "2" * 40
WEIGHT = "model.layers.0.self_attn.q_proj.weight"

Publish = Callable[[str, float], None]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish(commit, factor)`: the hub's newest commit is an LLM of the same shape, its weights times the factor."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "models--someone--tiny"
    llm = save_llm(tmp_path / "llm", width=32)

    def put(commit: str, factor: float) -> None:
        snapshot = folder / "snapshots" / commit
        shutil.copytree(llm, snapshot, dirs_exist_ok=True)
        weights = load_file(llm / "model.safetensors")
        save_file(
            {name: factor * value for name, value in weights.items()}, snapshot / "model.safetensors", {"format": "pt"}
        )
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)

    return put


def save(module: Stage, path: Path) -> Path:
    """Save a checkpoint as a trainer does, without one."""
    module.configure_model()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def trained(publish: Publish, ctc_tokenizer: CtcTokenizer, small_encoder: ConformerConfig, tmp_path: Path) -> Path:
    """A checkpoint that was trained with the first commit, which is no longer the newest."""
    publish(FIRST, 1.0)
    path = save(LlmFinetuning(ctc_tokenizer, llm=NAME, encoder=small_encoder), tmp_path / "llm.ckpt")
    publish(SECOND, 2.0)
    return path


def test_a_digest_of_a_hub_name_tells_commits_apart(publish: Publish) -> None:
    assert weights_digest(NAME) == ""
    publish(FIRST, 1.0)
    first = weights_digest(NAME)
    publish(SECOND, 2.0)
    assert len({"", first, weights_digest(NAME)}) == 3
    assert weights_digest(NAME, FIRST) == first
    assert [llm_commit(NAME), llm_commit(NAME, FIRST)] == [SECOND, FIRST]
    ratio = load_llm(NAME).state_dict()[WEIGHT] / load_llm(NAME, revision=FIRST).state_dict()[WEIGHT]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0))


def test_files_that_were_fetched_for_another_purpose_do_not_change_it(publish: Publish, tmp_path: Path) -> None:
    publish(FIRST, 1.0)
    before = weights_digest(NAME)
    (tmp_path / "hub" / "models--someone--tiny" / "snapshots" / FIRST / "pytorch_model.bin").write_bytes(b"the same")
    assert weights_digest(NAME) == before


def test_a_checkpoint_is_restored_with_the_commit_that_it_was_trained_with(trained: Path) -> None:
    settings = read_checkpoint(trained)[RECORD]["settings"]
    assert settings["llm_revision"] == FIRST
    module = Recognizer.load(trained)
    assert isinstance(module.model, SpeechLLM)
    found = module.model.llm.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(found, load_llm(NAME, revision=FIRST).state_dict()[WEIGHT])


def test_other_weights_of_the_same_shape_are_refused(trained: Path, publish: Publish) -> None:
    publish(FIRST, 3.0)
    with pytest.raises(UserError, match=r"LLM someone/tiny is not the one .* \(its digest differs\)"):
        Recognizer.load(trained)


def test_an_earlier_checkpoint_without_a_digest_is_taken_on_trust_aloud(
    trained: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    del checkpoint[RECORD]["settings"]["llm_revision"], checkpoint[DIGESTS]
    checkpoint[RECORD]["settings"]["llm_digest"] = ""
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    module = Recognizer.load(tmp_path / "earlier.ckpt")
    assert isinstance(module.model, SpeechLLM)
    found = module.model.llm.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(found, load_llm(NAME, revision=SECOND).state_dict()[WEIGHT])
    assert [w for w in recwarn if "someone/tiny is taken on trust" in str(w.message)]


def configuration(run: Path, llm: str, revision: str | None = None, checkpoint: Path | None = None) -> Any:
    arguments = Namespace(llm=llm, llm_revision=revision)
    ckpt_path = str(checkpoint) if checkpoint else None
    return Namespace(run=str(run), ckpt_path=ckpt_path, model=Namespace(init_args=arguments))


def test_a_run_begins_with_the_newest_commit_and_keeps_it(trained: Path, publish: Publish, tmp_path: Path) -> None:
    def pinned(run: str, llm: str = NAME, **more: Any) -> str | None:
        config = configuration(tmp_path / run, llm, **more)
        pin_llm(config)
        return config.model.init_args.llm_revision

    begun = tmp_path / "begun" / "checkpoints"
    begun.mkdir(parents=True)
    shutil.copy(trained, begun / "step=00000001.ckpt")
    assert pinned("new") == SECOND
    assert pinned("begun") == FIRST
    assert pinned("new", checkpoint=trained) == FIRST
    assert pinned("begun", revision="main") == "main"
    shutil.copytree(tmp_path / "hub" / "models--someone--tiny", tmp_path / "hub" / "models--someone--else")
    assert pinned("begun", llm="someone/else") == SECOND


def test_a_folder_has_no_commit(publish: Publish, llm_folder: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, str(llm_folder))
    pin_llm(config)
    assert config.model.init_args.llm_revision is None


def test_a_resumed_run_loads_its_commit_and_refuses_another(
    speechllm, publish: Publish, small_config: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path
) -> None:
    publish(FIRST, 1.0)
    sizes = yaml.safe_load(small_config.read_text())["model"]["init_args"]["encoder"]
    encoder = save(CtcPretraining(ctc_tokenizer, encoder=ConformerConfig(**sizes)), tmp_path / "ctc.ckpt")
    files = [ROOT / "conf" / name for name in ("finetune.yaml", "size/tiny.yaml")]
    given = [part for file in (*files, small_config) for part in ("--config", file)]
    given += ["--model.llm", NAME, "--model.encoder_checkpoint", encoder, "--run", tmp_path / "run"]
    assert speechllm("fit", *given, "--trainer.max_steps", 1).status == 0
    encoder.unlink()  # a resumed run has its own weights
    publish(SECOND, 2.0)
    refused = speechllm("fit", *given, "--trainer.max_steps", 2, "--model.llm_revision", SECOND).error()
    assert "LLM someone/tiny is not the one that this checkpoint was trained with" in refused
    assert f"--model.llm_revision {FIRST}" in refused
    again = speechllm("fit", *given, "--trainer.max_steps", 2)
    assert again.status == 0, again.err
    assert "resuming" in again.out
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["init_args"]
    assert recorded["llm_revision"] == FIRST

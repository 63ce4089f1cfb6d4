"""Stage 2 goes on with texts that have no audio: LoRA alone moves, and neither ranks nor a stop change anything."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import command, finish, rows
from lhotse import CutSet
from untrained import save

from data_prep.text_alone import cuts, rates
from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.real_frames import refuse_other_training

SENTENCES = [("en", "two two seven"), ("de", "six five"), ("en", "eight"), ("de", "one three five seven two")]
STEPS = 6
POSTERIORS = ("--model.simulated_from", "posteriors")
BEST = Path("checkpoints", "best.ckpt")
FROZEN = ("--model.freeze_encoder", "true", "--model.freeze_bridge", "true")


@pytest.fixture(scope="module")
def texts(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "text.jsonl"
    made = cuts(iter(SENTENCES), rates(corpus / "train.jsonl.gz"), seed=0)
    CutSet.from_cuts(cut for _, cut in made if cut).to_file(path)
    return path


@pytest.fixture(scope="module")
def stage_two(ctc_tokenizer: CtcTokenizer, llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with direct alignment and random weights, LoRA's among them."""
    encoder = ConformerConfig(dim=32, num_blocks=2, num_heads=2, ffn_dim=64, kernel_size=5, dropout=0.0)
    bridge = ProjectorConfig(stride=1)
    given = {"llm": str(llm_folder), "encoder": encoder, "bridge": bridge, "alignment_weight": 1.0}
    return save(LlmFinetuning(ctc_tokenizer, **given), tmp_path_factory.mktemp("two") / "two.ckpt")


@pytest.fixture(scope="module")
def arguments(small_config: Path, texts: Path, stage_two: Path, llm_folder: Path):
    def made(run: Path, *more: object, devices: int = 1, frozen: tuple[str, ...] = FROZEN) -> list[str]:
        sources = f"{{audio: train.jsonl.gz, text: {{cuts: {texts}, share: 0.5}}}}"
        return command(
            *("finetune", small_config, run, "--model.llm", llm_folder, "--model.llm_checkpoint", stage_two),
            *("--model.alignment_weight", 1.0, "--data.train", sources, "--data.max_duration", 2.0, *frozen),
            *("--trainer.max_steps", STEPS, "--trainer.max_epochs", 99, "--last_checkpoints.every_n_steps", 2, *more),
            trainer="ddp" if devices > 1 else "single",
            devices=devices,
        )

    return made


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    log = finish(arguments(run, "--trainer.accumulate_grad_batches", 2))
    assert "audio embeddings of 8 utterances measured" in log
    return run


def test_batches_have_texts_with_and_without_audio(whole: Path) -> None:
    seen = {name for row in rows(whole) for name in row["ids"]}
    assert {name.split("-")[0] for name in seen} == {"train", "text"}
    assert all(torch.tensor(row["loss"]).isfinite() for row in rows(whole))


def test_lora_alone_moves_and_the_checkpoint_is_an_ordinary_one(whole: Path, stage_two: Path) -> None:
    before, after = (Recognizer.load(path).model.state_dict() for path in (stage_two, whole / BEST))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert {name for name in after if "lora_B" in name} <= moved


def test_posteriors_take_the_place_of_embeddings_and_train_the_same(
    whole: Path, arguments, stage_two: Path, tmp_path: Path
) -> None:
    log = finish(arguments(tmp_path, *POSTERIORS, "--trainer.accumulate_grad_batches", 2))
    assert "audio embeddings of 8 utterances measured" in log
    before, after = (Recognizer.load(path).model.state_dict() for path in (stage_two, tmp_path / BEST))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)
    first, other = (
        next(row for row in rows(run) if any(name.startswith("text") for name in row["ids"]))
        for run in (whole, tmp_path)
    )
    assert first["ids"] == other["ids"]
    assert torch.tensor(other["loss"]).isfinite()
    assert first["loss"] != pytest.approx(other["loss"], rel=1e-3)


def test_posteriors_need_no_direct_alignment() -> None:
    config = SpeechLlmConfig(llm="any", freeze_encoder=True, freeze_bridge=True, simulated_from="posteriors")
    refuse_other_training(SimpleNamespace(config=config, alignment=None))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="simulated_from posteriors"):
        refuse_other_training(
            SimpleNamespace(config=replace(config, simulated_from="embeddings"), alignment=None)  # pyright: ignore[reportArgumentType]
        )


def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole: Path, arguments, tmp_path: Path) -> None:
    (middle,) = (whole / "checkpoints").glob("step=*4.ckpt")
    finish(arguments(tmp_path / "on", "--trainer.accumulate_grad_batches", 2, "--ckpt_path", middle))
    assert [(row["ids"], row["loss"]) for row in rows(tmp_path / "on")] == [
        (row["ids"], row["loss"]) for row in rows(whole) if row["step"] > 4
    ]


def test_two_ranks_compute_what_one_does(whole: Path, arguments, tmp_path: Path) -> None:
    """This holds in the first epoch: where batches are odd in number, two ranks repeat one."""
    finish(arguments(tmp_path / "two", devices=2), ranks=2)
    one, two = rows(whole), [rows(tmp_path / "two", rank) for rank in (0, 1)]
    taken = [each for pair in zip(*two, strict=True) for each in pair]
    common = 2 * (sum(row["epoch"] == 0 for row in one) // 2)
    assert common >= 6
    assert [row["ids"] for row in taken[:common]] == [row["ids"] for row in one[:common]]
    losses = [row["loss"] for row in taken[:common:2]]
    assert losses == pytest.approx([row["loss"] for row in one[1:common:2]], rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (("--model.freeze_bridge", "false"), "freeze both (--model.freeze_encoder true --model.freeze_bridge true)"),
        (("--model.lora_r", "0"), "has lora_r 8, but this run 0"),
        (("--model.alignment_weight", "0"), "has alignment_weight 1.0, but this run 0"),
    ],
)
def test_what_cannot_be_adapted_is_refused(arguments, tmp_path: Path, changed: tuple, told: str) -> None:
    assert told in " ".join(finish(arguments(tmp_path, *changed), status=2).split())

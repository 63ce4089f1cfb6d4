"""A step goes down the gradient of the mean loss of all its tokens, wherever these lie.

By plain gradient descent, where a wrong factor shows: Adam's steps do not change with it. What is compared with is a
loop over single utterances that knows no trainer, batch, padding or rank. Each step is an epoch of eight utterances:
six batches of other numbers of tokens, accumulated on one rank or on two.
"""

import os
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import pytest
import soundfile
import torch
from conftest import SPLITS
from lightning.pytorch.strategies import DDPStrategy
from ranks import in_ranks
from test_checkpoints import save
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from speechllm_pl.core.padded import Padded
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.features import SpecAugmentConfig
from speechllm_pl.optim.schedules import WarmupExponential
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.llm_finetuning import LlmFinetuning
from speechllm_pl.training.sharding import ShardedStrategy
from speechllm_pl.training.stage import Stage

STEPS, BATCHES = 3, 6  # epochs, and how many batches each has
RATE, CTC_WEIGHT = 0.1, 0.3
CLIPS = (None, 0.3)
ENCODER = ConformerConfig(dim=32, num_blocks=2, num_heads=2, ffn_dim=64, kernel_size=5, dropout=0.0)
STRATEGIES = {
    "one": lambda: "auto",
    "ddp": DDPStrategy,
    "fsdp": ShardedStrategy,
    "hybrid": lambda: ShardedStrategy(shard_within=2),
}
RANKS = {"one": 1, "ddp": 2, "fsdp": 2, "hybrid": 4}
RUNS = list(product(("ctc", "llm"), STRATEGIES, CLIPS))


class Files(NamedTuple):
    corpus: Path
    tokenizer: Path
    llm: Path
    encoder: Path  # of stage 1


class Diary(L.Callback):
    """What was trained, before and after, this rank's part of it, and how many words it had in each step."""

    def __init__(self) -> None:
        self.words = [0] * STEPS

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = whole(pl_module)
        values = ((name, p.detach()) for name, p in trained(pl_module))
        self.held = {name: (p.to_local() if isinstance(p, DTensor) else p).clone() for name, p in values}

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, *_: Any) -> None:
        self.words[trainer.global_step] += len(" ".join(batch.texts).split())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.after = whole(pl_module)


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def whole(module: nn.Module) -> dict[str, Tensor]:
    values = ((name, p.detach()) for name, p in trained(module))
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for name, p in values}


def module(stage: str, files: Files) -> Stage:
    options: dict[str, Any] = {
        "spec_augment": SpecAugmentConfig(freq_masks=0, time_masks=0),
        "optimizer": partial(torch.optim.SGD, lr=RATE),
        "schedule": WarmupExponential(0, 1, 1.0),  # always the peak
    }
    if stage == "ctc":
        return CtcPretraining(str(files.tokenizer), encoder=ENCODER, **options)
    options |= {"encoder_checkpoint": str(files.encoder), "ctc_weight": CTC_WEIGHT}
    return LlmFinetuning(str(files.tokenizer), llm=str(files.llm), encoder=ENCODER, **options)


def train(rank: int, ranks: int, folder: Path, files: Files) -> None:
    """Every run of so many ranks."""
    if ranks > 1:
        os.environ["LOCAL_RANK"] = str(rank)  # so Lightning does not start the others
    for stage, way, clip in RUNS:
        if RANKS[way] != ranks:
            continue
        batches, longest = (8, 0.7) if ranks == 4 else (BATCHES, 2.2)  # one utterance each, which four ranks divide
        L.seed_everything(0, verbose=False)
        diary = Diary()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=ranks,
            strategy=STRATEGIES[way](),
            max_epochs=STEPS,
            accumulate_grad_batches=batches // ranks,
            gradient_clip_val=clip,
            limit_val_batches=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[diary],
            default_root_dir=folder,
        )
        trainer.fit(module(stage, files), SpeechDataModule(str(files.corpus), max_duration=longest, num_buckets=2))
        found = {"words": diary.words, "before": diary.before, "held": diary.held, "after": diary.after}
        torch.save(found, folder / f"{stage} {way} {clip} {rank}.pt")


@pytest.fixture(scope="module")
def files(corpus: Path, tokenizer_file: Path, llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    encoder = save(CtcPretraining(str(tokenizer_file), encoder=ENCODER), tmp_path_factory.mktemp("ctc") / "ctc.ckpt")
    return Files(corpus, tokenizer_file, llm_folder, encoder)


@pytest.fixture(scope="module")
def runs(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what every rank of every run has written."""
    folder = tmp_path_factory.mktemp("runs")
    train(0, 1, folder, files)
    for ranks in (2, 4):
        meeting = tmp_path_factory.mktemp("ranks")
        in_ranks(train, ranks, meeting, folder, files)
    return folder


def by_hand(stage: str, clip: float | None, files: Files, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after the same steps."""
    made = module(stage, files)
    made.configure_model()
    parameters = dict(trained(made))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    for _ in range(STEPS):
        losses, tokens = zip(*(loss(made, files, number) for number in range(len(SPLITS["train"]))), strict=True)
        gradients = torch.autograd.grad(torch.stack(losses).sum() / sum(tokens), list(parameters.values()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        factor = 1.0 if clip is None or norm < clip else clip / norm
        with torch.no_grad():
            for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                parameter -= RATE * factor * gradient
    return {name: p.detach() for name, p in parameters.items()}


def loss(made: Stage, files: Files, number: int) -> tuple[Tensor, int]:
    """Loss of an utterance alone, and the number of its tokens."""
    samples, _ = soundfile.read(files.corpus / f"train-{number}.wav", dtype="float32")
    text = SPLITS["train"][number]
    heard = Padded(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    pieces = torch.tensor(made.tokenizer.encode(text))
    if isinstance(made, CtcPretraining):
        logits, _ = made.model(heard)
        return ctc(logits, pieces), len(pieces)
    model = cast(LlmFinetuning, made).model
    audio = model.listen(heard)
    (ids,) = made.llm_tokenizer.encode([text])
    read = torch.cat([audio.embeddings[0], model.text_embeddings[torch.tensor([1, *ids])]])  # audio, BOS, text
    scores = model.llm(inputs_embeds=read[None]).logits[0, -len(ids) - 1 :]
    written = F.cross_entropy(scores, torch.tensor([*ids, 2]), reduction="sum")  # text and EOS
    return written + CTC_WEIGHT * ctc(model.speech.head(audio.encoded), pieces), len(ids) + 1


def ctc(logits: Tensor, pieces: Tensor) -> Tensor:
    frames, length = torch.tensor([logits.shape[1]]), torch.tensor([len(pieces)])
    return F.ctc_loss(logits[0].log_softmax(-1), pieces[None], frames, length, reduction="sum")


@pytest.mark.parametrize(("stage", "way", "clip"), RUNS)
def test_a_step_is_the_gradient_of_the_mean_loss_a_token(
    runs: Path, files: Files, stage: str, way: str, clip: float | None
) -> None:
    ranks = [torch.load(path) for path in sorted(runs.glob(f"{stage} {way} {clip} *.pt"))]
    assert len(ranks) == RANKS[way]
    assert way == "one" or ranks[0]["words"] != ranks[1]["words"]
    before, after = ranks[0]["before"], ranks[0]["after"]
    expected = by_hand(stage, clip, files, before)
    assert set(after) == set(expected)
    for name, value in expected.items():
        moved = (value - before[name]).norm()
        assert (after[name] - value).norm() < 1e-3 * moved + 1e-6, name
    assert sum((value - before[name]).norm() for name, value in expected.items()) > 0.1


@pytest.mark.parametrize("stage", ["ctc", "llm"])
@pytest.mark.parametrize("way", ["fsdp", "hybrid"])
def test_each_two_ranks_hold_the_halves_of_every_weight(runs: Path, stage: str, way: str) -> None:
    """`hybrid` has two pairs of ranks, where all four would hold quarters: the steps would be the same."""
    ranks = [torch.load(path) for path in sorted(runs.glob(f"{stage} {way} None *.pt"))]
    for first in range(0, RANKS[way], 2):
        for name, value in ranks[0]["before"].items():
            halves = [rank["held"][name] for rank in ranks[first : first + 2]]
            assert [len(half) for half in halves] == [-(-len(value) // 2), len(value) // 2], name
            assert torch.equal(torch.cat(halves), value), name

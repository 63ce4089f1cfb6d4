"""When a run's state is saved and what is kept of it, while training goes on."""

import copy
import os
import signal
import threading
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from ranks import in_ranks

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import Stopped, UserError
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.optim.schedules import OneCycle
from speechllm_pl.storage import checkpoints
from speechllm_pl.storage.background import BackgroundWriter
from speechllm_pl.storage.checkpoint_files import link, remove
from speechllm_pl.storage.checkpoints import newest_complete, read_checkpoint
from speechllm_pl.training import interruption
from speechllm_pl.training.checkpoint_io import AtomicCheckpointIO
from speechllm_pl.training.ctc_pretraining import CtcPretraining
from speechllm_pl.training.interruption import LastCheckpoints

ENCODER = ConformerConfig(dim=32, num_blocks=1, num_heads=2, ffn_dim=64, dropout=0.0)
PATIENCE = 20  # seconds, after which something hangs
REAL_WRITE = checkpoints.write


class Diary(L.Callback):
    """Weights and optimiser after each step, and something to do then; batches after which the run was validated."""

    def __init__(self, then: Any = lambda step: None) -> None:
        self.then = then
        self.states: dict[int, Any] = {}
        self.batches: dict[int, int] = {}  # by the step that they end
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step not in self.states:  # or it is a part of the next step
            self.batches[trainer.global_step] = batches(trainer)
            self.states[trainer.global_step] = copy.deepcopy(
                (pl_module.state_dict(), trainer.optimizers[0].state_dict())
            )
        self.then(trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated.append(batches(trainer))


def batches(trainer: L.Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


@pytest.fixture
def fit(corpus: Path, ctc_tokenizer: CtcTokenizer, tmp_path: Path) -> Any:
    """`fit(last, diary, …)`: five steps of stage 1, validated after each two batches or never → its checkpoints."""

    def run(
        last: LastCheckpoints,
        diary: L.Callback,
        validate: bool = False,
        steps: int = 5,
        resumed: Path | None = None,
        accumulate: int = 1,
    ) -> Path:
        L.seed_everything(0, verbose=False)
        optimizer = partial(torch.optim.AdamW, lr=1e-2)
        module = CtcPretraining(ctc_tokenizer, encoder=ENCODER, optimizer=optimizer, schedule=OneCycle())
        module.configure_model()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            limit_val_batches=int(validate),
            val_check_interval=2,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=[diary, last],
            default_root_dir=tmp_path,
        )
        trainer.fit(module, SpeechDataModule(str(corpus), max_duration=1.5, num_buckets=2), ckpt_path=resumed)
        return tmp_path / "checkpoints"

    return run


# asynchronous


@pytest.mark.filterwarnings("ignore")
def test_steps_go_on_while_the_disk_stands_still(fit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The state of step 2 is written when step 3 has changed everything; the run does not end before step 4's is."""
    released = threading.Event()

    def write(*given: Any) -> None:
        assert released.wait(PATIENCE), "training waits for the disk"
        REAL_WRITE(*given)

    monkeypatch.setattr(checkpoints, "write", write)
    at_step_three: list[Path | None] = []

    def after(step: int) -> None:
        if step == 3:
            at_step_three.append(newest_complete(tmp_path / "checkpoints"))
            released.set()

    diary = Diary(after)
    folder = fit(LastCheckpoints(every_n_steps=2), diary)
    assert at_step_three == [None]
    names = ("best", "step=00000002", "step=00000004", "step=00000005")
    assert sorted(os.listdir(folder)) == [f"{name}.ckpt" for name in names]
    weights, optimizer = diary.states[2]
    saved = read_checkpoint(folder / "step=00000002.ckpt")
    assert all(torch.equal(value, weights[name]) for name, value in saved["state_dict"].items())
    for place, state in optimizer["state"].items():
        found = saved["optimizer_states"][0]["state"][place]
        assert all(torch.equal(value, found[key]) for key, value in state.items())
    assert any(not torch.equal(value, diary.states[3][0][name]) for name, value in weights.items())


@pytest.mark.filterwarnings("ignore")
def test_a_write_that_fails_ends_the_run_at_the_next_step_and_leaves_the_last_good_state(
    fit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failed = threading.Event()

    def write(contents: Any, path: Path) -> None:
        if "step=00000006" in path.name:
            path.write_bytes(b"half of i")
            failed.set()
            raise OSError(28, "No space left on device")
        REAL_WRITE(contents, path)

    monkeypatch.setattr(checkpoints, "write", write)

    def after(step: int) -> None:
        if step == 7:  # the thread has ended, or does before the next step has
            assert failed.wait(PATIENCE)

    diary = Diary(after)
    message = r"step=00000006\.ckpt could not be written .*No space left.*: free disk"
    with pytest.raises(UserError, match=message) as told:
        fit(LastCheckpoints(every_n_steps=3), diary, steps=20)
    assert len(str(told.value).splitlines()) == 1
    assert max(diary.states) in (7, 8)  # before the next save
    folder = tmp_path / "checkpoints"
    assert os.listdir(folder) == ["step=00000003.ckpt"]
    last = newest_complete(folder)
    assert last == folder / "step=00000003.ckpt"
    assert read_checkpoint(last)["global_step"] == 3


# when


@pytest.mark.filterwarnings("ignore")
def test_the_clock_decides_when_a_state_is_saved(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of ten minutes each: 15 are over when the third begins, and again when the sixth does."""
    now = [0.0]
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: now[0]))
    saved: list[int] = []

    class Noted(LastCheckpoints):
        def save(self, trainer: L.Trainer, wer: float | None = None, *, state: bool = True) -> None:
            saved.append(trainer.global_step)
            super().save(trainer, wer, state=state)

    def ten_minutes(step: int) -> None:
        now[0] += 600

    fit(Noted(), Diary(ten_minutes), steps=7)
    assert saved == [3, 6, 7]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_goes_on_exactly_from_each_state_of_a_validated_one(fit: Any, accumulate: int) -> None:
    """Of three accumulated batches, every second is followed by a validation; no step loses its first gradients."""
    whole = Diary()
    folder = fit(LastCheckpoints(keep_newest=9, keep_best=9), whole, validate=True, accumulate=accumulate)
    within = set(whole.validated) - set(whole.batches.values())
    assert bool(within) == (accumulate == 3)
    validated = {max(step for step, last in whole.batches.items() if last <= batch) for batch in whole.validated}
    assert {read_checkpoint(path)["global_step"] for path in folder.glob("wer=*")} == validated
    states = sorted(folder.glob("step=*"))
    assert len(states) > 2
    for state in states[:-1]:
        done = read_checkpoint(state)["global_step"]
        resumed = Diary()
        fit(LastCheckpoints(keep_newest=9), resumed, validate=True, accumulate=accumulate, resumed=state)
        assert resumed.validated == [batch for batch in whole.validated if batch > whole.batches[done]]
        first, last = resumed.states[done + 1][0], resumed.states[5][0]
        for name, value in whole.states[done + 1][0].items():
            assert torch.equal(value, first[name]), (state, name)
            assert torch.equal(whole.states[5][0][name], last[name]), (state, name)


@pytest.mark.filterwarnings("ignore")
def test_a_stop_within_an_accumulated_step_waits_for_its_end(fit: Any, tmp_path: Path) -> None:
    """The signal comes with the second of three batches, which is followed by a validation."""

    class Signal(Diary):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if batches(trainer) == 2:
                pl_module.stop_signal = signal.SIGTERM

    diary = Signal()
    with pytest.raises(Stopped):
        fit(LastCheckpoints(), diary, validate=True, accumulate=3)
    assert diary.validated == [2]
    assert [path.name for path in (tmp_path / "checkpoints").glob("step=*")] == ["step=00000001.ckpt"]


# what is kept


@pytest.mark.filterwarnings("ignore")
def test_validated_weights_are_saved_besides_and_the_best_is_another_name_of_theirs(fit: Any) -> None:
    diary = Diary()
    folder = fit(LastCheckpoints(keep_newest=1), diary, validate=True)
    (state,) = folder.glob("step=*.ckpt")
    assert state.name == "step=00000005.ckpt"
    validated = sorted(folder.glob("wer=*-step=*.ckpt"))
    assert [path.stem.partition("-step=")[2] for path in validated] == ["00000002", "00000004"]
    first = read_checkpoint(validated[0])
    assert all(torch.equal(value, diary.states[2][0][name]) for name, value in first["state_dict"].items())
    assert (folder / "best.ckpt").samefile(validated[0])
    assert validated[0].stat().st_size < 0.5 * state.stat().st_size


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_from_a_state_and_not_from_weights(fit: Any) -> None:
    """And the best, which a kill may have left without its name, has it again."""
    folder = fit(LastCheckpoints(), Diary(), validate=True)
    best = folder / "best.ckpt"
    with pytest.raises(UserError, match=r"holds weights alone.* give a step=….ckpt"):
        fit(LastCheckpoints(), Diary(), steps=6, resumed=best)
    best.unlink()
    named: list[bool] = []
    diary = Diary(lambda step: named.append(any(best.samefile(path) for path in folder.glob("wer=*"))))
    fit(LastCheckpoints(), diary, steps=6, resumed=folder / "step=00000005.ckpt")
    assert list(diary.states) == [6]
    assert named == [True]


def tidied(folder: Path, states: range, rates: dict[int, float], **kept: int) -> list[str]:
    for step in states:
        (folder / f"step={step:08d}.ckpt").write_text(str(step))
    for step, rate in rates.items():
        (folder / f"wer={rate:.4f}-step={step:08d}.ckpt").write_text(f"{step} has {rate}")
    last = LastCheckpoints(**kept)
    last.folder = folder
    last._tidy()
    return sorted(os.listdir(folder))


def test_the_newest_states_and_the_best_weights_stay(tmp_path: Path) -> None:
    """A rate above one sorts as a number; of equal ones the earlier is the better."""
    rates = {1: 0.5, 2: 0.1, 3: 10.0, 4: 2.0, 5: 0.1}
    found = tidied(tmp_path, range(1, 7), rates, keep_newest=2, keep_best=4)
    best = ["wer=0.1000-step=00000002.ckpt", "wer=0.1000-step=00000005.ckpt", "wer=0.5000-step=00000001.ckpt"]
    best += ["wer=2.0000-step=00000004.ckpt"]
    assert found == ["best.ckpt", "step=00000005.ckpt", "step=00000006.ckpt", *best]
    assert (tmp_path / "best.ckpt").read_text() == "2 has 0.1"
    found = tidied(tmp_path, range(7, 8), {7: 0.05, 8: 0.06, 9: 0.07}, keep_newest=2, keep_best=3)
    assert [name.partition("-")[0] for name in found[3:]] == ["wer=0.0500", "wer=0.0600", "wer=0.0700"]
    assert (tmp_path / "best.ckpt").read_text() == "7 has 0.05"


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_second_name_outlives_the_first(
    kind: str, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr("os.link", refused)
    best = tmp_path / "best.ckpt"
    for content in ("first", "second", "third"):
        source = tmp_path / f"{content}.ckpt"
        inside = source
        if kind == "folder":
            source.mkdir()
            inside = source / "record.pt"
        inside.write_text(content)
        link(source, best)
        link(source, best)
        within = best if kind == "file" else best / "record.pt"
        assert within.samefile(inside) == links
        remove(source)
        assert within.read_text() == content
        assert os.listdir(tmp_path) == ["best.ckpt"]


def resume(rank: int, ranks: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # so Lightning does not start the others
    trainer = L.Trainer(accelerator="cpu", devices=ranks, strategy="ddp", logger=False)
    trainer.strategy.setup_environment()
    for paths, told in (
        (("a.ckpt", "a.ckpt"), ""),
        (("a.ckpt", "b.ckpt"), "rank 0 resumes a.ckpt and rank 1 b.ckpt"),
        (("a.ckpt", None), "rank 0 resumes a.ckpt and rank 1 None"),
        ((None, "a.ckpt"), "rank 0 resumes None and rank 1 a.ckpt"),
        ((None, None), ""),
    ):
        trainer.ckpt_path = paths[rank]
        with pytest.raises(UserError, match=told if rank else "rank 0 resumes") if told else nullcontext():
            LastCheckpoints().setup(trainer, L.LightningModule(), "fit")


def test_ranks_that_would_resume_different_states_end_together(tmp_path: Path) -> None:
    """As after a listing of the folder that lags behind on one node."""
    in_ranks(resume, 2, tmp_path)


@pytest.mark.parametrize("name", ["keep_newest", "keep_best"])
def test_something_must_be_kept(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} 0: one at least"):
        LastCheckpoints(**{name: 0})  # type: ignore[arg-type]


def test_a_rank_that_failed_goes_though_its_last_write_never_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A write never ends that waits for the threads of other ranks."""
    released, armed = threading.Event(), []
    writer = BackgroundWriter()
    writer.start({}, lambda _: released.wait(PATIENCE) and None)
    monkeypatch.setattr(interruption, "LAST_WRITE_SECONDS", 0.01, raising=False)
    monkeypatch.setattr(interruption.threading, "Timer", lambda *given: armed.append(given) or threading.Thread())
    trainer, module = SimpleNamespace(world_size=2, global_rank=1), SimpleNamespace(writer=writer)
    failure = RuntimeError("the disk of this rank is on fire")
    LastCheckpoints().on_exception(trainer, module, failure)  # type: ignore[arg-type]
    assert not released.is_set()
    assert "left unfinished: it takes more than 0.01 s" in caplog.text
    ((_, _, arguments),) = armed
    assert arguments == (1, failure)
    released.set()

"""Nothing but seed, epoch and id decides what is drawn; values that cannot be are refused."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_cut
from made_utterances import RATE, batch, everything, utterance

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import (
    AddNoise,
    Augmentation,
    CompressMp3,
    CompressOpus,
    Concatenate,
    PerturbGain,
    PerturbSpeed,
    Reverberate,
    augment,
)
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.data.utterance import Utterance

ELSEWHERE = """
import sys
import numpy as np
from speechllm_pl.data.augmentation import *
from speechllm_pl.data.utterance import Utterance
with np.load(sys.argv[1]) as given:
    utterances = [Utterance(name, samples, f"text of {name}", "en") for name, samples in given.items()]
for epoch in range(2):
    rows = augment(utterances, eval(sys.argv[3]), 3, epoch)
    np.savez(f"{sys.argv[2]}-{epoch}.npz", **{row.id: row.samples for row in rows})
"""


def same(left: list[Utterance], right: list[Utterance]) -> bool:
    return len(left) == len(right) and all(
        (a.id, a.text, a.drawn) == (b.id, b.text, b.drawn) and np.allclose(a.samples, b.samples, atol=1e-6)
        for a, b in zip(left, right, strict=True)
    )


def test_other_processes_draw_the_same(noises: Path, tmp_path: Path) -> None:
    """The other process has another seed of Python's hashes."""
    given = batch([0.5, 0.6, 0.7, 0.6])
    np.savez(tmp_path / "given.npz", **{each.id: each.samples for each in given})  # type: ignore[arg-type]
    arguments = [str(tmp_path / "given.npz"), str(tmp_path / "found"), repr(everything(noises))]
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "17", "OMP_NUM_THREADS": "1"},
    )
    for epoch in range(2):
        expected = augment(given, everything(noises), 3, epoch)
        with np.load(tmp_path / f"found-{epoch}.npz") as found:
            assert set(found) == {each.id for each in expected}
            for each in expected:
                np.testing.assert_allclose(found[each.id], each.samples, atol=1e-6)
    assert not same(augment(given, everything(noises), 3, 0), expected)
    assert not same(augment(given, everything(noises), 4, 1), expected)


def test_an_utterance_is_changed_the_same_way_in_any_batch_and_place(noises: Path) -> None:
    given = batch([0.5, 0.6, 0.7, 0.6])
    alone = [augment([each], everything(noises)[:-1], 0, 1)[0] for each in given]
    together = augment(given[::-1], everything(noises)[:-1], 0, 1)[::-1]
    assert same(alone, together)


def test_what_one_draws_does_not_move_what_the_next_draws() -> None:
    for epoch in range(5):
        with_first = augment(batch([0.5]), [PerturbSpeed(factors=(1.0,)), PerturbGain()], 0, epoch)
        without = augment(batch([0.5]), [PerturbSpeed(probability=0.0), PerturbGain()], 0, epoch)
        assert with_first[0].drawn[-1] == without[0].drawn[-1]


def test_as_many_are_changed_as_probability_says() -> None:
    given = [utterance("u", 0.01)._replace(id=f"u{number}") for number in range(1000)]
    done = augment(given, [PerturbGain(probability=0.3)], 0, 0)
    assert sum(bool(each.drawn) for each in done) == pytest.approx(300, abs=45)  # three standard deviations


def test_only_training_batches_are_changed_and_each_epoch_anew(corpus: Path) -> None:
    def waveforms(split: str, **options: Any) -> dict[str, np.ndarray]:
        data = SpeechDataModule(str(corpus), **options)
        loader = {"train": data.train_dataloader, "dev": data.val_dataloader, "test": data.test_dataloader}[split]()
        return {
            id_: row[:length].numpy()
            for batch in loader
            for id_, row, length in zip(batch.ids, batch.waveforms, batch.lengths, strict=True)
        }

    louder: dict[str, Any] = {"augmentations": [PerturbGain(gain_db=(6, 12))]}
    for split in ("train", "dev", "test"):
        plain, augmented = waveforms(split), waveforms(split, **louder)
        assert plain.keys() == augmented.keys()
        ratios = {id_: np.abs(augmented[id_]).max() / np.abs(plain[id_]).max() for id_ in plain}
        assert all(1.9 < r < 4 if split == "train" else r == 1 for r in ratios.values())
    workers = waveforms("train", num_workers=2, max_duration=3.0, **louder)
    here = waveforms("train", **louder)
    assert all(np.array_equal(workers[id_], here[id_]) for id_ in here)


def test_epochs_and_batches_reach_the_draws(tmp_path: Path) -> None:
    cuts = [write_cut(tmp_path, f"u{n}", utterance(f"u{n}").samples, "text", "de") for n in range(2)]
    dataset = SpeechDataset(cuts, [PerturbGain()], seed=0)
    first, again, later, swapped = (
        dataset[PlannedBatch(np.array(indices), seed=seed, epoch=epoch)].waveforms
        for indices, seed, epoch in (([0, 1], 1, 0), ([0, 1], 2, 0), ([0, 1], 1, 1), ([1, 0], 3, 0))
    )
    assert first.equal(again)
    assert first.equal(swapped.flip(0))
    assert not first.equal(later)
    copies = dataset[PlannedBatch(np.array([0, 0]), seed=1, epoch=0, copies=np.array([0, 1]))].waveforms
    assert copies[0].equal(first[0])
    assert not copies[1].equal(first[0])


@pytest.mark.parametrize(
    "augmentations",
    [
        [PerturbSpeed(factors=(0.8,))],
        [PerturbSpeed(factors=(0.8, 1.25)), Concatenate()],
        [Concatenate(), PerturbSpeed(factors=(0.8,))],
    ],
    ids=str,
)
def test_batches_stay_within_max_duration(corpus: Path, augmentations: list[Augmentation]) -> None:
    options: dict[str, Any] = {"max_duration": 4.0, "num_buckets": 2}
    data = SpeechDataModule(str(corpus), augmentations=augmentations, **options)
    batches = list(data.train_dataloader())
    assert sorted(name for batch in batches for id_ in batch.ids for name in id_.split("+")) == sorted(
        cut.id for cut in data.cuts("train")
    )
    assert all(batch.waveforms.numel() <= 4.0 * RATE for batch in batches)
    assert len(batches) > len(SpeechDataModule(str(corpus), **options).train_dataloader())
    assert len(data.buckets("dev")) == len(SpeechDataModule(str(corpus), **options).buckets("dev"))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PerturbGain(probability=1.5), r"PerturbGain .*probability 1.5"),
        (lambda: PerturbGain(probability=-0.1), r"probability -0.1"),
        (lambda: AddNoise(folder="x", snr_db=(20, 0)), r"AddNoise .*snr_db \[20, 0\] is reversed: give \[0, 20\]"),
        (lambda: AddNoise(folder="x", snr_db=(0, 1000)), r"snr_db \[0, 1000\] is not within"),
        (lambda: AddNoise(), r"either a folder .* or a manifest"),
        (lambda: AddNoise(folder="x", manifest="y"), r"either a folder .* or a manifest"),
        (lambda: Reverberate(folder="x", manifest="y"), r"not both"),
        (lambda: Reverberate(max_t60_seconds=0), r"max_t60_seconds 0"),
        (lambda: PerturbSpeed(factors=()), r"factors \[\]"),
        (lambda: PerturbSpeed(factors=(90,)), r"factors \[90\]"),
        (lambda: PerturbSpeed(weights=(1, 1)), r"weights \[1, 1\].* 3 factors"),
        (lambda: PerturbSpeed(weights=(0, 0, 0)), r"weights"),
        (lambda: CompressOpus(kbps=(2, 32)), r"kbps \[2, 32\] is not within 6 … 256"),
        (lambda: CompressMp3(quality=(0, 10)), r"quality \[0, 10\] is not within 0 … 9.9"),
        (lambda: Concatenate(max_seconds=0), r"max_seconds 0"),
        (lambda: Concatenate(pause_seconds=0.1), r"pause_seconds 0.1"),
        (lambda: Concatenate(room=0.5), r"room 0.5"),
    ],
)
def test_a_wrong_value_is_told_at_once(make: Any, named: str) -> None:
    with pytest.raises(UserError, match=named):
        make()


def test_values_can_be_replaced_but_not_changed() -> None:
    gain = PerturbGain(probability=0.2)
    assert replace(gain, probability=1.0).probability == 1.0
    with pytest.raises(AttributeError):
        gain.probability = 1.0  # type: ignore[misc]

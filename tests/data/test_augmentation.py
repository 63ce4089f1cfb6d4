"""What augmentations do to the signal, against independent computations, and that nothing but ids decides it."""

import logging
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile
import torch
from conftest import write_cut
from lhotse import CutSet, Recording, RecordingSet

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import (
    AddNoise,
    Augmentation,
    CompressMp3,
    CompressMuLaw,
    CompressOpus,
    Concatenate,
    PerturbGain,
    PerturbSpeed,
    Reverberate,
    augment,
    codecs,
    noise_and_rooms,
)
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.data.utterance import Utterance
from speechllm_pl.models.encoders.conformer import halved
from speechllm_pl.models.features import FilterBank

RATE = 16_000


def utterance(name: str, seconds: float = 1.0, language: str = "en", kind: str = "noise") -> Utterance:
    """Speech-like: noise between 100 and 3500 Hz that comes and goes four times a second; or a tone of 1 kHz."""
    time = np.arange(round(seconds * RATE)) / RATE
    if kind == "tone":
        samples = 0.3 * np.sin(2 * np.pi * 1000 * time)
    else:
        band = scipy.signal.butter(4, [100, 3500], "bandpass", fs=RATE, output="sos")
        white = np.random.default_rng(sum(name.encode())).standard_normal(len(time))
        samples = 0.2 * scipy.signal.sosfilt(band, white) * (1.1 + np.sin(2 * np.pi * 4 * time))
    return Utterance(name, samples.astype(np.float32), f"text of {name}", language)


def changed(augmentation: Augmentation, given: Utterance, epoch: int = 0) -> Utterance:
    (result,) = augment([given], [augmentation], seed=0, epoch=epoch)
    return result


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings, in folders: short, long, and of another rate with two channels."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(1)
    (folder / "more").mkdir()
    soundfile.write(folder / "short.wav", 0.1 * rng.standard_normal(4_000), RATE)
    soundfile.write(folder / "long.flac", 0.02 * rng.standard_normal(80_000), RATE)
    soundfile.write(folder / "more" / "stereo.wav", 0.1 * rng.standard_normal((44_100, 2)), 22_050)
    (folder / "README.txt").write_text("not audio")
    return folder


def everything(noises: Path) -> list[Augmentation]:
    return [
        PerturbSpeed(),
        Reverberate(probability=0.5),
        AddNoise(folder=str(noises), probability=0.7),
        PerturbGain(),
        CompressOpus(probability=0.5),
        CompressMp3(probability=0.5),
        CompressMuLaw(probability=0.5),
        Concatenate(probability=0.7),
    ]


# what each does


def test_noise_is_added_at_the_ratio_that_was_drawn(noises: Path) -> None:
    names = set()
    for epoch in range(12):
        given = utterance("u", 2.0)
        result = changed(AddNoise(folder=str(noises), snr_db=(-5, 25)), given, epoch)
        _, name, _, ratio, _ = result.drawn[0].split()
        noise = result.samples.astype(float) - given.samples
        measured = 10 * np.log10(np.mean(given.samples.astype(float) ** 2) / np.mean(noise**2))
        assert measured == pytest.approx(float(ratio), abs=0.1)
        assert -5 <= measured <= 25
        names.add(name)
    assert names == {"short", "long", "stereo"}


def test_noise_that_is_too_short_begins_anew_and_long_noise_is_entered_anywhere(noises: Path) -> None:
    short, _ = soundfile.read(noises / "short.wav")
    long, _ = soundfile.read(noises / "long.flac")
    offsets = set()
    for epoch in range(20):
        result = changed(AddNoise(folder=str(noises)), utterance("u"), epoch)
        noise = result.samples.astype(float) - utterance("u").samples
        if "short" in result.drawn[0]:
            expected = np.resize(short, RATE)
            assert np.corrcoef(noise, expected)[0, 1] > 0.999
        elif "long" in result.drawn[0]:
            offsets.add(int(scipy.signal.correlate(long, noise, "valid", method="fft").argmax()))
    assert len(offsets) > 2


def test_loader_processes_are_sent_what_has_been_opened(noises: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than each looking through thousands of files again."""
    noise = AddNoise(folder=str(noises))
    noise.check()
    sent = pickle.dumps(noise)
    monkeypatch.delattr(noise_and_rooms, "recordings_of")
    ours, expected = changed(pickle.loads(sent), utterance("u")), changed(noise, utterance("u"))
    np.testing.assert_array_equal(ours.samples, expected.samples)


def test_a_manifest_of_noise_does_what_its_folder_does(noises: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in noises.rglob("*") if path.suffix in (".wav", ".flac"))
    recordings = [Recording.from_file(path, recording_id=path.stem) for path in paths]
    RecordingSet.from_recordings(recordings).to_file(tmp_path / "recordings.jsonl.gz")
    CutSet.from_cuts(recording.to_cut() for recording in recordings).to_file(tmp_path / "cuts.jsonl.gz")
    expected = changed(AddNoise(folder=str(noises)), utterance("u"))
    for name in ("recordings", "cuts"):
        found = changed(AddNoise(manifest=str(tmp_path / f"{name}.jsonl.gz")), utterance("u"))
        np.testing.assert_array_equal(found.samples, expected.samples)


def test_silence_gets_no_noise(noises: Path) -> None:
    silence = utterance("u")._replace(samples=np.zeros(RATE, np.float32))
    assert not changed(AddNoise(folder=str(noises)), silence).samples.any()


@pytest.mark.parametrize("factor", [0.9, 1.1, 0.75])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor: float) -> None:
    given = utterance("u", 2.0, kind="tone")
    result = changed(PerturbSpeed(factors=(factor,)), given)
    assert len(result.samples) == pytest.approx(len(given.samples) / factor, abs=1)
    frequencies, power = scipy.signal.periodogram(result.samples, RATE)
    assert frequencies[power.argmax()] == pytest.approx(1000 * factor, abs=1)
    assert result.drawn == (f"speed {factor:g}",)


def test_factors_are_drawn_with_their_weights() -> None:
    augmentation = PerturbSpeed(factors=(0.9, 1.0, 1.1), weights=(1, 2, 1))
    drawn = Counter(changed(augmentation, utterance("u", 0.02), epoch).drawn[0] for epoch in range(400))
    assert scipy.stats.chisquare([drawn[f"speed {f}"] for f in (0.9, 1, 1.1)], [100, 200, 100]).pvalue > 0.01


def test_gain_is_exact_in_decibels_and_does_not_clip() -> None:
    given = utterance("u", kind="tone")
    result = changed(PerturbGain(gain_db=(20, 20)), given)
    np.testing.assert_allclose(result.samples, 10 * given.samples, rtol=1e-6)
    assert result.samples.max() > 2


def mu_law(x: np.ndarray) -> np.ndarray:
    """The formula, sample by sample."""
    coded = np.floor((np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256) + 1) / 2 * 255 + 0.5)
    y = coded / 255 * 2 - 1
    return np.sign(y) * (np.exp(np.abs(y) * np.log(256)) - 1) / 255


def test_mu_law_is_the_formula() -> None:
    given = utterance("u")
    result = changed(CompressMuLaw(telephone=False), given)
    difference = np.abs(result.samples - mu_law(given.samples.astype(float)))
    assert np.mean(difference > 1e-5) < 1e-3  # samples between two levels may fall to either in float32
    assert len(np.unique(result.samples)) <= 256


def test_a_telephone_takes_away_what_is_above_4_khz() -> None:
    white = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32) * 0.1
    result = changed(CompressMuLaw(), utterance("u")._replace(samples=white))
    frequencies, power = scipy.signal.welch(result.samples, RATE)
    assert power[frequencies > 4300].sum() < 0.01 * power[frequencies < 3700].sum()
    assert len(result.samples) == len(white)


CODECS = (
    CompressOpus(kbps=(24, 24)),
    CompressOpus(kbps=(96, 96)),
    CompressMp3(quality=(2, 2)),
    CompressMp3(quality=(9, 9)),
    CompressMuLaw(),
)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("length", [48_037, 16_000, 801])
def test_codecs_keep_length_and_time(codec: Augmentation, length: int) -> None:
    given = utterance("u", length / RATE)
    coded = changed(codec, given).samples
    assert len(coded) == length
    lags = np.arange(1 - length, length)
    assert abs(lags[scipy.signal.correlate(coded, given.samples, method="fft").argmax()]) <= 2
    assert 0.8 < np.corrcoef(coded, given.samples)[0, 1] < 0.99999


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_codecs_do_not_clip_what_is_beyond_full_scale(codec: Augmentation) -> None:
    given = utterance("u")
    loud = given._replace(samples=given.samples * 10)
    coded = changed(codec, loud).samples
    assert np.abs(loud.samples).max() > 2
    assert np.abs(coded).max() == pytest.approx(np.abs(loud.samples).max(), rel=0.2)


def test_fewer_bits_change_more() -> None:
    given = utterance("u", 3.0)

    def error(codec: Augmentation) -> float:
        return float(np.mean((changed(codec, given).samples - given.samples) ** 2))

    assert error(CompressOpus(kbps=(8, 8))) > 3 * error(CompressOpus(kbps=(64, 64)))
    assert error(CompressMp3(quality=(9.9, 9.9))) > 3 * error(CompressMp3(quality=(2, 2)))


@pytest.mark.parametrize("sign", [1, -1])
def test_reverberation_is_a_convolution_that_keeps_power_and_direct_sound(tmp_path: Path, sign: int) -> None:
    """Also where the direct sound is a trough, and later reflections are the highest peaks."""
    rng = np.random.default_rng(3)
    response = 0.2 * rng.uniform(-1, 1, 3_000) * np.exp(-np.arange(3_000) / 600)
    response[:40] = 0
    response[40] = 0.9 * sign
    soundfile.write(tmp_path / "hall.wav", response, RATE, subtype="FLOAT")
    given = utterance("u", 1.5)
    result = changed(Reverberate(folder=str(tmp_path)), given)
    wet = scipy.signal.fftconvolve(given.samples, sign * response)[40 : 40 + len(given.samples)]
    wet *= np.sqrt(np.mean(given.samples**2) / np.mean(wet**2))
    np.testing.assert_allclose(result.samples, wet, atol=1e-5)
    assert result.drawn == ("room hall",)


def test_simulated_rooms_differ_and_draw_from_no_shared_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (changed(Reverberate(), utterance("u"), epoch) for epoch in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    np.testing.assert_array_equal(changed(Reverberate(), utterance("u")).samples, first.samples)
    assert np.corrcoef(first.samples, second.samples)[0, 1] < 0.999
    for result in (first, second):
        assert np.mean(result.samples**2) == pytest.approx(np.mean(utterance("u").samples ** 2), rel=1e-3)


# joining


def batch(lengths: list[float], languages: str = "") -> list[Utterance]:
    return [
        utterance(f"u{number}", seconds, languages[number] if languages else "en")
        for number, seconds in enumerate(lengths)
    ]


def area(utterances: list[Utterance]) -> float:
    """Seconds with padding."""
    return len(utterances) * max(len(each.samples) for each in utterances) / RATE


@pytest.mark.parametrize("languages", ["aaaaaaaa", "aaaabbbb", "aabbccdd", "aaaaaaa", "abcdefgh"])
def test_joining_loses_nothing_and_mixes_no_languages(languages: str) -> None:
    given = batch([1.0, 0.9, 1.0, 0.8, 0.95, 1.0, 0.9, 0.85][: len(languages)], languages)
    by_id = {each.id: each for each in given}
    sizes = Counter()
    for epoch in range(20):
        rows = augment(given, [Concatenate(max_seconds=5.0, room=1.3)], seed=0, epoch=epoch)
        parts = [row.id.split("+") for row in rows]
        assert sorted(name for names in parts for name in names) == sorted(by_id)
        assert area(rows) <= 1.3 * area(given)
        for row, names in zip(rows, parts, strict=True):
            expected = [by_id[name] for name in names]
            assert {each.language for each in expected} == {row.language}
            assert row.text == " ".join(each.text for each in expected)
            assert len(row.samples) <= 5.0 * RATE
            gap = np.zeros(round(0.2 * RATE))
            joined = np.concatenate([part for each in expected for part in (gap, each.samples)][1:])
            np.testing.assert_array_equal(row.samples, joined)
        sizes.update(len(names) for names in parts)
    assert (max(sizes) > 1) == (languages != "abcdefgh")


def test_utterances_without_a_partner_do_not_make_a_batch_longer() -> None:
    """One of eight would make six rows of twice the length out of eight."""
    given = batch([1.0] * 8, "aabcdefg")
    assert augment(given, [Concatenate()], seed=0, epoch=0) == given
    roomy = augment(given, [Concatenate(room=2.5)], seed=0, epoch=0)
    assert len(roomy) == 7


def test_nothing_is_joined_beyond_the_longest_that_is_allowed() -> None:
    given = batch([1.0] * 4)
    assert augment(given, [Concatenate(max_seconds=2.1)], seed=0, epoch=0) == given  # the pause counts too
    assert len(augment(given, [Concatenate(max_seconds=2.2)], seed=0, epoch=0)) == 2


@pytest.mark.parametrize(("characters", "rows"), [(0, 5), (40, 5), (80, 6)])
def test_joined_transcripts_make_a_batch_no_larger_than_its_room(characters: int, rows: int) -> None:
    given = batch([1.3, 1.3, 2.0, 2.0, 2.0, 2.0], "aabcde")
    texts = ["x" * (characters if each.language == "a" else 80) for each in given]
    given = [each._replace(text=text) for each, text in zip(given, texts, strict=True)]
    assert len(augment(given, [Concatenate(room=1.2)], seed=0, epoch=0)) == rows


def test_ctc_has_a_frame_more_for_two_joined_utterances_than_for_the_two() -> None:
    """So one that is feasible for each is feasible for both, also where a token is repeated across the seam."""

    def frames(samples: torch.Tensor) -> torch.Tensor:
        return halved(halved(halved(FilterBank.num_frames(samples))))

    first = torch.arange(1, 16_000, 37)[:, None]
    second = torch.arange(1, 6_000, 53)[None, :]
    joined = first + round(Concatenate().pause_seconds * RATE) + second
    assert (frames(joined) >= frames(first) + frames(second) + 1).all()


# what is drawn depends on seed, epoch and id


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
    """With another seed of Python's hashes."""
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


# planning


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


# bad input


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


def test_joined_utterances_must_not_be_longer_than_others_may_be() -> None:
    with pytest.raises(UserError, match=r"max_seconds 30.0 .*data.max_seconds = 20"):
        SpeechDataModule("anywhere", max_seconds=20, augmentations=[Concatenate()])


@pytest.mark.parametrize("kind", [AddNoise, Reverberate])
def test_a_run_does_not_start_without_its_recordings(corpus: Path, tmp_path: Path, kind: Any) -> None:
    def begin(**where: str) -> None:
        SpeechDataModule(str(corpus), augmentations=[kind(**where)]).setup("fit")

    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.wav").write_bytes(b"RIFFnothing")
    (tmp_path / "no.jsonl").write_text("{}\n")
    for name, told in (("missing", "no recordings"), ("empty", "no recordings"), ("broken", "none of the 1")):
        with pytest.raises(UserError, match=rf"{kind.__name__} .*{told}.*") as raised:
            begin(folder=str(tmp_path / name))
        assert str(tmp_path / name) in str(raised.value)
    for name in ("missing.jsonl", "no.jsonl"):
        with pytest.raises(UserError, match=rf"{kind.__name__} .*{tmp_path / name}"):
            begin(manifest=str(tmp_path / name))
    SpeechDataModule(str(corpus), augmentations=[kind(folder=str(tmp_path))]).setup("test")  # needs none


def test_a_recording_of_noise_that_cannot_be_read_is_named_and_left_out(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"not audio")
    (tmp_path / "good.wav").write_bytes((noises / "short.wav").read_bytes())
    with caplog.at_level(logging.WARNING):
        AddNoise(folder=str(tmp_path)).check()
    assert "bad.wav" in caplog.text
    drawn = {changed(AddNoise(folder=str(tmp_path)), utterance("u"), epoch).drawn[0].split()[1] for epoch in range(8)}
    assert drawn == {"good"}


def test_noise_that_vanishes_later_is_passed_over_and_ends_the_run_when_all_has(
    noises: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes((noises / "short.wav").read_bytes())
    augmentation = AddNoise(folder=str(tmp_path))
    augmentation.check()
    (tmp_path / "a.wav").unlink()
    with caplog.at_level(logging.WARNING):
        drawn = {changed(augmentation, utterance("u"), epoch).drawn[0].split()[1] for epoch in range(8)}
    assert drawn == {"b"}
    assert "passed over a" in caplog.text
    (tmp_path / "b.wav").unlink()
    with pytest.raises(UserError, match=r"10 recordings .* in a row cannot be read"):
        changed(augmentation, utterance("u"))


@pytest.mark.parametrize(("kind", "name"), [(CompressOpus, "Opus"), (CompressMp3, "MP3")])
def test_a_libsndfile_without_a_codec_is_told_at_the_start(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str
) -> None:
    kind().check()

    def refuse(*_: Any, **__: Any) -> None:
        raise soundfile.LibsndfileError(18)

    monkeypatch.setattr(soundfile, "write", refuse)
    with pytest.raises(UserError, match=rf"{kind.__name__} .*libsndfile .* cannot write {name}.*leave it out"):
        SpeechDataModule(str(corpus), augmentations=[kind()]).setup("fit")


def test_an_utterance_that_a_codec_cannot_take_stays_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no frame")

    monkeypatch.setattr(codecs, "_coded", refuse)
    with caplog.at_level(logging.WARNING):
        result = changed(CompressOpus(), utterance("u"))
    np.testing.assert_array_equal(result.samples, utterance("u").samples)
    assert result.drawn == ()
    assert "CompressOpus left u as it was: no frame" in caplog.text


def test_values_can_be_replaced_but_not_changed() -> None:
    gain = PerturbGain(probability=0.2)
    assert replace(gain, probability=1.0).probability == 1.0
    with pytest.raises(AttributeError):
        gain.probability = 1.0  # type: ignore[misc]

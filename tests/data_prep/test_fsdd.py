"""Free Spoken Digit Dataset: the official split, and joined digits that are what the manifest says."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import soxr
from lhotse import CutSet, MonoCut

from data_prep import fsdd
from speechllm_pl.core.errors import UserError

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPEAKERS = ("ann", "bob")
RATE = 8_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Two speakers, four digits, indices 0 to 9: noises of 0.2 to 0.5 s, laid out as the real one."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "recordings").mkdir()
    rng = np.random.default_rng(0)
    low_pass = scipy.signal.butter(4, 2000, fs=RATE, output="sos")
    for speaker in SPEAKERS:
        for digit in (0, 3, 7, 9):
            for index in range(10):
                noise = rng.standard_normal(rng.integers(RATE // 5, RATE // 2))
                samples = 0.1 * scipy.signal.sosfilt(low_pass, noise)
                soundfile.write(folder / f"recordings/{digit}_{speaker}_{index}.wav", samples, RATE)
    return folder


def prepare(corpus: Path, folder: Path, jobs: int, *more: str) -> dict[str, bytes]:
    """Run the program in `folder`; all files it leaves, by name."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "data_prep.fsdd", "--corpus", str(corpus), "--output", "fsdd"]
    command += ["--jobs", str(jobs), "--joined-train", "30", *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def first_run(corpus, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("first")
    return folder, prepare(corpus, folder, 1)


@pytest.fixture(scope="module")
def cuts(first_run) -> dict[str, list[MonoCut]]:
    folder, _ = first_run
    return {split: list(CutSet.from_file(folder / f"fsdd/{split}.jsonl.gz")) for split in fsdd.SPLITS}


def load(folder: Path, cut: MonoCut) -> np.ndarray:
    (source,) = cut.recording.sources
    samples, rate = soundfile.read(folder / source.source, always_2d=True)
    assert (rate, samples.shape[1]) == (16_000, 1)
    assert cut.duration == pytest.approx(len(samples) / 16_000, abs=1e-9)
    return samples[:, 0]


def test_two_runs_leave_the_same_bytes_whatever_the_number_of_processes(corpus, first_run, tmp_path):
    assert prepare(corpus, tmp_path / "second", 2) == first_run[1]


def test_an_interrupted_run_completes_to_the_same_files(corpus, first_run, tmp_path):
    folder = tmp_path / "interrupted"
    prepare(corpus, folder, 1, "--seed", "5")  # other settings before
    audio = sorted((folder / "fsdd/audio").rglob("*.flac"))
    audio[0].with_name(f".{audio[0].name}.123").write_bytes(b"fLaC")
    audio[1].unlink()
    assert prepare(corpus, folder, 1) == first_run[1]


def test_the_official_split_is_respected(cuts):
    official = {"test": range(5), "dev": range(5, 7), "train": range(7, 50)}
    for split, indices in official.items():
        for cut in cuts[split]:
            assert all(int(Path(name).stem.split("_")[2]) in indices for name in cut.custom["digits"])


def test_every_recording_is_a_cut_of_its_own_in_one_split(corpus, cuts):
    single = Counter(
        cut.custom["digits"][0] for split in fsdd.SPLITS for cut in cuts[split] if len(cut.custom["digits"]) == 1
    )
    assert single == Counter(path.name for path in (corpus / "recordings").iterdir())


def test_text_language_and_speaker_are_those_of_the_recordings(cuts):
    for cut in (cut for split in fsdd.SPLITS for cut in cuts[split]):
        (supervision,) = cut.supervisions
        fields = [Path(name).stem.split("_") for name in cut.custom["digits"]]
        assert supervision.text == " ".join(WORDS[int(digit)] for digit, _, _ in fields)
        assert {speaker for _, speaker, _ in fields} == {supervision.speaker}
        assert supervision.language == "en"


def test_joined_cuts_hold_3_to_7_digits_with_gaps_of_50_to_300_ms(corpus, first_run, cuts):
    folder, _ = first_run
    joined = [cut for split in fsdd.SPLITS for cut in cuts[split] if len(cut.custom["digits"]) > 1]
    assert len(joined) > 30
    assert {len(cut.custom["digits"]) for cut in joined} <= {3, 4, 5, 6, 7}
    gaps = [gap for cut in joined for gap in measured_gaps_ms(corpus, load(folder, cut), cut.custom["digits"])]
    assert min(gaps) > 49
    assert max(gaps) < 301
    assert len({round(gap) for gap in gaps}) > 30  # random ones


def test_word_times_are_the_edges_of_the_recordings(corpus, first_run, cuts):
    folder, _ = first_run
    for cut in (cut for split in cuts.values() for cut in split):
        items = cut.supervisions[0].alignment["word"]
        assert " ".join(item.symbol for item in items) == cut.supervisions[0].text
        assert items[0].start == 0
        assert items[-1].end == pytest.approx(cut.duration, abs=0.002)
        samples = load(folder, cut)
        for item, name in zip(items, cut.custom["digits"], strict=True):
            said, rate = soundfile.read(corpus / "recordings" / name)
            heard = soxr.resample(said, rate, 16_000)
            start = round(item.start * 16_000)
            there = samples[start : start + len(heard)]
            assert np.corrcoef(there, heard[: len(there)])[0, 1] > 0.99


def measured_gaps_ms(corpus: Path, samples: np.ndarray, names: list[str]) -> list[float]:
    """Gaps found by looking for each recording, resampled by SciPy, in the joined samples (T,)."""
    gaps, end = [], 0
    for name in names:
        recording, _ = soundfile.read(corpus / "recordings" / name)
        piece = scipy.signal.resample_poly(recording, 2, 1)
        near = samples[end : end + len(piece) + 16 * 400]  # the same recording may come again later
        score = scipy.signal.correlate(near, piece, mode="valid")
        energy = scipy.signal.correlate(near**2, np.ones_like(piece), mode="valid")
        score /= np.sqrt(np.maximum(energy, 1e-9) * (piece**2).sum())
        start = end + int(np.argmax(score))
        assert score.max() > 0.98
        if end:
            gaps.append((start - end) / 16)
        end = start + len(piece)
    assert end == pytest.approx(len(samples), abs=2)
    return gaps


def test_dev_and_test_recordings_come_about_twice_in_joined_cuts(cuts):
    for split in ("dev", "test"):
        uses = Counter(name for cut in cuts[split] if len(cut.custom["digits"]) > 1 for name in cut.custom["digits"])
        assert max(uses.values()) <= 3
        assert 1 <= np.mean(list(uses.values())) <= 2.5


def test_gaps_are_as_quiet_as_the_recording_and_not_digital_silence():
    rng = np.random.default_rng(1)
    piece = (0.3 * np.sin(np.arange(4000) / 3)).astype(np.float32)
    piece[-400:] = 0.001 * rng.standard_normal(400)
    waveform = fsdd.join([piece, piece], (200,), RATE, noise_seed=3)
    gap = waveform[4000:5600]
    assert len(waveform) == 4000 + 1600 + 4000
    assert 0.0003 < gap.std() < 0.003


def test_a_broken_recording_is_quarantined_with_the_cuts_that_need_it(corpus, tmp_path):
    broken = tmp_path / "broken/recordings"
    broken.mkdir(parents=True)
    for path in (corpus / "recordings").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "3_ann_1.wav").write_text("no sound")
    prepare(broken.parent, tmp_path, 1)
    lines = (tmp_path / "fsdd/quarantine.tsv").read_text().splitlines()[1:]
    assert any(line.startswith("test\t3_ann_1\t") for line in lines)
    assert all("3_ann_1.wav" in line for line in lines)
    kept = CutSet.from_file(tmp_path / "fsdd/test.jsonl.gz")
    assert all("3_ann_1.wav" not in cut.custom["digits"] for cut in kept)


def test_an_absent_corpus_is_named_with_the_place_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*github\.com/Jakobovski/free-spoken-digit-dataset.*FSDD="):
        fsdd.find_recordings(tmp_path / "nowhere")


def test_the_real_corpus_has_3000_recordings_in_the_official_proportion():
    corpus = Path(os.environ.get("SPEECHLLM_DATA", "../shared/data")) / "free-spoken-digit-dataset"
    if not corpus.is_dir():
        pytest.skip(f"{corpus} is absent: clone github.com/Jakobovski/free-spoken-digit-dataset there")
    splits = Counter(fsdd.split_of_index(recording.index) for recording in fsdd.find_recordings(corpus))
    assert splits == {"test": 300, "dev": 120, "train": 2580}

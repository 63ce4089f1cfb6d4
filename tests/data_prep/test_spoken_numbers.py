"""The embedded default: reproducible to the byte, and its test set is really unseen."""

import itertools
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut

from data_prep import spoken_numbers
from data_prep.audio.espeak import Espeak

LANGUAGES = ["de", "en", "es", "fr", "it", "nl", "pl", "pt"]


SPLITS = ["train", "dev", "test"]


def generate(folder: Path, jobs: int, seed: int = 0) -> dict[str, bytes]:
    """Run the program on few utterances; all files it leaves, by name."""
    small = (
        "from data_prep import spoken_numbers as s; s.DEV_UTTERANCES, s.TEST_UTTERANCES = 8, 16;"
        "from data_prep.machinery.command_line import run; run(s.main)"
    )
    arguments = ["--output", "numbers", "--hours", "0.005", "--jobs", str(jobs), "--seed", str(seed)]
    folder.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", small, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def first_run(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("first")
    return folder, generate(folder, jobs=1)


@pytest.fixture(scope="module")
def cuts(first_run) -> dict[str, list[MonoCut]]:
    folder, _ = first_run
    return {split: list(CutSet.from_file(folder / f"numbers/{split}.jsonl.gz")) for split in SPLITS}


def test_two_runs_leave_the_same_bytes_whatever_the_number_of_processes(first_run, tmp_path):
    assert generate(tmp_path / "second", jobs=2) == first_run[1]


def test_an_interrupted_run_completes_to_the_same_files(first_run, tmp_path):
    folder = tmp_path / "interrupted"
    generate(folder, jobs=1)
    audio = sorted((folder / "numbers/audio").rglob("*.flac"))
    for path in audio[::5]:
        path.unlink()
    (folder / "numbers/test.jsonl.gz").unlink()
    audio[0].with_name(f".{audio[0].name}.123").write_bytes(audio[1].read_bytes()[:100])
    kept = audio[1].stat().st_mtime_ns
    assert generate(folder, jobs=1) == first_run[1]
    assert audio[1].stat().st_mtime_ns == kept  # what was finished is not spoken again


def test_another_seed_replaces_all_audio(first_run, tmp_path):
    files = generate(tmp_path / "other", jobs=1, seed=1)
    assert {name for name in files if name in first_run[1] and name.endswith(".flac")} == set()


def test_splits_share_neither_voices_nor_texts(cuts):
    for a, b in (("train", "dev"), ("train", "test"), ("dev", "test")):
        for of in (
            lambda cut: cut.supervisions[0].text,
            lambda cut: cut.supervisions[0].speaker.split("+")[1],  # the variant, in whatever language
        ):
            assert {of(cut) for cut in cuts[a]}.isdisjoint({of(cut) for cut in cuts[b]})


def test_every_language_has_its_share_of_every_split(cuts):
    for split in SPLITS:
        assert sorted({cut.supervisions[0].language for cut in cuts[split]}) == LANGUAGES
    assert len(cuts["dev"]) == 8
    assert len(cuts["test"]) == 16


def test_audio_is_16_khz_mono_and_as_long_as_the_manifest_says(first_run, cuts):
    folder, _ = first_run
    for cut in (cut for split in SPLITS for cut in cuts[split]):
        (source,) = cut.recording.sources
        info = soundfile.info(folder / source.source)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", "FLAC")
        assert cut.duration == pytest.approx(info.frames / 16_000, abs=1e-9)
        assert 1.0 <= cut.duration < 10.0


def test_texts_hold_lower_case_letters_and_single_spaces_only(cuts):
    for cut in (cut for split in SPLITS for cut in cuts[split]):
        text = cut.supervisions[0].text
        assert text == unicodedata.normalize("NFC", text).lower()
        assert all(word.replace("'", "").isalpha() for word in text.split(" ")), text


def test_hours_grow_the_corpus_at_its_end(tmp_path):
    train = {
        hours: [u for u in spoken_numbers.plan(hours, 0, tmp_path) if u.split == "train"] for hours in (0.01, 0.02)
    }
    german = {hours: [u for u in plan if u.language == "de"] for hours, plan in train.items()}
    assert len(german[0.01]) < len(german[0.02])
    assert german[0.02][: len(german[0.01])] == german[0.01]


def test_the_plan_of_a_full_corpus_shares_no_text_between_splits(tmp_path):
    texts: dict[str, set[str]] = {split: set() for split in SPLITS}
    for utterance in spoken_numbers.plan(1.4, 0, tmp_path):
        texts[utterance.split].add(utterance.text)
    assert texts["train"].isdisjoint(texts["dev"] | texts["test"])
    assert texts["dev"].isdisjoint(texts["test"])


@pytest.mark.parametrize("variant", [v for split in SPLITS for v in spoken_numbers.VARIANTS[split]])
def test_every_variant_has_a_voice_of_its_own(variant, plain_voice):
    assert Espeak()("one hundred and four", f"en-us+{variant}", words_per_minute=175, pitch=50) not in (
        b"",
        plain_voice,
    )


@pytest.fixture(scope="module")
def plain_voice() -> bytes:
    return Espeak()("one hundred and four", "en-us", words_per_minute=175, pitch=50)


def test_noise_is_20_to_40_db_below_speech():
    tone = np.sin(np.arange(48_000) / 5)
    for seed in range(20):
        heard = spoken_numbers.record(tone, np.random.default_rng(seed))
        assert 10 ** (-20 / 20) * 0.999 <= np.abs(heard).max() <= 10 ** (-3 / 20) * 1.001
        # The tone is one line of a windowed spectrum; what lies away from it is noise.
        power = np.abs(np.fft.rfft(heard * np.hanning(len(heard)))) ** 2
        frequency = np.fft.rfftfreq(len(heard)) * 2 * np.pi
        noise = power[np.abs(frequency - 0.2) > 0.01].sum()
        assert 18 < 10 * np.log10((power.sum() - noise) / noise) < 43


def test_word_times_lie_in_the_recording_and_say_the_text(cuts):
    for cut in itertools.chain(*cuts.values()):
        (supervision,) = cut.supervisions
        items = supervision.alignment["word"]
        assert " ".join(item.symbol for item in items) == supervision.text
        for item, following in itertools.pairwise(items):
            assert item.duration > 0.05
            assert item.end == pytest.approx(following.start, abs=1e-3)
        assert cut.duration > 1.01  # shorter ones would have more noise around them
        assert 0.1 <= items[0].start < 0.5  # noise before
        assert cut.duration - 0.4 <= items[-1].end <= cut.duration - 0.09


def test_words_begin_where_the_recording_becomes_loud(first_run, cuts):
    """The first word of each cut, against the noise before it."""
    folder, _ = first_run
    late = []
    for cut in itertools.chain(*cuts.values()):
        samples, _ = soundfile.read(folder / cut.recording.sources[0].source)
        start = cut.supervisions[0].alignment["word"][0].start
        level = np.sqrt(np.convolve(samples**2, np.ones(160) / 160, "same"))  # over 10 ms
        floor = level[: int(0.08 * 16_000)].max()
        late.append(np.flatnonzero(level > 3 * floor)[0] / 16_000 - start)
    assert 0 <= np.median(late) < 0.05
    assert np.mean(np.abs(late) < 0.15) > 0.9

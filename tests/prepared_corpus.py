"""A small prepared corpus for tests: numbers read by nobody in two languages, clean or with faults planted."""

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from num2words import num2words

RATE = 16_000
SIZES = {"train": 48, "dev": 12, "test": 12}  # utterances a language
LANGUAGES = ("de", "nl")
SPEAKERS = 3  # a split and language


@dataclass(frozen=True)
class Spoken:
    id: str
    split: str
    language: str
    speaker: str
    text: str
    samples: np.ndarray  # (N,) in -1 … 1


def murmur(seconds: float, seed: int) -> np.ndarray:
    """Noise that swells twice a second, to a peak of 0.3, between near silences."""
    random = np.random.default_rng(seed)
    count = round(seconds * RATE)
    swell = np.maximum(0.003, np.sin(2 * np.pi * 2 * np.arange(count) / RATE))
    samples = random.normal(size=count) * swell
    return 0.3 * samples / np.abs(samples).max()


def clean_corpus() -> list[Spoken]:
    """No text or speaker is in two splits; all speak at about 15 characters a second."""
    random = np.random.default_rng(0)
    figures = iter(random.choice(900_000, len(LANGUAGES) * sum(SIZES.values()), replace=False) + 100_000)
    spoken = []
    for split, size in SIZES.items():
        for language in LANGUAGES:
            for place in range(size):
                text = num2words(int(next(figures)), lang=language)
                seconds = len(text) / 15 * random.uniform(0.9, 1.1)
                id_, speaker = f"{language}-{split}-{place:02}", f"{language}-{split}-{place % SPEAKERS}"
                spoken.append(Spoken(id_, split, language, speaker, text, murmur(seconds, len(spoken))))
    return spoken


def planted_corpus() -> list[Spoken]:
    """The clean corpus with one fault of each kind; the ids say which."""
    by_id = {each.id: each for each in clean_corpus()}
    of_train = [each for each in by_id.values() if each.split == "train" and each.language == "de"]

    def plant(place: int, name: str, **changes) -> None:
        id_ = of_train[place].id
        by_id[id_] = replace(by_id[id_], id=name, **changes)

    samples = [each.samples for each in of_train]
    random = np.random.default_rng(1)
    plant(0, "clipped", samples=np.clip(20 * samples[0], -1, 1))
    plant(1, "silent", samples=0 * samples[1])
    plant(2, "constant", samples=0 * samples[2] + 0.2)
    plant(3, "offset", samples=samples[3] - 0.05)
    plant(4, "noisy", samples=samples[4] + 0.1 * random.normal(size=len(samples[4])))
    dutch, polish = "driehonderdvijfenveertigduizend zevenhonderdachtentwintig", "trzysta czterdzieści pięć tysięcy"
    plant(5, "dutch", text=dutch, samples=murmur(len(dutch) / 15, seed=5))
    plant(6, "cyrillic", text=of_train[6].text.replace("e", "е", 1))  # U+0435
    plant(7, "polish", text=polish, samples=murmur(len(polish) / 15, seed=7))
    plant(8, "hurried", samples=samples[8][: len(samples[8]) // 5])
    plant(10, "hurried more", samples=samples[10][: len(samples[10]) // 6])
    plant(9, "capital", text=of_train[9].text.capitalize())
    leaked = replace(by_id["nl-dev-03"], id="leaked", text=by_id["nl-train-03"].text)
    strayed = replace(by_id["nl-test-04"], id="strayed", speaker=by_id["nl-train-04"].speaker)
    return [*(by_id | {"nl-dev-03": leaked, "nl-test-04": strayed}).values()]


def write_corpus(folder: Path, corpus: list[Spoken]) -> Path:
    """WAV files and manifests, without the help of Lhotse."""
    (folder / "audio").mkdir(parents=True)
    lines: dict[str, list[str]] = {split: [] for split in SIZES}
    for each in corpus:
        path = folder / "audio" / f"{each.id}.wav"
        soundfile.write(path, each.samples, RATE)
        lines[each.split].append(json.dumps(_cut(each, path), ensure_ascii=False))
    for split, found in lines.items():
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in found).encode()))
    return folder


def _cut(each: Spoken, path: Path) -> dict:
    seconds = len(each.samples) / RATE
    supervision = {
        "id": each.id,
        "recording_id": each.id,
        "start": 0.0,
        "duration": seconds,
        "channel": 0,
        "text": each.text,
        "language": each.language,
        "speaker": each.speaker,
    }
    recording = {
        "id": each.id,
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": RATE,
        "num_samples": len(each.samples),
        "duration": seconds,
        "channel_ids": [0],
    }
    cut = {"id": each.id, "start": 0.0, "duration": seconds, "channel": 0}
    return cut | {"supervisions": [supervision], "recording": recording, "type": "MonoCut"}

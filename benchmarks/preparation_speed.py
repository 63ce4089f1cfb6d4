"""How fast recordings are checked on their way to manifests, and what a large corpus costs besides.

    python benchmarks/preparation_speed.py --voices VOICES --folder /scratch

VOICES is a folder with `train.tsv` (a recording's name, a tab, its transcript) and `audio/NAME.opus`, for example made
of github.com/rhasspy/dataset-voice-kathleen (CC0). Its recordings are encoded as the corpora have them (MLS: FLAC or
Opus, VoxPopuli: Ogg Vorbis, Common Voice: MP3 at 48 kHz) and prepared by one process, decoded and by their headers.
Then a made-up MLS transcript of --utterances lines goes through all that the main process does (reading, normalising,
finding duplicates, writing), with cuts that cost little: of that, only making and serialising the cuts is shared by
--jobs. Last, a hundred recordings are encoded as for shards.

Seconds are those of the processor, which are seconds of the clock where a process has a core to itself and a disk that
keeps up.
"""

import argparse
import contextlib
import functools
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut
from machine import describe
from torchaudio.functional import resample

from data_prep.audio.audio_files import Stretch
from data_prep.corpora.checked_cuts import cut_from_header, cut_from_utterance, cut_of
from data_prep.corpora.entries import Utterance
from data_prep.corpora.lines import tsv_records
from data_prep.corpora.manifest_writer import prepare
from data_prep.corpora.strange_characters import StrangeCharacters
from data_prep.machinery.command_line import run
from data_prep.mls import utterances
from data_prep.shar.encoding import CODECS, encode
from speechllm_pl.core.errors import UserError

VOICES = Path(os.environ.get("SPEECHLLM_DATA", "../shared/data")) / "cc0-voices" / "en"
FORMATS = {  # name: suffix, format and subtype of libsndfile, Hz
    "FLAC": (".flac", "FLAC", "PCM_16", 16_000),
    "Opus": (".opus", "OGG", "OPUS", 16_000),
    "Vorbis": (".ogg", "OGG", "VORBIS", 16_000),
    "MP3": (".mp3", "MP3", "MPEG_LAYER_III", 48_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--voices", type=Path, default=VOICES, help="train.tsv and audio/*.opus (default: %(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="where there is room: 2 GB")
    parser.add_argument("--recordings", type=int, default=1000)
    parser.add_argument("--utterances", type=int, default=1_000_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder / "preparation_speed"
    print(describe(1))
    try:
        records = read_records(args.voices, args.recordings)
        measure_formats(args.voices, folder, records)
        measure_listing(folder, args.utterances)
        measure_encoding(args.voices, records[:100])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_records(voices: Path, count: int) -> list[list[str]]:
    """Read the rows of a corpus as Common Voice publishes it.

    Raises:
        UserError: there are none.
    """
    if not (voices / "train.tsv").is_file():
        raise UserError(
            f"{voices} has no train.tsv: give --voices a folder as the first lines of this program describe it"
        )
    return [cells for _, cells in tsv_records(voices / "train.tsv") if isinstance(cells, list)][:count]


def measure_formats(voices: Path, folder: Path, records: list[list[str]]) -> None:
    print(f"{'format':<8}{'check':<8}{'recordings/s':>14}{'hours of audio an hour':>25}")
    for name, encoding in FORMATS.items():
        items = [encoded(voices, folder, fields, encoding) for fields in records]
        for check, make_cut in (("decode", cut_from_utterance), ("header", cut_from_header)):
            seconds, audio = timed(items, folder / "out", functools.partial(make_cut, max_seconds=30.0))
            print(f"{name:<8}{check:<8}{len(items) / seconds:>14,.0f}{audio / seconds:>25,.0f}", flush=True)


def encoded(voices: Path, folder: Path, fields: list[str], encoding: tuple[str, str, str, int]) -> Utterance:
    suffix, kind, subtype, rate = encoding
    path = folder / "audio" / f"{fields[0]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(voices, fields[0], rate), rate, format=kind, subtype=subtype)
    return Utterance(fields[0], path, fields[1], "en", "unknown", "train")


def sound(voices: Path, name: str, rate: int) -> np.ndarray:
    """`(N,)` float32."""
    samples, native = soundfile.read(voices / "audio" / f"{name}.opus", dtype="float32")
    return resample(torch.from_numpy(samples), native, rate).numpy()


def timed(items: list[Utterance], output: Path, make_cut: Callable[[Utterance], MonoCut]) -> tuple[float, float]:
    """Processor seconds that the better of two runs took, and seconds of audio."""
    best = float("inf")
    for _ in range(2):
        start = time.process_time()
        with quietly():
            summary = prepare(items, output, jobs=1, make_cut=make_cut)
        best = min(best, time.process_time() - start)
    return best, sum(summary.seconds.values())


def measure_listing(folder: Path, count: int) -> None:
    corpus = folder / "mls_english"
    (corpus / "train").mkdir(parents=True)
    text = "and then without a word he left the house as quietly as he had come and was not seen again until"
    with (corpus / "train" / "transcripts.txt").open("w") as file:
        for number in range(count):
            file.write(f"{number // 2000}_{number // 200}_{number:06d}\t{text} {text}\n")
    before, start = peak(), time.process_time()
    with quietly():
        items = utterances(corpus, "en", "train", StrangeCharacters())
        prepare(items, folder / "out", jobs=1, make_cut=without_audio, total=count)
    seconds = time.process_time() - start
    print(f"{count:,} made-up utterances without audio, one process: {count / seconds:,.0f} a second, ", end="")
    print(f"{(peak() - before) / 2**20:,.0f} MiB more memory")


def measure_encoding(voices: Path, records: list[list[str]]) -> None:
    recordings = [sound(voices, fields[0], 16_000) for fields in records]
    audio = sum(map(len, recordings)) / 16_000  # seconds
    for codec in CODECS:
        start = time.process_time()
        size = sum(len(encode(samples, codec)) for samples in recordings)
        seconds = time.process_time() - start
        print(f"shards in {codec}: {audio / seconds:,.0f} hours of audio an hour, {8 * size / audio / 1000:.0f} kbit/s")


def without_audio(utterance: Utterance) -> MonoCut:
    return cut_of(utterance, Path(utterance.path), Stretch(240_000, 16_000, 240_000), 0.0)


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


if __name__ == "__main__":
    run(main)

"""Free Spoken Digit Dataset: English digits of six speakers, recorded at 8 kHz. Real speech, small and free.

Why joined digits: one digit a cut teaches neither stage to find where words end. So next to the single digits
there are cuts of 3 to 7 digits of one speaker, joined with gaps of 50 to 300 ms.

The official split is by index: 0 to 4 test, 5 to 49 train. The corpus has no dev set; ours is indices 5 and
6, taken from train. A joined cut holds recordings of its own split only.
"""

import functools
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut
from lhotse.supervision import AlignmentItem

from data_prep.audio.audio_files import read_audio, resample, write_audio
from data_prep.audio.checks import Rejected, check_samples
from data_prep.audio.content_addressed import digest, remove_others
from data_prep.corpora.checked_cuts import cut_from_utterance
from data_prep.corpora.entries import SPLITS, Utterance
from data_prep.corpora.manifest_writer import prepare
from data_prep.machinery.command_line import add_standard_arguments, program_parser, run
from speechllm_pl.core.errors import UserError

RECIPE = 1  # raise it when the same settings give other audio, so that old files are not kept
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECORDING_NAME = re.compile(r"(\d)_(\w+)_(\d+)")
GAP_MS = (50, 300)
DIGITS = (3, 7)  # of a joined cut, inclusive
TIMES_EACH = 2  # how often a dev or test recording is in a joined cut
JOINED_TRAIN = 1500  # about 1.5 hours of train in all


@dataclass(frozen=True)
class Digits(Utterance):
    """Single or joined recordings, and the gaps between them."""

    recordings: tuple[Path, ...] = ()
    gaps_ms: tuple[int, ...] = ()
    noise_seed: int = 0


@dataclass(frozen=True)
class Recording:
    path: Path
    digit: int
    speaker: str
    index: int


def default_corpus() -> Path:
    """Folder of the corpus unless told otherwise: in that of real recordings."""
    return Path(os.environ.get("SPEECHLLM_DATA", "../shared/data")) / "free-spoken-digit-dataset"


def split_of_index(index: int) -> str:
    """Official split of an index, with dev taken from train."""
    return "test" if index < 5 else "dev" if index < 7 else "train"


def find_recordings(corpus: Path) -> list[Recording]:
    """Find all recordings, in the order of their names.

    Raises:
        UserError: there are none; the message says where to get them.
    """
    found = []
    for path in sorted((corpus / "recordings").glob("*.wav")):
        if match := RECORDING_NAME.fullmatch(path.stem):
            digit, speaker, index = match.groups()
            found.append(Recording(path, int(digit), speaker, int(index)))
    if not found:
        raise UserError(
            f"no Free Spoken Digit Dataset in {corpus} (looked for recordings/*.wav): get it with "
            "`git clone https://github.com/Jakobovski/free-spoken-digit-dataset`, then give its folder as "
            "FSDD=<folder> to make or --corpus <folder> here"
        )
    return found


def single(recording: Recording, output: Path) -> Digits:
    """Plan the cut of one recording."""
    return _digits(recording.path.stem, split_of_index(recording.index), [recording], (), 0, output)


def joined(split: str, recordings: list[Recording], count: int, seed: int, output: Path) -> Iterator[Digits]:
    """Plan `count` cuts, from each speaker in turn; no recording is heard again before the speaker's others."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    speakers = sorted({recording.speaker for recording in recordings})
    decks: dict[str, list[Recording]] = {speaker: [] for speaker in speakers}
    for index in range(count):
        speaker = speakers[index % len(speakers)]
        size = int(rng.integers(DIGITS[0], DIGITS[1] + 1))
        while len(decks[speaker]) < size:
            own = [recording for recording in recordings if recording.speaker == speaker]
            decks[speaker] += [own[i] for i in rng.permutation(len(own))]
        hand, decks[speaker] = decks[speaker][:size], decks[speaker][size:]
        gaps_ms = tuple(int(gap) for gap in rng.integers(GAP_MS[0], GAP_MS[1] + 1, size - 1))
        noise_seed = int(rng.integers(2**32))
        yield _digits(f"joined-{split}-{index:05d}-{speaker}", split, hand, gaps_ms, noise_seed, output)


def _digits(
    id: str, split: str, recordings: list[Recording], gaps_ms: tuple[int, ...], noise_seed: int, output: Path
) -> Digits:
    ingredients = {
        "recipe": RECIPE,
        "recordings": [(recording.path.name, recording.path.stat().st_size) for recording in recordings],
        "gaps_ms": gaps_ms,
        "noise_seed": noise_seed,
    }
    return Digits(
        id=id,
        path=output / "audio" / split / f"{id}-{digest(ingredients)}.flac",
        text=" ".join(WORDS[recording.digit] for recording in recordings),
        language="en",
        speaker=recordings[0].speaker,
        split=split,
        recordings=tuple(recording.path for recording in recordings),
        gaps_ms=gaps_ms,
        noise_seed=noise_seed,
    )


def plan(recordings: list[Recording], joined_train: int, seed: int, output: Path) -> Iterator[Digits]:
    """Plan the cuts of each split: first the single digits, then the joined ones."""
    for split in SPLITS:
        own = [recording for recording in recordings if split_of_index(recording.index) == split]
        if own:
            yield from (single(recording, output) for recording in own)
            count = joined_train if split == "train" else TIMES_EACH * len(own) * 2 // sum(DIGITS)
            yield from joined(split, own, count, seed, output)


def _noise_floor(samples: np.ndarray, sampling_rate: int) -> float:
    """Root mean square of the quietest 20 ms of `samples` (T,)."""
    size = min(len(samples), sampling_rate // 50)
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    return float(np.sqrt((frames**2).mean(axis=1)).min())


def join(pieces: list[np.ndarray], gaps_ms: tuple[int, ...], sampling_rate: int, noise_seed: int) -> np.ndarray:
    """Join pieces (T_i,), with a gap after each but the last, filled with noise as low as the piece's own floor.

    Digital silence would tell the model where words end; no recording of several words has it.
    """
    rng = np.random.default_rng(noise_seed)
    parts = []
    for piece, gap_ms in zip(pieces, (*gaps_ms, 0), strict=True):
        noise = rng.standard_normal(sampling_rate * gap_ms // 1000) * _noise_floor(piece, sampling_rate)
        parts += [piece, noise.astype(np.float32)]
    return np.concatenate(parts)


def cut_of(digits: Utterance, max_seconds: float) -> MonoCut:
    """Make the cut of single or joined digits, and its audio unless that is already there."""
    assert isinstance(digits, Digits)
    path = Path(digits.path)
    if not path.exists():
        write_audio(path, _samples(digits), comment=digits.text)
    cut = cut_from_utterance(digits, max_seconds=max_seconds)
    cut.custom = {
        "digits": [recording.name for recording in digits.recordings],
        "gaps_ms": list(digits.gaps_ms),
    }
    cut.supervisions[0].alignment = {"word": word_times(digits)}
    return cut


def word_times(digits: Digits) -> list[AlignmentItem]:
    """Times of the digits in the cut: the edges of their recordings."""
    items, start = [], 0.0
    for word, recording, gap_ms in zip(digits.text.split(), digits.recordings, (*digits.gaps_ms, 0), strict=True):
        seconds = soundfile.info(recording).duration
        items.append(AlignmentItem(word, start, seconds))
        start += seconds + gap_ms / 1000
    return items


def _samples(digits: Digits) -> np.ndarray:
    """Waveform (T,) of the joined recordings, at 16 kHz.

    Raises:
        Rejected: a recording cannot be used.
    """
    pieces, rates = [], set()
    for recording in digits.recordings:
        try:
            audio = read_audio(recording)
            samples = audio.samples.mean(axis=0)
            check_samples(samples, audio.sampling_rate)
        except Rejected as error:
            raise Rejected(f"{error} ({recording.name})") from error
        pieces.append(samples)
        rates.add(audio.sampling_rate)
    if len(rates) > 1:
        raise Rejected(f"mixed sampling rates: {sorted(rates)} Hz")
    rate = rates.pop()
    return resample(join(pieces, digits.gaps_ms, rate, digits.noise_seed), rate)


def main() -> None:
    parser = program_parser("fsdd", __doc__)
    add_standard_arguments(parser)
    parser.add_argument(
        "--corpus", type=Path, default=default_corpus(), help="Folder of the corpus (default: %(default)s)."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the joined cuts (default: %(default)s).")
    joined = "Number of joined training cuts (default: %(default)s)."
    parser.add_argument("--joined-train", type=int, default=JOINED_TRAIN, help=joined)
    args = parser.parse_args()
    if args.joined_train < 0:
        raise UserError(f"--joined-train {args.joined_train}: give 0 or more")
    recordings = find_recordings(args.corpus)
    cuts = list(plan(recordings, args.joined_train, args.seed, args.output))
    prepare(cuts, args.output, jobs=args.jobs, make_cut=functools.partial(cut_of, max_seconds=args.max_seconds))
    remove_others(args.output / "audio", (cut.path for cut in cuts))


if __name__ == "__main__":
    run(main)

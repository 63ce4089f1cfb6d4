"""The embedded default: number words in eight languages, spoken by espeak-ng.

Why: a clone with no corpus, no GPU and no network can train and evaluate both stages within minutes. Train,
dev and test share neither voices nor texts, so that a low error rate means generalization and not memory.

Every utterance is a pure function of the seed and its id: text, voice, rate, pitch, noise and gain are drawn
from a generator of its own. Two runs therefore give the same bytes, whatever the number of processes, and a
longer corpus begins with the shorter one. The name of an audio file carries a digest of all that went into
it, so a rerun keeps exactly those files that are still right.
"""

import functools
import importlib.metadata
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut
from lhotse.supervision import AlignmentItem
from num2words import num2words

from data_prep.audio.audio_files import resample, write_audio
from data_prep.audio.checks import Rejected
from data_prep.audio.content_addressed import digest, remove_others
from data_prep.audio.espeak import SAMPLING_RATE as ESPEAK_SAMPLING_RATE
from data_prep.audio.espeak import Espeak, Speech
from data_prep.corpora.checked_cuts import cut_from_utterance
from data_prep.corpora.entries import LABELS, Utterance
from data_prep.corpora.manifest_writer import prepare
from data_prep.machinery.command_line import add_standard_arguments, program_parser, run
from speechllm_pl.core.audio.units import SAMPLING_RATE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.text import normalize

RECIPE = 3  # raise it when the same settings give other audio, so that old files are not kept
DEV_UTTERANCES, TEST_UTTERANCES = 160, 400  # over all languages
MIN_SECONDS = 1.0
MAX_LETTERS = 70  # of a transcript: about six seconds

ACCENTS = {
    "en": ("en-us", "en", "en-gb-x-rp"),
    "de": ("de",),
    "nl": ("nl",),
    "fr": ("fr", "fr-be"),
    "es": ("es", "es-419"),
    "it": ("it",),
    "pt": ("pt", "pt-br"),
    "pl": ("pl",),
}

# Variants of espeak-ng: one set for all languages, so a voice of the test set is unheard in every language.
# Near relatives (steph, steph2, ...) stay in one split; whispers, robots and effects are left out.
VARIANTS = {
    "dev": ("f4", "m5", "Annie", "Denis"),
    "test": ("f2", "m3", "adam", "Andrea", "belinda", "linda", "Michael", "quincy"),
    "train": (
        *("f1", "f3", "f5", "m1", "m2", "m4", "m6", "m7", "m8", "Alex", "Alicia", "Andy", "Diogo", "Gene"),
        *("Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Mike", "Nguyen", "Reed", "anika"),
        *("announcer", "antonio", "aunty", "benjamin", "boris", "caleb", "david", "ed", "edward", "edward2"),
        *("grandma", "grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4", "john", "klatt"),
        *("klatt2", "klatt3", "klatt4", "marcelo", "max", "michel", "miguel", "mike2", "norbert", "pablo"),
        *("paul", "pedro", "rob", "robert", "sandro", "shelby", "steph", "steph2", "steph3", "travis"),
        *("victor", "zac"),
    ),
}

# Measured at 175 words a minute; only the number of utterances for --hours depends on them.
SECONDS_PER_LETTER = {
    "en": 0.055,
    "de": 0.054,
    "nl": 0.053,
    "fr": 0.040,
    "es": 0.054,
    "it": 0.056,
    "pt": 0.055,
    "pl": 0.056,
}
SECONDS_PER_COMMA = 0.25
SECONDS_OF_MARGINS = 0.67


# Texts


def _cardinals(language: str, *numbers: int) -> str:
    return ", ".join(num2words(number, lang=language) for number in numbers)


def _year(language: str, rng: np.random.Generator) -> str:
    return num2words(int(rng.integers(1100, 2100)), lang=language, to="year")


def _several(low: int, high: int, limit: int) -> Callable[[str, np.random.Generator], str]:
    """Make a kind of sentence: between `low` and `high` numbers below `limit`."""

    def draw(language: str, rng: np.random.Generator) -> str:
        count = rng.integers(low, high + 1)
        return _cardinals(language, *map(int, rng.integers(0, limit, count)))

    return draw


# Share of utterances and kind. Very short ones are common on purpose: later stages find them hardest. Numbers stay
# small, since German, Dutch and Italian write a whole number as one word.
KINDS: tuple[tuple[float, Callable[[str, np.random.Generator], str]], ...] = (
    (0.25, _several(1, 1, 100)),  # one small number
    (0.10, _several(1, 1, 1_000)),  # a count
    (0.05, _year),
    (0.30, _several(3, 7, 10)),  # digits, as in a telephone number
    (0.30, _several(2, 4, 100)),
)


def sentence(language: str, rng: np.random.Generator) -> str:
    """Draw an utterance as it is said, with commas where a speaker pauses."""
    shares = np.array([share for share, _ in KINDS])
    _, draw = KINDS[rng.choice(len(KINDS), p=shares / shares.sum())]
    return draw(language, rng)


def split_of_text(text: str) -> str:
    """Split in which alone a transcript may appear, whatever its language: dev 4, test 12, train 84 %."""
    bucket = zlib.crc32(text.encode()) % 100
    return "dev" if bucket < 4 else "test" if bucket < 16 else "train"


# The plan: what is said by whom


@dataclass(frozen=True)
class SpokenNumber(Utterance):
    """An utterance and all that its audio depends on."""

    spoken: str = ""  # the text with its commas and hyphens
    words_per_minute: int = 175
    pitch: int = 50  # 0 to 100, espeak's scale
    noise_seed: int = 0


def _draw(language: str, split: str, index: int, seed: int, taken: set[str], output: Path) -> SpokenNumber:
    id = f"{language}-{split}-{index:05d}"
    noise_seed = zlib.crc32(f"{seed}/{id}".encode())
    rng = np.random.default_rng([seed, noise_seed])
    while True:
        spoken = sentence(language, rng)
        text = normalize(spoken.replace("-", " "), language)  # letters only, in French as well
        if split_of_text(text) == split and len(text) <= MAX_LETTERS and text not in taken:
            break
    utterance = SpokenNumber(
        id=id,
        path="",
        text=text,
        language=language,
        split=split,
        spoken=spoken,
        noise_seed=noise_seed,
        **drawn_voice(language, split, rng),
    )
    return replace(utterance, path=output / "audio" / split / f"{id}-{_digest(utterance)}.flac")


def drawn_voice(language: str, split: str, rng: np.random.Generator) -> dict[str, Any]:
    """Draw speaker, rate and pitch among those of a language and split."""
    return {
        "speaker": f"{rng.choice(ACCENTS[language])}+{rng.choice(VARIANTS[split])}",
        "words_per_minute": int(rng.integers(130, 211)),
        "pitch": int(rng.integers(25, 76)),
    }


def _digest(utterance: SpokenNumber) -> str:
    versions = {"recipe": RECIPE, "espeak": importlib.metadata.version("espeakng-loader")}
    heard = {name: value for name, value in asdict(utterance).items() if name not in LABELS}
    return digest(heard | versions)


def _expected_seconds(utterance: SpokenNumber) -> float:
    speed = utterance.words_per_minute / 175
    letters = len(utterance.text) * SECONDS_PER_LETTER[utterance.language]
    pauses = utterance.spoken.count(",") * SECONDS_PER_COMMA
    return max(SECONDS_OF_MARGINS + (letters + pauses) / speed, MIN_SECONDS)


def plan(hours: float, seed: int, output: Path, languages: Sequence[str] = tuple(ACCENTS)) -> Iterator[SpokenNumber]:
    """Plan `hours` of train over all languages, then dev and test, in which no transcript comes twice.

    The length of an utterance is predicted from its text, so that the plan needs no audio: the hours really
    spoken are within a few per cent of those asked for.
    """
    for language in languages:
        seconds, index = 0.0, 0
        while seconds < hours * 3600 / len(languages):
            utterance = _draw(language, "train", index, seed, set(), output)
            yield utterance
            seconds, index = seconds + _expected_seconds(utterance), index + 1
    for split, count in (("dev", DEV_UTTERANCES), ("test", TEST_UTTERANCES)):
        for language in languages:
            taken: set[str] = set()
            for index in range(count // len(ACCENTS)):
                utterance = _draw(language, split, index, seed, taken, output)
                taken.add(utterance.text)
                yield utterance


# Speech


@functools.cache
def espeak() -> Espeak:
    """Synthesizer of this process."""
    return Espeak()


def _noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise (T,) of unit power, between white and pink."""
    length = -(-samples // 4096) * 4096  # with a large prime factor, a transform takes ten times as long
    spectrum = np.fft.rfft(rng.standard_normal(samples), length)
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-0.5 * rng.uniform())
    noise = np.fft.irfft(spectrum, length)[:samples]
    return noise / np.sqrt(np.mean(noise**2))


def margins(samples: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the samples of noise before and after speech of a number of samples, at least `MIN_SECONDS` in all."""
    before, after = rng.integers(SAMPLING_RATE // 10, SAMPLING_RATE * 4 // 10, 2)
    missing = max(0, int(MIN_SECONDS * SAMPLING_RATE) - samples - before - after)
    return before + missing // 2, after + missing - missing // 2


def record(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make of speech (T,) what a microphone might hear: margins, noise 20 to 40 dB below, peak at -20 to -3 dB."""
    before, after = margins(len(speech), rng)
    power = np.mean(speech**2)
    padded = np.pad(speech, (before, after))
    padded = padded + _noise(len(padded), rng) * np.sqrt(power * 10 ** (-rng.uniform(20, 40) / 10))
    return padded * 10 ** (rng.uniform(-20, -3) / 20) / np.abs(padded).max()


def speak(utterance: SpokenNumber) -> Speech:
    """Have espeak-ng say an utterance.

    Raises:
        Rejected: it cannot.
    """
    said = espeak()(
        utterance.spoken,
        utterance.speaker,
        words_per_minute=utterance.words_per_minute,
        pitch=utterance.pitch,
    )
    if not said.samples:
        raise Rejected(f"unspoken: espeak-ng failed with the voice {utterance.speaker}")
    return said


def waveform(utterance: SpokenNumber, said: Speech) -> np.ndarray:
    """Waveform (T,) of an utterance, at 16 kHz."""
    speech = np.frombuffer(said.samples, dtype=np.int16).astype(np.float32) / 32768
    speech = resample(speech, ESPEAK_SAMPLING_RATE)
    return record(speech, np.random.default_rng(utterance.noise_seed))


def word_times(utterance: SpokenNumber, said: Speech) -> list[AlignmentItem]:
    """Times of words in the recording of an utterance, as espeak-ng tells when it begins one.

    It says a compound with hyphens as one word, whose parts are one item here.
    """
    samples = len(said.samples) // 2
    before, _ = margins(
        -(-samples * SAMPLING_RATE // ESPEAK_SAMPLING_RATE), np.random.default_rng(utterance.noise_seed)
    )
    parts = [match.start() for match in re.finditer(r"[^\s,-]+", utterance.spoken)]
    words = utterance.text.split()
    if len(parts) != len(words):
        return []
    bounds = [word.position for word in said.words] + [len(utterance.spoken)]
    starts = [word.sample for word in said.words] + [samples]
    items = []
    for word, (first, last) in enumerate(itertools.pairwise(bounds)):
        symbol = " ".join(text for text, position in zip(words, parts, strict=True) if first <= position < last)
        seconds = [sample / ESPEAK_SAMPLING_RATE for sample in starts[word : word + 2]]
        items.append(AlignmentItem(symbol, before / SAMPLING_RATE + seconds[0], seconds[1] - seconds[0]))
    return items


def cut_of(utterance: Utterance, max_seconds: float) -> MonoCut:
    """Make the cut of an utterance with the times of its words, and its audio unless that is already there."""
    assert isinstance(utterance, SpokenNumber)
    said = speak(utterance)
    path = Path(utterance.path)
    if not path.exists():
        write_audio(path, waveform(utterance, said), comment=utterance.spoken)
    cut = cut_from_utterance(utterance, max_seconds=max_seconds)
    cut.supervisions[0].alignment = {"word": word_times(utterance, said)}
    return cut


def main() -> None:
    parser = program_parser("spoken_numbers", __doc__)
    add_standard_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="Seed of texts, voices and noise (default: %(default)s).")
    hours = "Hours of training speech, equally many of each language (default: %(default)s)."
    parser.add_argument("--hours", type=float, default=1.4, help=hours)
    codes = list(ACCENTS)
    parser.add_argument("--languages", nargs="+", choices=codes, default=codes, help="Languages (default: all).")
    args = parser.parse_args()
    if args.hours <= 0:
        raise UserError(f"--hours {args.hours}: give a positive number, such as 1.4")
    utterances = list(plan(args.hours, args.seed, args.output, args.languages))
    prepare(utterances, args.output, jobs=args.jobs, make_cut=functools.partial(cut_of, max_seconds=args.max_seconds))
    remove_others(args.output / "audio", (utterance.path for utterance in utterances))


if __name__ == "__main__":
    run(main)

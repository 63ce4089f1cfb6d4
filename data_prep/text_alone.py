"""Texts without audio → a Lhotse manifest that stage 2 can be adapted to (`make adapt-text`).

    python -m data_prep.text_alone --text domain.txt --language en --like data/mine/train.jsonl.gz \
        --output data/mine/text-domain.jsonl.gz

The text has one sentence a line, or `language<TAB>sentence`. Each becomes a cut without a recording, as long as
somebody might take to say it: the speakers of the manifest `--like` decide how long a letter and the pauses around the
sentence take, and how much that varies. Texts that would last longer than its longest utterance are left out.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lhotse import MonoCut, SupervisionSegment

from data_prep.corpora.lines import BrokenLine, text_lines
from data_prep.corpora.transcripts import supervisions
from data_prep.machinery.command_line import program_parser, run
from data_prep.machinery.pieces import compressed
from speechllm_pl.core.cut_fields import TEXT_ALONE
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.languages import LANGUAGES, UNKNOWN_LANGUAGE
from speechllm_pl.core.text import as_published, normalize
from speechllm_pl.storage.whole_file import replace_atomically


class SpeakingRate:
    """Seconds that a text takes, as the speakers of a manifest read theirs.

    Args:
        letters: `(N,)` of their texts.
        seconds: `(N,)` of their utterances.
    """

    def __init__(self, letters: np.ndarray, seconds: np.ndarray):
        known = np.stack([np.ones(len(letters)), letters], axis=1)  # (N, 2)
        self.line = np.linalg.lstsq(known, seconds, rcond=None)[0]
        self.ratios = seconds / np.maximum(known @ self.line, 0.1)  # (N,)
        self.longest, self.shortest = seconds.max(), seconds.min()

    def draw(self, text: str, rng: np.random.Generator) -> float | None:
        """Draw the seconds of a text: what the line through the utterances says, as far off as one of them is.

        None if the line says more than the longest utterance has.
        """
        usual = float(self.line[0] + self.line[1] * len(text))
        drawn = min(max(usual * float(rng.choice(self.ratios)), self.shortest), self.longest)
        return round(float(drawn), 3) if usual <= self.longest else None


def rates(manifest: Path) -> dict[str, SpeakingRate]:
    """Speaking rate of each language of a manifest, and of all of it under `UNKNOWN_LANGUAGE`.

    Raises:
        UserError: the manifest is missing or broken, or has no utterance.
    """
    found = list(supervisions(manifest))
    if not found:
        raise UserError(f"manifest {manifest} has no utterance to learn the speaking rate from: prepare the data again")
    numbers = np.array([(len(each.text or ""), each.duration) for each in found], float)
    languages = np.array([each.language or UNKNOWN_LANGUAGE for each in found])
    of_languages = {language: SpeakingRate(*numbers[languages == language].T) for language in np.unique(languages)}
    return of_languages | {UNKNOWN_LANGUAGE: SpeakingRate(*numbers.T)}


def read_sentences(path: Path, language: str | None) -> Iterator[tuple[str, str]]:
    """Iterate over (language, normalised text) of each line.

    Raises:
        UserError: the file is missing, a line is not UTF-8, or names a language that is unknown, or none.
    """
    if not path.is_file():
        raise UserError(f"text {path} does not exist: give a file with one sentence a line")
    for place, line in text_lines(path):
        if isinstance(line, BrokenLine):
            raise UserError(str(line))
        code, tab, text = line.rpartition("\t")
        code = code if tab else language or ""
        if not code:
            raise UserError(f"{place}: of which language? Give --language, or lines of language<TAB>sentence")
        text = normalize(text, code) if code in LANGUAGES else as_published(text)
        if text:
            yield code, text


def cuts(
    sentences: Iterator[tuple[str, str]], speaking: dict[str, SpeakingRate], seed: int
) -> Iterator[tuple[str, MonoCut | None]]:
    """Make a cut without a recording of each sentence; None of those that would take too long to say.

    Args:
        sentences: languages and texts; repeated ones are taken once.
        speaking: speaking rates by language.
        seed: seed of the lengths.
    """
    rng = np.random.default_rng(seed)
    for number, (language, text) in enumerate(dict.fromkeys(sentences)):
        rate = speaking.get(language) or speaking[UNKNOWN_LANGUAGE]
        seconds = rate.draw(text, rng)
        if seconds is None:
            yield language, None
            continue
        name = f"text-{number:07d}"
        said = SupervisionSegment(name, name, 0.0, seconds, text=text, language=language)
        yield language, MonoCut(name, 0.0, seconds, 0, supervisions=[said], custom={TEXT_ALONE: True})


def main() -> None:
    parser = program_parser("text_alone", __doc__)
    parser.add_argument("--text", type=Path, required=True, help="Sentences, one a line, or language<TAB>sentence.")
    parser.add_argument("--language", help="ISO 639-1 code of the lines that name none.")
    parser.add_argument("--like", type=Path, required=True, help="Lhotse cuts of which the speaking rate is taken.")
    parser.add_argument("--output", type=Path, required=True, help="Manifest to write (.jsonl.gz).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the lengths (default: %(default)s).")
    args = parser.parse_args()
    lines, kept, left_out, seconds = [], Counter(), 0, 0.0
    for language, cut in cuts(read_sentences(args.text, args.language), rates(args.like), args.seed):
        if cut is None:
            left_out += 1
            continue
        lines.append((json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode())
        kept[language] += 1
        seconds += cut.duration
    if not lines:
        raise UserError(f"{args.text} has no sentence that can be used ({left_out} are too long): give shorter ones")
    with replace_atomically(args.output) as file:
        file.write(compressed(lines))
    each = ", ".join(f"{language} {count:,}" for language, count in sorted(kept.items()))
    print(f"{args.output}: {sum(kept.values()):,} texts ({each}), {seconds / 3600:.2f} h if they were said")
    if left_out:
        print(f"left out {left_out:,} that would last longer than any utterance of {args.like}: give shorter ones")


if __name__ == "__main__":
    run(main)

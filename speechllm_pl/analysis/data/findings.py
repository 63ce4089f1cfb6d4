"""Sentences about the figures of prepared data: faults to fix, and what could not be judged."""

from collections.abc import Iterator, Mapping
from typing import Any

from speechllm_pl.analysis.data.suspects import KINDS

Figures = Mapping[str, Any]


def findings(figures: Figures) -> list[dict[str, str]]:
    """Describe each fault as `{"about": section of the page, "text": sentence}`; clean data give none."""
    about = {
        "shared": [*_shared_texts(figures), *_shared_speakers(figures), *_repeated_ids(figures)],
        "letters": list(_letters(figures)),
        "suspects": list(_suspects(figures)),
    }
    return [{"about": section, "text": sentence} for section, sentences in about.items() for sentence in sentences]


def notes(figures: Figures) -> list[str]:
    """Describe what was not judged, and what preparation has already removed."""
    found = [f"There is no {split} split." for split in figures["absent"]]
    for row in figures["amounts"]:
        if row["language"] == "all" and row["without_speaker"]:
            some = "All" if row["without_speaker"] == row["utterances"] else number(row["without_speaker"])
            found.append(f"{some} utterances of {row['split']} name no speaker.")
    unjudged = [language for language, row in figures["alphabets"].items() if not row["judged"]]
    if unjudged:
        found.append(
            f"There are no rules for the alphabet of {', '.join(unjudged)}: strange characters are not sought."
        )
    known = figures["letters"]["languages"]
    if not known:
        found.append("Letters are not compared: there are not two languages with texts enough.")
    elif few := sorted(set(figures["alphabets"]) - set(known)):
        found.append(f"Too few letters of {', '.join(few)} to tell it from the others.")
    sample = figures["sample"]
    if sample["decoded"] < sample["of"]:
        found.append(
            f"Of {number(sample['of'])} recordings a sample of {number(sample['decoded'])} was decoded, by seed"
            f" {sample['seed']}: as many of each split and language, or all that it has."
        )
    if not figures["checkpoint"]:
        found.append("No checkpoint was given, so no model compared transcripts with recordings.")
    rejected = sum(row["count"] for row in figures["quarantine"])
    if rejected:
        found.append(f"Preparation had rejected {count(rejected, 'utterance')}, which are none of these.")
    return found


def number(value: int) -> str:
    """Format an integer with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def count(value: int, what: str) -> str:
    return f"{number(value)} {what}{'' if value == 1 else 's'}"


def percent(share: float) -> str:
    """Format a share with two significant digits, so that no share above 0 reads as 0."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %" if share == 1 else f"{100 * share:.1f} %"


def _shared_texts(figures: Figures) -> Iterator[str]:
    for row in figures["overlaps"]["texts"]:
        if row["values"]:
            first, second = row["splits"]
            found = row["utterances"][second]
            yield (
                f"{count(found, 'utterance')} of {second} ({percent(row['share'][second])})"
                f" {'has' if found == 1 else 'have'} a text that is also in {first}; {number(row['long'][second])} of"
                f" five words or more."
            )


def _shared_speakers(figures: Figures) -> Iterator[str]:
    for row in figures["overlaps"]["speakers"]:
        if row["values"]:
            first, second = row["splits"]
            verb = "is" if row["values"] == 1 else "are"
            yield (
                f"{count(row['values'], 'speaker')} {verb} in both {first} and {second}:"
                f" {count(row['utterances'][second], 'utterance')} of {second} ({percent(row['share'][second])})."
            )


def _repeated_ids(figures: Figures) -> Iterator[str]:
    row = figures["overlaps"]["ids"]
    if row["values"]:
        yield f"{count(row['values'], 'id')} {'stands' if row['values'] == 1 else 'stand'} for more than one utterance."


def _letters(figures: Figures) -> Iterator[str]:
    for language, row in figures["alphabets"].items():
        if row.get("strange"):
            shown = ", ".join(f"{each['character']} ({number(each['count'])})" for each in row["strange"][:8])
            more = " and others" if len(row["strange"]) > 8 else ""
            yield f"{language} has {count(len(row['strange']), 'character')} outside its alphabet: {shown}{more}."
        if row.get("not_normalised"):
            shown = " ".join(each["character"] for each in row["not_normalised"][:12])
            yield f"{language} is not normalised: it has capitals, punctuation or invisible characters ({shown})."


def _suspects(figures: Figures) -> Iterator[str]:
    sample = figures["sample"]
    for kind, words in KINDS.items():
        found = figures["suspects"][kind]["count"]
        if found:
            what = "recording" if words.sampled else "utterance"
            of = sample["decoded"] if words.sampled else sample["of"]
            among = f" of {number(of)}{' decoded' if words.sampled else ''} ({percent(found / of)})"
            yield f"{count(found, what)}{among} {words.singular if found == 1 else words.plural}."

"""`speechllm compare`: error rates of systems on corpora in one table."""

import json
from pathlib import Path
from typing import Any

from speechllm_pl.apps.program_options import CompareOptions
from speechllm_pl.apps.score_table import FEWEST, comparison_with_ctc
from speechllm_pl.core.errors import UserError
from speechllm_pl.storage.whole_file import write_whole

OF_DEV = "- dev has also chosen the checkpoints: rates of other utterances, such as a test set, are likely to be higher"


def compare(options: CompareOptions) -> None:
    """Put the error rates of several evaluations into one table.

    Scores are those in `CORPUS/SYSTEM/scores.json` of a folder; the table is printed and written. A system of stage 2
    has two rows: the LLM's texts, and those of the CTC head that they were scored beside.

    Raises:
        UserError: there are none, or one of them is damaged.
    """
    folder = Path(options.scores)
    entries = {
        (path.parts[-3], path.parts[-2] + kind): entry
        for path in sorted(folder.glob("*/*/scores.json"))
        for kind, entry in _entries(path).items()
    }
    if not entries:
        raise UserError(f"there is no CORPUS/SYSTEM/scores.json in {folder}: correct --scores, or evaluate into it")
    table = comparison_table({names: _rate(entry) for names, entry in entries.items()})
    lines = [
        f"- {system} on {corpus}, {line}"
        for (corpus, system), entry in entries.items()
        for line in comparison_with_ctc(entry)
    ]
    lines += [OF_DEV] if any(corpus == "dev" for corpus, _ in entries) else []
    table = "\n".join([table, *([""] if lines else []), *lines])
    output = Path(options.output or folder.with_suffix(".md"))
    write_whole(output, f"{table}\n".encode())
    print(table)
    print(f"this table is in {output}; {folder}/CORPUS/SYSTEM/scores.json has the command of each rate")


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """Entry of the last system in a file of scores, which is the LLM's where there is one, and its CTC head's.

    Returns:
        Entries by what their rows' names have behind the system's.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = list(json.loads(path.read_text()).values())
        entries = {"": found[-1]} | ({", its CTC head": found[0]} if len(found) > 1 else {})
        for entry in entries.values():
            _rate(entry)
        return entries
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{path} holds no scores: evaluate that system again") from error


def _rate(entry: dict[str, Any]) -> str:
    """Average WER in per cent, with its interval where there are recordings enough for one."""
    rate = f"{100 * entry['average']['wer']:.2f}"
    if sum(counts["utterances"] for counts in entry["languages"].values()) < FEWEST:
        return rate
    low, high = (100 * bound for bound in entry["average"]["confidence_interval"])
    return f"{rate} ({low:.1f} to {high:.1f})"


def comparison_table(rates: dict[tuple[str, ...], str]) -> str:
    """Table in Markdown of rates by corpus and system: a row a system, a column a corpus."""
    corpora, systems = (list(dict.fromkeys(names)) for names in zip(*rates, strict=True))
    rows = [["WER % (95 % interval)", *corpora], ["---"] * (1 + len(corpora))]
    rows += [[system, *(rates.get((corpus, system), "") for corpus in corpora)] for system in systems]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

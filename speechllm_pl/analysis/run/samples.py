"""Choose the transcripts of a run that a page shows."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from speechllm_pl.analysis.run.run_folder import SYSTEMS


def chosen_samples(hypotheses: Iterable[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """Choose utterances, each as its rows of `hypotheses.jsonl`, one a system.

    The system of the last stage decides. A third are right, taken from the languages in turn; the others have the
    greatest word error rates, greatest first. Where one kind is too rare the other fills its places.
    """
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in hypotheses:
        by_id.setdefault(row["id"], []).append(row)
    utterances = [sorted(rows, key=lambda row: SYSTEMS.index(row["system"])) for _, rows in sorted(by_id.items())]
    wrong = sorted((rows for rows in utterances if rows[-1]["errors"]), key=_error_rate, reverse=True)
    right = _languages_in_turn([rows for rows in utterances if not rows[-1]["errors"]])
    few = min(len(right), max(count // 3, count - len(wrong)))
    return right[:few] + wrong[: count - few]


def _error_rate(rows: list[dict[str, Any]]) -> float:
    return rows[-1]["errors"] / max(1, len(rows[-1]["reference"].split()))


def _languages_in_turn(utterances: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    seen: Counter[str] = Counter()

    def turn(rows: list[dict[str, Any]]) -> tuple[int, str]:
        language = rows[-1]["language"]
        seen[language] += 1
        return seen[language], language

    return sorted(utterances, key=turn)

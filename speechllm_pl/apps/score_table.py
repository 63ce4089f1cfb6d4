"""Tables of the error rates in scores.json, for a terminal."""

from typing import Any

from speechllm_pl.recognition.acceptance import in_words

FEWEST = 10
"""Number of recordings below which their bootstrap says nothing."""


def score_table(scores: dict[str, Any]) -> str:
    """Table of the systems side by side: WER and CER per language, their plain mean, and the interval of each WER."""
    header = "language" + "".join(f" | {system + ' WER %':>12} {'95 % interval':>15} {'CER %':>6}" for system in scores)
    lines = [header, "-" * len(header)]
    languages = sorted({language for entry in scores.values() for language in entry["languages"]})
    for language in (*languages, "average"):
        cells = [f"{language:8}"]
        for entry in scores.values():
            row = entry["average"] if language == "average" else entry["languages"][language]
            low, high = (100 * bound for bound in row["confidence_interval"])
            interval = f"{low:.1f} - {high:.1f}"
            cells.append(f"{100 * row['wer']:12.2f} {interval:>15} {100 * row['cer']:6.2f}")
        lines.append(" | ".join(cells))
    for system, entry in scores.items():
        counts = [entry["languages"][language] for language in entry["languages"]]
        kinds = ", ".join(f"{sum(c[k] for c in counts)} {k}" for k in ("substitutions", "deletions", "insertions"))
        words, utterances = (sum(c[k] for c in counts) for k in ("words", "utterances"))
        factor = entry["real_time_factor"]
        lines.append(
            f"{system}: {kinds} in {words} words of {utterances} utterances; {entry['truncated']} truncated"
            f"; {unread_share(entry)} not read"
            + ("" if factor is None else f"; real-time factor {factor:.3f}, RTFx {entry['rtfx']:.1f} ({_where(entry)})")
            + (f"; {_how(entry)}" if "llm_passes" in entry else "")
        )
        lines += [f"{system}, {line}" for line in comparison_with_ctc(entry)]
        lines += _comparison(system, entry) if "exact" in entry else []
        lines += [_normalized_line(system, entry["normalized"])] if "normalized" in entry else []
    lines.append("average: plain mean over languages; inside a language, counts are pooled")
    lines.append("real-time factor: seconds of a device, waiting for audio included, per second of audio")
    lines.append("RTFx: seconds of audio per second of a device; features count, reading and the warm-up do not")
    return "\n".join(lines)


def unread_share(entry: dict[str, Any]) -> str:
    """Unread recordings of a system, as `1 of 20 recordings (5.0 %)`."""
    unread = len(entry["unreadable"])
    total = unread + sum(counts["utterances"] for counts in entry["languages"].values())
    return f"{unread} of {total} recordings ({100 * unread / total:.1f} %)"


def _how(entry: dict[str, Any]) -> str:
    """Search of an LLM's texts, as `beam, CTC weight 0.3, 7.5 passes of the LLM an utterance`."""
    weight = f", CTC weight {entry['ctc_weight']:g}" if entry["ctc_weight"] else ""
    weight += f", with {entry['ctc_candidates']} texts of CTC" if entry.get("ctc_candidates") else ""
    relaxed = {name: entry.get(name) for name in ("accept_entropy", "accept_probability")}
    limits = "".join(f", {name} {limit:g}" for name, limit in relaxed.items() if limit is not None)
    return f"{entry['decoder']}{weight}{limits}, {entry['llm_passes']:.1f} passes of the LLM an utterance"


def comparison_with_ctc(entry: dict[str, Any]) -> list[str]:
    """Line about an LLM's texts beside those of the CTC head: the difference, and where the texts come from.

    None for other systems, and for scores of earlier versions.
    """
    if "against_ctc" not in entry:
        return []
    change, origins = entry["against_ctc"], entry["decoded_by"]
    low, high = (100 * bound for bound in change["confidence_interval"])
    known = "significant" if low > 0 or high < 0 else "not significant"
    known = known if change["utterances"] >= FEWEST else "too few recordings to tell"
    rate = f"{100 * change['wer_change']:+.2f} % ({low:.1f} to {high:.1f}, {known})"
    texts = ", ".join(f"{count} {origin}" for origin, count in sorted(origins.items()))
    return [f"against CTC: {rate}; {sum(origins.values())} texts: {texts}"]


def _comparison(system: str, entry: dict[str, Any]) -> list[str]:
    """Lines of a relaxed search and of the exact one beside it."""
    exact = entry["exact"]
    wer, change = 100 * entry["average"]["wer"], 100 * entry["wer_change"]
    return [
        f"{system}, exact: WER {100 * exact['wer']:.2f} %; {in_words(exact)}; RTFx {exact['rtfx']:.1f}",
        f"{system}, relaxed: WER {wer:.2f} % ({change:+.2f}); {in_words(entry)}; RTFx {entry['rtfx']:.1f}"
        f" ({entry['speedup']:.2f} times)",
    ]


def _where(entry: dict[str, Any]) -> str:
    return f"{entry['devices']} x {entry['device']}, {entry['precision']}"


def _normalized_line(system: str, scores: dict[str, Any]) -> str:
    languages = ", ".join(f"{language} {100 * row['wer']:.2f}" for language, row in scores["languages"].items())
    wer = f"WER {100 * scores['average']['wer']:.2f} % ({languages})"
    return f"{system} normalized by {scores['normalizer']} ({scores['package']}): {wer}"

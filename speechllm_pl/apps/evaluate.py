"""`speechllm evaluate`: error rates of one or both stages on a cut set, with everything needed to check them."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from speechllm_pl.apps.recognition import Recognized, recognize
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.metrics import ScoredUtterance, aligned_listing, score, table
from speechllm_pl.data.cuts import read_cuts
from speechllm_pl.training.restore import restore


def evaluate(
    checkpoint: str | list[str],
    cuts: str,
    output: str | None = None,
    max_duration: float = 60.0,
    device: str = "cpu",
    llm: str | None = None,
    max_wer: float | None = None,
) -> None:
    """Score checkpoints and write scores.json, hypotheses.jsonl and alignments-<system>.txt.

    Args:
        checkpoint: of stage 1, of stage 2, or both for a table side by side: '[A,B]'.
        cuts: Lhotse manifest with transcripts.
        output: folder to write to; default is the run folder of the last checkpoint.
        max_duration: seconds of audio a batch.
        device: where to compute: cpu, cuda, cuda:1.
        llm: folder or name of the LLM, where it has moved since training.
        max_wer: fail (status 2) when a system's average WER is above this fraction.

    Raises:
        UserError: bad input, or an average WER above `max_wer`.
    """
    checkpoints = [checkpoint] if isinstance(checkpoint, str) else checkpoint
    if not checkpoints:
        raise UserError("no checkpoint to evaluate: train first (make pretrain-ctc, make finetune), or name one")
    references = read_cuts(Path(cuts))
    folder = Path(output) if output else Path(checkpoints[-1]).resolve().parent.parent
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, Any] = {}
    scored: dict[str, list[ScoredUtterance]] = {}
    truncated: dict[str, set[str]] = {}
    judged: set[str] = set()
    for path in checkpoints:
        module = restore(path, llm=llm, device=device)
        if module.stage in judged:
            raise UserError(f"{path} is the second checkpoint of its stage: evaluate them one by one, with --output")
        judged.add(module.stage)
        recognized = recognize(module, references, max_duration)
        _tell_skipped(recognized)
        for system in module.systems:
            if system in scores and system != module.stage:
                continue  # stage 1's own CTC result stands, not that of the head kept in stage 2
            scored[system] = _score(recognized, system)
            truncated[system] = _truncated(recognized, system)
            scores[system] = {
                **table(scored[system]),
                # The CTC head that stage 2 keeps is decoded along with the LLM: it has no time of its own.
                "real_time_factor": recognized.real_time_factor if system == module.stage else None,
                "truncated": len(truncated[system]),
                "unreadable": recognized.skipped,
                "checkpoint": path,
                "command": shlex.join(["speechllm", *sys.argv[1:]]),
            }
    _write(folder, scores, scored, truncated)
    print(score_table(scores))
    print(f"scores, hypotheses and alignments are in {folder}")
    for system, entry in scores.items():
        if max_wer is not None and entry["average"]["wer"] > max_wer:
            raise UserError(f"{system}: average WER {entry['average']['wer']:.3f} is above max_wer {max_wer}")


def _score(recognized: Recognized, system: str) -> list[ScoredUtterance]:
    batches = recognized.batches
    scored = score(
        [id_ for batch in batches for id_ in batch.ids],
        [language for batch in batches for language in batch.languages],
        [text for batch in batches for text in batch.texts],
        [hypothesis.text for hypothesis in recognized.hypotheses[system]],
    )
    if not scored:
        raise UserError("none of the recordings could be read: check the paths in the manifest")
    return sorted(scored, key=lambda utterance: utterance.id)


def _truncated(recognized: Recognized, system: str) -> set[str]:
    ids = (id_ for batch in recognized.batches for id_ in batch.ids)
    return {id_ for id_, found in zip(ids, recognized.hypotheses[system], strict=True) if found.truncated}


def _tell_skipped(recognized: Recognized) -> None:
    if recognized.skipped:
        some = ", ".join(recognized.skipped[:5])
        print(f"{len(recognized.skipped)} recordings could not be read: {some}", file=sys.stderr)


def _write(
    folder: Path,
    scores: dict[str, Any],
    scored: dict[str, list[ScoredUtterance]],
    truncated: dict[str, set[str]],
) -> None:
    with (folder / "hypotheses.jsonl").open("w") as file:
        for system, utterances in scored.items():
            for utterance in utterances:
                row = {
                    "id": utterance.id,
                    "system": system,
                    "language": utterance.language,
                    "reference": utterance.reference,
                    "hypothesis": utterance.hypothesis,
                    "errors": utterance.words.errors,
                    "truncated": utterance.id in truncated[system],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    for system, utterances in scored.items():
        (folder / f"alignments-{system}.txt").write_text(aligned_listing(utterances))
    (folder / "scores.json").write_text(json.dumps(scores, indent=2, ensure_ascii=False) + "\n")


def score_table(scores: dict[str, Any]) -> str:
    """The systems side by side: WER and CER per language, their plain mean, and the interval of each WER."""
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
            + ("" if factor is None else f"; real-time factor {factor:.3f}")
        )
    lines.append("average: plain mean over languages; inside a language, counts are pooled")
    return "\n".join(lines)

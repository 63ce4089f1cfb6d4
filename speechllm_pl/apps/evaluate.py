"""`speechllm evaluate`: error rates of one or both stages on a cut set, with everything needed to check them."""

import functools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lhotse.cut import Cut

from speechllm_pl.apps.effects import llm_without_effect, tell
from speechllm_pl.apps.long_form import recognize_recordings
from speechllm_pl.apps.program_options import EvaluateOptions
from speechllm_pl.apps.ranks import Rank, ranks
from speechllm_pl.apps.recognized_cuts import Recognized, recognize
from speechllm_pl.apps.score_table import score_table, unread_share
from speechllm_pl.core.errors import UserError, printable
from speechllm_pl.core.metrics import ScoredUtterance, aligned_listing, paired_difference, score, table
from speechllm_pl.core.published_normalizers import package_version, published_normalizer
from speechllm_pl.data.cuts import Cuts, read_cuts
from speechllm_pl.data.loader import start_server, workers_of_rank
from speechllm_pl.data.manifest import Manifest
from speechllm_pl.data.utterance import files_of
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.hypothesis import Hypothesis, not_finite
from speechllm_pl.recognition.recognizer import Recognizer
from speechllm_pl.storage.whole_file import check_writable, replace_atomically, write_whole


def evaluate(options: EvaluateOptions) -> None:
    """Score checkpoints and write scores.json, hypotheses.jsonl, manifest.jsonl and alignments-<system>.txt.

    Raises:
        UserError: bad input, an average WER above `max_wer`, or a share of unread recordings above `max_unread`.
    """
    published_normalizer(options.normalizer)  # refused before anything is decoded
    references = read_cuts(Path(options.cuts), allow_commands=options.allow_command_sources)
    folder = Path(options.output) if options.output else Path(options.checkpoints[-1]).resolve().parent.parent
    systems: dict[str, System] = {}
    stages: set[str] = set()
    with ranks(options.device, options.devices) as rank:
        rank.after_the_first(functools.partial(check_writable, folder, "give another --output"))
        workers = _readers(options.num_workers, rank.device, rank.here)
        for path in options.checkpoints:
            recognizer = rank.after_the_first(functools.partial(_loaded, path, options, rank.device, stages))
            if rank.is_first:
                recognizer.warn_of_ctc_head(options, options.guard)
                if len(options.checkpoints) == 1:  # else one is of stage 2, which they are for
                    tell(llm_without_effect(recognizer, options, options.llm))
            decode = functools.partial(_decode, recognizer, references, options, rank, workers)
            found = decode(options)
            exact = decode(options.exact()) if options.relaxed and recognizer.stage == "llm" else None
            if found is not None:
                used = options.precision or recognizer.precision
                how = {"device": recognizer.device.type, "devices": rank.of, "precision": used, "checkpoint": path}
                _judge(found, exact, recognizer, options, how, systems)
    if rank.is_first:
        if {"ctc", "llm"} <= systems.keys():
            pair = systems["llm"].utterances, systems["ctc"].utterances
            systems["llm"].entry["against_ctc"] = paired_difference(*pair)
        _write(folder, systems)
        _write_manifest(folder / "manifest.jsonl", systems[recognizer.systems(options)[-1]], references)
        _refuse_above(options.max_wer, options.max_unread, systems)


def _readers(num_workers: int | Literal["auto"], device: str, local_ranks: int) -> int:
    """Number of processes that read ahead for each rank; they get ready while the model is read."""
    if num_workers == "auto":
        num_workers = 0 if device == "cpu" else workers_of_rank(local_ranks)
    if num_workers:
        start_server()
    return num_workers


def _decode(
    recognizer: Recognizer,
    cuts: Sequence[Cut],
    options: EvaluateOptions,
    rank: Rank,
    workers: int,
    decoding: DecodingOptions,
) -> Recognized | None:
    """Recognise all cuts on all ranks; the result is on the first one."""
    given = (recognizer, cuts, options.max_duration)
    how: dict[str, Any] = {"precision": options.precision, "options": decoding}
    how |= {"rank": rank.number, "world_size": rank.of}
    if options.long_form or options.guard:
        found = recognize_recordings(*given, **how, guard=options.guard)
    else:
        found = recognize(*given, **how, num_workers=workers, warm_up=True)
    parts = rank.gathered(found)
    return Recognized.of_ranks(parts) if rank.is_first else None


@dataclass(frozen=True)
class System:
    """Results of one system on the cuts."""

    entry: dict[str, Any]  # of scores.json
    utterances: list[ScoredUtterance]  # by id
    hypotheses: dict[str, Hypothesis]  # by id
    timing: dict[str, tuple[float, float]]  # by id: seconds of audio, and of recognising it


def _loaded(path: str, options: EvaluateOptions, device: str, stages: set[str]) -> Recognizer:
    """Load the recogniser of a checkpoint, and add its stage to `stages`.

    Raises:
        UserError: the stage is already among `stages`, or the checkpoint cannot be used.
    """
    recognizer = Recognizer.load(path, options.llm, device, options.encoder)
    if recognizer.stage in stages:
        raise UserError(f"{path} is the second checkpoint of its stage: evaluate them one by one, with --output")
    stages.add(recognizer.stage)
    return recognizer


def _judge(
    recognized: Recognized,
    exact: Recognized | None,
    recognizer: Recognizer,
    options: EvaluateOptions,
    how: dict[str, Any],
    systems: dict[str, System],
) -> None:
    """Put the results of one checkpoint's systems among those of all checkpoints.

    Args:
        exact: results of the same search, if that of `recognized` is relaxed.
    """
    _tell_skipped(recognized)
    of_checkpoint = recognizer.systems(options)
    for system in of_checkpoint:
        # Stage 1's own CTC result stands, not that of the head kept in stage 2.
        if system not in systems or system == recognizer.stage:
            found = _search(recognized, system, options)
            systems[system] = _judged(recognized, system, of_checkpoint[-1], options, {**found, **how})
    if exact is not None:
        found = _search(exact, "llm", options.exact())
        _compare(systems["llm"].entry, _judged(exact, "llm", "llm", options, {**found, **how}).entry)


def _compare(entry: dict[str, Any], exact: dict[str, Any]) -> None:
    """Add to the entry of a relaxed search what it changes in that of the exact one."""
    wer = exact["average"]["wer"]
    cost = {key: exact[key] for key in ("rtfx", "llm_passes", "drafted", "unasked")}
    entry["exact"] = {"wer": wer, **cost}
    entry["wer_change"] = entry["average"]["wer"] - wer
    entry["speedup"] = entry["rtfx"] / exact["rtfx"]


def _search(recognized: Recognized, system: str, options: DecodingOptions) -> dict[str, Any]:
    """How texts were found: options, and what an LLM accepted from the CTC head in how many passes."""
    chosen = {field.name: getattr(options, field.name) for field in fields(DecodingOptions)}
    if system == "ctc":
        return chosen if options.decoder == "ctc-beam" else {"decoder": "ctc"}
    return {**chosen, **recognized.acceptance.rates(), "decoded_by": recognized.decoded_by}


def _judged(recognized: Recognized, system: str, judged: str, options: EvaluateOptions, how: dict[str, Any]) -> System:
    hypotheses = recognized.hypotheses(system)
    if problem := not_finite(recognized.ids, hypotheses, system):
        raise UserError(problem)
    texts = [hypothesis.text for hypothesis in hypotheses]
    utterances = score(recognized.ids, recognized.languages, recognized.texts, texts)
    if not utterances:
        raise UserError("none of the recordings could be read: check the paths in the manifest")
    utterances.sort(key=lambda utterance: utterance.id)
    entry = {
        **table(utterances),
        **_normalized(utterances, options),
        # The CTC head that stage 2 keeps is decoded along with the LLM: it has no time of its own.
        "real_time_factor": recognized.real_time_factor if system == judged else None,
        "rtfx": recognized.rtfx if system == judged else None,
        "truncated": sum(hypothesis.truncated for hypothesis in hypotheses),
        "unreadable": recognized.skipped,
        **how,
        "command": shlex.join(["speechllm", *sys.argv[1:]]),
    }
    timing = [pair for batch in recognized.batches for pair in zip(batch.durations, batch.times, strict=True)]
    ids = recognized.ids
    return System(entry, utterances, dict(zip(ids, hypotheses, strict=True)), dict(zip(ids, timing, strict=True)))


def _normalized(utterances: list[ScoredUtterance], options: EvaluateOptions) -> dict[str, Any]:
    """Score table under the named normaliser, if one was asked for."""
    normalize = published_normalizer(options.normalizer)
    if normalize is None:
        return {}
    ids, languages = [each.id for each in utterances], [each.language for each in utterances]
    references = [normalize(each.reference, each.language) for each in utterances]
    hypotheses = [normalize(each.hypothesis, each.language) for each in utterances]
    scored = table(score(ids, languages, references, hypotheses))
    return {"normalized": {"normalizer": options.normalizer, "package": package_version(), **scored}}


def _refuse_above(max_wer: float | None, max_unread: float, systems: dict[str, System]) -> None:
    if max_wer is None:
        return
    for name, system in systems.items():
        wer, unread = system.entry["average"]["wer"], system.entry["unreadable"]
        if len(unread) > max_unread * (len(unread) + len(system.utterances)):
            raise UserError(
                f"{name}: {unread_share(system.entry)} could not be read, such as {unread[0]}, so its WER passes no"
                f" max_wer: check the paths in the manifest, or allow a share (--max_unread, now {max_unread:g})"
            )
        if wer > max_wer:
            where = f"alignments-{name}.txt lists its errors"
            raise UserError(f"{name}: average WER {wer:.3f} is above max_wer {max_wer}: {where}")


def _tell_skipped(recognized: Recognized) -> None:
    if recognized.skipped:
        some = ", ".join(recognized.skipped[:5])
        print(f"{len(recognized.skipped)} recordings could not be read: {printable(some)}", file=sys.stderr)


def _write(folder: Path, systems: dict[str, System]) -> None:
    with replace_atomically(folder / "hypotheses.jsonl") as file:
        for name, system in systems.items():
            for utterance in system.utterances:
                found = system.hypotheses[utterance.id]
                row: dict[str, Any] = {
                    "id": utterance.id,
                    "system": name,
                    "language": utterance.language,
                    "reference": utterance.reference,
                    "hypothesis": utterance.hypothesis,
                    "errors": utterance.words.errors,
                    "truncated": found.truncated,
                }
                if found.alternatives:
                    row["alternatives"] = [asdict(each) for each in found.n_best]
                file.write(_line(row))
    for name, system in systems.items():
        write_whole(folder / f"alignments-{name}.txt", aligned_listing(system.utterances).encode())
    scores = {name: system.entry for name, system in systems.items()}
    write_whole(folder / "scores.json", f"{json.dumps(scores, indent=2, ensure_ascii=False)}\n".encode())
    print(score_table(scores))
    print(f"scores, hypotheses and alignments are in {folder}")


def _write_manifest(path: Path, system: System, cuts: Cuts) -> None:
    """Write the texts as they are, with seconds of audio and of work, in the form of the Open ASR leaderboard."""
    # Cuts of shards hold their audio, and have no file of their own.
    files = {cut.id: files_of(cut) for cut in cuts} if isinstance(cuts, Manifest) else {}
    with replace_atomically(path) as file:
        for utterance in system.utterances:
            duration, seconds = system.timing[utterance.id]
            row = {
                "audio_filepath": next(iter(files.get(utterance.id, ())), utterance.id),
                "duration": duration,
                "time": seconds,
                "text": utterance.reference,
                "pred_text": utterance.hypothesis,
            }
            file.write(_line(row))


def _line(row: dict[str, Any]) -> bytes:
    return f"{json.dumps(row, ensure_ascii=False)}\n".encode()

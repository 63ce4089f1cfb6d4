"""The page about a run: its figures, tables, transcripts, and the commands behind them.

What the run does not have yet is named on the page, with the command that makes it.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from speechllm_pl.analysis.html.charts import (
    alignment_chart,
    error_rate_chart,
    error_rate_curves,
    loss_chart,
    rates_of,
    single_curve,
)
from speechllm_pl.analysis.html.page import Tile, command_line, error_rate, interval, render
from speechllm_pl.analysis.run.alignment_map import AlignmentMap
from speechllm_pl.analysis.run.run_folder import STAGES, SYSTEMS, Run, StageFolder
from speechllm_pl.analysis.run.samples import chosen_samples
from speechllm_pl.core.metrics import marked_words

STAGE_TITLES = {
    "pretrain_ctc": "Stage 1: the encoder, with CTC",
    "finetune": "Stage 2: the LLM learns to listen",
}
STAGE_TARGETS = {"pretrain_ctc": "make pretrain-ctc", "finetune": "make finetune"}
SYSTEM_TITLES = {"ctc": "CTC (stage 1)", "llm": "LLM (stage 2)"}


def run_page(run: Run, alignment: tuple[str, str, AlignmentMap] | str, samples: int, command: Sequence[str]) -> str:
    """Render the page.

    Args:
        run: what the run folder holds.
        alignment: id, text and map of an utterance; or one sentence that says why there is none.
        samples: number of utterances to show.
        command: arguments of the command that makes this page.
    """
    aligned = not isinstance(alignment, str)
    tiles = [_error_rate_tile(run, system) for system in SYSTEMS]
    tiles += [_time_tile(run, stage, number) for number, stage in enumerate(STAGES, start=1)]
    return render(
        "run.html",
        name=run.folder.resolve().name,
        run=run,
        tiles=tiles,
        **_scores(run),
        samples=chosen_samples(run.hypotheses, samples),
        marked_words=marked_words,
        alignment=alignment,
        alignment_chart=alignment_chart(alignment[2], name="alignment") if aligned else "",
        stages={name: run.stages.get(name) for name in STAGES},
        stage_titles=STAGE_TITLES,
        stage_targets=STAGE_TARGETS,
        summaries={name: _stage_summary(stage) for name, stage in run.stages.items()},
        curves={name: list(_curves(stage)) for name, stage in run.stages.items() if stage.curves},
        commands=list(_commands(run, command)),
        **_environments(run),
    )


# headline


def _error_rate_tile(run: Run, system: str) -> Tile:
    title = f"{system.upper()} word error rate"
    if system in run.scores:
        average = run.scores[system]["average"]
        languages = len(run.scores[system]["languages"])
        over = f"mean over {languages} languages" if languages > 1 else "one language"
        note = f"{over},\n95 % interval {interval(average['confidence_interval'])}"
        return Tile(title, error_rate(average["wer"]), "%", note, system)
    curves = [stage.curves.get(f"val/{system}_wer") for stage in run.stages.values()]
    validated = [curve[-1] for curve in curves if curve]
    if validated:
        step, rate = validated[0]
        return Tile(title, error_rate(rate), "%", f"on dev at step {step}; test not scored yet", system)
    return Tile(title, "–", note="not scored yet", kind=system)


def _time_tile(run: Run, name: str, number: int) -> Tile:
    title = f"Stage {number} training"
    if name not in run.stages:
        return Tile(title, "–", note="not begun")
    stage = run.stages[name]
    ends = [curve[-1][0] + 1 for tag, curve in stage.curves.items() if tag.startswith("train/")]
    steps = f"{max(ends, default=0):,} steps".replace(",", "\u202f")
    if not stage.finished:
        steps += "; not finished"
    size, unit = (60, "minutes") if stage.seconds < 3600 else (3600, "hours")
    return Tile(title, f"{stage.seconds / size:.1f}", unit, steps)


# error rates


def _scores(run: Run) -> dict[str, Any]:
    """Error rates by language, a cell a system, with the chart and the notes that go with them."""
    scores = run.scores
    systems = [system for system in SYSTEMS if system in scores]
    languages = sorted({language for system in systems for language in scores[system]["languages"]})
    rows = [*languages, "average"] if len(languages) > 1 else languages
    rates = {row: [rates_of(scores[system], row) for system in systems] for row in rows}
    return {
        "systems": systems,
        "system_titles": SYSTEM_TITLES,
        "rates": rates,
        "compared": len(systems) > 1 and any(all(cells) for cells in rates.values()),
        "rate_chart": error_rate_chart(scores, rows, name="rates") if systems else "",
        "error_kinds": [_error_kinds(SYSTEM_TITLES[system], scores[system]) for system in systems],
    }


def _error_kinds(title: str, entry: dict[str, Any]) -> str:
    counts = entry["languages"].values()
    total = {kind: sum(row[kind] for row in counts) for kind in ("substitutions", "deletions", "insertions", "words")}
    utterances = sum(row["utterances"] for row in counts)
    text = (
        f"{title}: {total['substitutions']} substitutions, {total['deletions']} deletions and"
        f" {total['insertions']} insertions in {total['words']} words of {utterances} utterances"
    )
    if entry["real_time_factor"] is not None:
        text += f"; real-time factor {entry['real_time_factor']:.3f}"
    if entry.get("truncated"):
        text += f"; {entry['truncated']} transcripts met the length cap or looped"
    if entry.get("unreadable"):
        text += f"; {len(entry['unreadable'])} recordings could not be read"
    return f"{text}."


# training


def _stage_summary(stage: StageFolder) -> str:
    facts = [f"{stage.seconds / 3600:.2f} hours in all"]
    if stage.finished:
        facts.append(f"{stage.finished['epochs']} epochs, {stage.finished['steps']} steps")
    if stage.curves.get("speed/audio_seconds_per_second"):
        facts.append(f"{_speed(stage)} of audio a second")
    if stage.environment:
        processes = stage.environment["processes"]
        facts.append(f"{processes} process{'es' if processes > 1 else ''} on {stage.environment['machine']}")
    return "; ".join(facts) + "."


def _speed(stage: StageFolder) -> str:
    return f"{median(value for _, value in stage.curves['speed/audio_seconds_per_second']):.0f} s"


def _curves(stage: StageFolder) -> Iterable[tuple[str, str]]:
    """Charts of a stage with their captions."""
    curves, name = stage.curves, stage.name.replace("_", "-")
    yield loss_chart(curves, name=f"{name}-loss"), "Training loss: pale as logged, strong its running mean."
    if any(curves.get(f"val/{system}_wer") for system in SYSTEMS):
        yield error_rate_curves(curves, name=f"{name}-wer"), "Word error rate on dev: plain mean over languages."
    rates = [curve for tag, curve in sorted(curves.items()) if tag.startswith("lr-")]
    if rates:
        rate, *others = rates
        differs = any(other != rate for other in others)
        caption = (
            "Learning rate of what is new in this stage; the encoder has its own." if differs else "Learning rate."
        )
        label = f"Learning rate by step, at most {max(value for _, value in rate):.2g}"
        yield single_curve(rate, "learning rate", name=f"{name}-lr", label=label), caption
    speed = curves.get("speed/audio_seconds_per_second")
    if speed:
        label = f"Speed by step, median {_speed(stage)}"
        caption = "Seconds of audio trained on in a second, over all processes, since the epoch began."
        yield single_curve(speed, "audio s / s", name=f"{name}-speed", label=label), caption


# commands


def _commands(run: Run, command: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Titles and commands of the stages, the scores and this page."""
    for stage in run.stages.values():
        if stage.environment:
            yield STAGE_TITLES[stage.name], command_line(stage.environment["command"])
    for scored in dict.fromkeys(entry["command"] for entry in run.scores.values()):  # both systems name the same one
        yield "Scores and transcripts", scored
    yield "This page", command_line(command)


def _environments(run: Run) -> dict[str, Any]:
    """Seeds, commits and versions by name, with a value for each recorded stage."""
    recorded = {name: _environment(stage.environment) for name, stage in run.stages.items() if stage.environment}
    names = dict.fromkeys(name for column in recorded.values() for name in column)
    facts = {name: [column.get(name, "–") for column in recorded.values()] for name in names}
    return {"recorded": list(recorded), "facts": facts}


def _environment(record: dict[str, Any]) -> dict[str, Any]:
    changes = len(record["git_changes"])
    commit = record["git_commit"][:12] or "no git"
    return {
        "seed": record["seed"],
        "commit": f"{commit} and {changes} uncommitted changes" if changes else commit,
        "python": record["python"],
        **record["packages"],
    }

"""One self-contained HTML page about a run: its figures, tables, transcripts, and the commands behind them.

Nothing is loaded from elsewhere, so that the page can be mailed, archived and read without a network. What
the run does not have yet is named on the page, with the command that makes it.
"""

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from speechllm_pl.analysis.html.charts import (
    SYSTEMS,
    alignment_chart,
    error_rate_chart,
    error_rate_curves,
    loss_chart,
    single_curve,
)
from speechllm_pl.analysis.html.page import html_page
from speechllm_pl.analysis.run.alignment_map import AlignmentMap
from speechllm_pl.analysis.run.run_folder import STAGES, Run, Stage
from speechllm_pl.core.metrics import marked_words

STAGE_TITLES = {
    "pretrain_ctc": "Stage 1: the encoder, with CTC",
    "finetune": "Stage 2: the LLM learns to listen",
}
STAGE_TARGETS = {"pretrain_ctc": "make pretrain-ctc", "finetune": "make finetune"}
SYSTEM_TITLES = {"ctc": "CTC (stage 1)", "llm": "LLM (stage 2)"}


def page(run: Run, alignment: tuple[str, str, AlignmentMap] | str, samples: int, command: Sequence[str]) -> str:
    """The whole page.

    Args:
        run: what the run folder holds.
        alignment: an utterance's id, its text and its map; or one sentence that says why there is none.
        samples: how many utterances to show.
        command: what made this page.
    """
    sections = (
        ("results", "Error rates", _results(run)),
        ("transcripts", "Transcripts", _transcripts(run, samples)),
        ("alignment", "Alignment", _alignment(alignment)),
        ("training", "Training", "".join(_stage(run, stage) for stage in STAGES)),
        ("reproduce", "How to reproduce this", _reproduce(run, command)),
    )
    lede = (
        '<p class="lede">A conformer encoder learns to recognise speech with CTC. Its frames, stacked and'
        " projected, then stand before the text of a causal language model, which learns to write down what it"
        " hears. After arXiv 2307.11795.</p>"
    )
    kicker = "Speech recognition with a language model"
    return html_page("Run", run.folder.resolve().name, kicker, lede + _headline(run), sections)


# headline


def _headline(run: Run) -> str:
    tiles = [_error_rate_tile(run, system) for system in SYSTEMS]
    tiles += [_time_tile(run, stage, number) for number, stage in enumerate(STAGES, start=1)]
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _error_rate_tile(run: Run, system: str) -> str:
    title = f"{SYSTEMS[system][0]} word error rate"
    if system in run.scores:
        average = run.scores[system]["average"]
        languages = len(run.scores[system]["languages"])
        over = f"mean over {languages} languages" if languages > 1 else "one language"
        return _tile(
            title,
            f"{_percent(average['wer'])}<small> %</small>",
            f"{over},<br>95 % interval {_interval(average)}",
            system,
        )
    curves = [stage.curves.get(f"val/{system}_wer") for stage in run.stages.values()]
    validated = [curve[-1] for curve in curves if curve]
    if validated:
        step, rate = validated[0]
        return _tile(title, f"{_percent(rate)}<small> %</small>", f"on dev at step {step}; test not scored yet", system)
    return _tile(title, "–", "not scored yet", system)


def _time_tile(run: Run, name: str, number: int) -> str:
    title = f"Stage {number} training"
    if name not in run.stages:
        return _tile(title, "–", "not begun")
    stage = run.stages[name]
    ends = [curve[-1][0] + 1 for tag, curve in stage.curves.items() if tag.startswith("train/")]
    steps = f"{max(ends, default=0):,} steps".replace(",", "\u202f")
    if not stage.finished:
        steps += "; not finished"
    return _tile(title, _duration(stage.seconds), steps)


def _tile(title: str, value: str, note: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><dt>{title}</dt><dd class="value">{value}</dd><dd class="note">{note}</dd></div>'


# error rates


def _results(run: Run) -> str:
    scores = run.scores
    systems = [system for system in SYSTEMS if system in scores]
    if not systems:
        return _missing("The run has no scores yet", "make evaluate")
    languages = sorted({language for system in systems for language in scores[system]["languages"]})
    rows = [*languages, "average"] if len(languages) > 1 else languages
    notes = "".join(f"<li>{_error_kinds(SYSTEM_TITLES[system], scores[system])}</li>" for system in systems)
    lacking = "" if len(systems) == len(SYSTEMS) else _missing("Only one of the two stages is scored", "make evaluate")
    return (
        f'<div class="pair results"><div class="scroll" tabindex="0">{_score_table(scores, systems, rows)}</div>'
        f"<figure>{error_rate_chart(scores, rows, name='rates')}"
        "<figcaption>Word error rate with its 95 % interval: bootstrap over utterances.</figcaption></figure></div>"
        f'<ul class="notes">{notes}</ul>{lacking}'
    )


def _score_table(scores: dict[str, Any], systems: list[str], rows: list[str]) -> str:
    over = "".join(
        f'<th colspan="3" scope="colgroup" class="{system}">{SYSTEM_TITLES[system]}</th>' for system in systems
    )
    columns = "".join(
        f'<th scope="col" class="first {system}">WER %</th><th scope="col">95 % interval</th><th scope="col">CER %</th>'
        for system in systems
    )
    both = [row for row in rows if len(systems) > 1 and all(_rates(scores[system], row) for system in systems)]
    best = {row: min(_rates(scores[system], row)["wer"] for system in systems) for row in both}
    bold = "; the lower word error rate is in bold" if both else ""
    body = ""
    for row in rows:
        cells = "".join(_rate_cells(_rates(scores[system], row), best.get(row)) for system in systems)
        title = "plain mean over languages" if row == "average" else escape(row)
        body += f'<tr{" class=average" if row == "average" else ""}><th scope="row">{title}</th>{cells}</tr>'
    return (
        '<table class="scores"><caption>Words and characters in error on the test set. Counts are pooled inside'
        f" a language{bold}.</caption>"
        f'<thead><tr><td></td>{over}</tr><tr><th scope="col">Language</th>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _rate_cells(rates: dict[str, Any], best: float | None) -> str:
    if not rates:
        return '<td class="first">–</td><td>–</td><td>–</td>'
    wer = _percent(rates["wer"])
    wer = f"<strong>{wer}</strong>" if rates["wer"] == best else wer
    return f'<td class="first">{wer}</td><td class="interval">{_interval(rates)}</td><td>{_percent(rates["cer"])}</td>'


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
    return escape(f"{text}.")


def _rates(entry: dict[str, Any], row: str) -> dict[str, Any]:
    return entry["average"] if row == "average" else entry["languages"].get(row, {})


# transcripts


def chosen_samples(hypotheses: Iterable[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    """The utterances to show, each as its rows of `hypotheses.jsonl`, one a system.

    Judged by the last stage's system. A third are right, taken from every language in turn; the others have
    the greatest word error rates, greatest first. Where either kind is too rare the other fills its places.
    """
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in hypotheses:
        by_id.setdefault(row["id"], []).append(row)
    order = list(SYSTEMS)
    utterances = [sorted(rows, key=lambda row: order.index(row["system"])) for _, rows in sorted(by_id.items())]
    wrong = sorted((rows for rows in utterances if rows[-1]["errors"]), key=_error_rate, reverse=True)
    right = _languages_in_turn([rows for rows in utterances if not rows[-1]["errors"]])
    few = min(len(right), max(count // 3, count - len(wrong)))
    return right[:few] + wrong[: count - few]


def _error_rate(rows: list[dict[str, Any]]) -> float:
    return rows[-1]["errors"] / max(1, len(rows[-1]["reference"].split()))


def _languages_in_turn(utterances: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    seen: dict[str, int] = {}
    turns = []
    for rows in utterances:
        language = rows[-1]["language"]
        turns.append((seen.setdefault(language, 0), language, rows))
        seen[language] += 1
    return [rows for _, _, rows in sorted(turns, key=lambda turn: turn[:2])]


def _transcripts(run: Run, count: int) -> str:
    if not run.hypotheses:
        return _missing("The run has no transcripts yet", "make evaluate")
    body = "".join(_sample(rows) for rows in chosen_samples(run.hypotheses, count))
    return (
        '<p class="legend">Some that are right, then the worst. <mark>replaced</mark> <del>left out</del>'
        " <ins>put in</ins>; point at a replaced word to see what was said.</p>"
        '<div class="scroll" tabindex="0"><table class="samples">'
        '<caption class="quiet">Reference and recognised text</caption>'
        '<thead><tr><th scope="col">System</th><th scope="col">Text</th><th scope="col">Errors</th></tr></thead>'
        f"{body}</table></div>"
    )


def _sample(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    language = escape(first["language"])
    lines = f'<tr><th scope="row">said</th><td lang="{language}">{escape(first["reference"])}</td><td></td></tr>'
    for row in rows:
        marked = _marked(row["reference"], row["hypothesis"]) or "<i>nothing</i>"
        cut_short = ' <span class="flag">met the length cap or looped</span>' if row.get("truncated") else ""
        label = SYSTEMS[row["system"]][0]
        lines += (
            f'<tr><th scope="row" class="{row["system"]}">{label}</th>'
            f'<td lang="{language}">{marked}{cut_short}</td><td class="count">{row["errors"] or "none"}</td></tr>'
        )
    head = f'<tr><th colspan="3" scope="rowgroup">{escape(first["id"])} <span>{language}</span></th></tr>'
    return f"<tbody>{head}{lines}</tbody>"


def _marked(reference: str, hypothesis: str) -> str:
    words = []
    for operation, said, heard in marked_words(reference, hypothesis):
        if operation == "equal":
            words.append(escape(heard or ""))
        elif operation == "substitute":
            words.append(f'<mark title="said: {escape(said or "")}">{escape(heard or "")}</mark>')
        elif operation == "delete":
            words.append(f"<del>{escape(said or '')}</del>")
        else:
            words.append(f"<ins>{escape(heard or '')}</ins>")
    return " ".join(words)


# alignment and training


def _alignment(alignment: tuple[str, str, AlignmentMap] | str) -> str:
    if isinstance(alignment, str):
        return f'<p class="missing">{escape(alignment)}</p>'
    id_, text, found = alignment
    milliseconds = round(1000 * found.seconds_per_embedding)
    return (
        "<p>How alike the projected audio embeddings (to the right) and the language model's input embeddings of"
        f" the reference text (downwards) are. A column is {milliseconds} ms of audio; a dot marks the best match of"
        " each token. Where the dots go down and to the right, the model reads the words off the audio in order."
        f" Rank correlation of the dots with the order of the text: <strong>{found.monotonicity:.2f}</strong>.</p>"
        f'<figure class="scroll wide" tabindex="0">{alignment_chart(found, name="alignment")}'
        f"<figcaption>{escape(id_)}: “{escape(text)}”</figcaption></figure>"
    )


def _stage(run: Run, name: str) -> str:
    title = f"<h3>{STAGE_TITLES[name]}</h3>"
    if name not in run.stages:
        return title + _missing("This stage has not been run", STAGE_TARGETS[name])
    stage = run.stages[name]
    if not stage.curves:
        return title + _missing("This stage has logged nothing yet", STAGE_TARGETS[name])
    figures = "".join(_figure(svg, caption) for svg, caption in _curves(stage))
    unfinished = "" if stage.finished else _missing("This stage has not run to its end", STAGE_TARGETS[name])
    return f'{title}<p>{_stage_summary(stage)}</p>{unfinished}<div class="pair">{figures}</div>'


def _curves(stage: Stage) -> Iterable[tuple[str, str]]:
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


def _stage_summary(stage: Stage) -> str:
    facts = [f"{stage.seconds / 3600:.2f} hours in all"]
    if stage.finished:
        facts.append(f"{stage.finished['epochs']} epochs, {stage.finished['steps']} steps")
    if stage.curves.get("speed/audio_seconds_per_second"):
        facts.append(f"{_speed(stage)} of audio a second")
    if stage.environment:
        processes = stage.environment["processes"]
        facts.append(f"{processes} process{'es' if processes > 1 else ''} on {stage.environment['machine']}")
    return escape("; ".join(facts) + ".")


def _speed(stage: Stage) -> str:
    return f"{median(value for _, value in stage.curves['speed/audio_seconds_per_second']):.0f} s"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


# commands


def _reproduce(run: Run, command: Sequence[str]) -> str:
    commands = [
        (STAGE_TITLES[stage.name], _joined(stage.environment["command"]))
        for stage in run.stages.values()
        if stage.environment
    ]
    scored = dict.fromkeys(entry["command"] for entry in run.scores.values())  # both systems name the same one
    commands += [("Scores and transcripts", text) for text in scored]
    commands.append(("This page", _joined(command)))
    steps = "".join(f"<li><h3>{title}</h3><pre><code>{escape(text)}</code></pre></li>" for title, text in commands)
    return f'<ol class="commands">{steps}</ol>{_environments(run)}'


def _environments(run: Run) -> str:
    """Seeds, commits and versions, a column a stage."""
    stages = [stage for stage in run.stages.values() if stage.environment]
    if not stages:
        return ""
    columns = [_environment(stage.environment) for stage in stages]
    names = dict.fromkeys(name for column in columns for name in column)
    head = "".join(f'<th scope="col">{STAGE_TITLES[stage.name].partition(":")[0]}</th>' for stage in stages)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(str(column.get(name, '–')))}</td>" for column in columns)
        + "</tr>"
        for name in names
    )
    return (
        "<details open><summary>Seeds, commits and versions</summary>"
        '<div class="scroll" tabindex="0"><table class="environment">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _environment(record: dict[str, Any]) -> dict[str, Any]:
    changes = len(record["git_changes"])
    commit = record["git_commit"][:12] or "no git"
    return {
        "seed": record["seed"],
        "commit": f"{commit} and {changes} uncommitted changes" if changes else commit,
        "python": record["python"],
        **record["packages"],
    }


# words and figures


def _missing(what: str, remedy: str) -> str:
    return f'<p class="missing">{what}: <code>{remedy}</code></p>'


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.1f}<small> minutes</small>"
    return f"{seconds / 3600:.1f}<small> hours</small>"


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f}"


def _interval(rates: dict[str, Any]) -> str:
    low, high = rates["confidence_interval"]
    return f"{100 * low:.1f}–{100 * high:.1f}"


def _joined(command: Sequence[str]) -> str:
    """A command to type: the program by its name, whatever folder it was started from."""
    return shlex.join([Path(command[0]).name, *command[1:]])

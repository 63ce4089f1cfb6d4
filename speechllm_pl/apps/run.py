"""`speechllm run`: the targets of the Makefile, as plain command lines that are printed and run."""

import argparse
import shlex
import sys
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from docstring_parser import parse_from_object

from speechllm_pl.apps.main import PROGRAMS, with_underscores
from speechllm_pl.core.errors import UserError
from speechllm_pl.recipes import demo_english, demo_speech
from speechllm_pl.recipes.experiment import Experiment
from speechllm_pl.recipes.preparation import Preparation
from speechllm_pl.recipes.programs import Programs
from speechllm_pl.recipes.recipe import Recipe, Stage, local_model, words
from speechllm_pl.recipes.slurm import LOGS, Cluster
from speechllm_pl.recipes.steps import Step, become, carry_out, unfinished

STAGES: dict[str, Stage] = {"pretrain-ctc": "pretrain_ctc", "finetune": "finetune"}
ADAPTING = "adapt-text"
PREPARING = {"data": "cuts", "tokenizer": "tokenizer", "shar": "shar"}
"""Targets that prepare data, and their names in `Preparation`."""
SHORT = {"root": "data/spoken_numbers_short", "hours": "0.5", "languages": "en", "max_wer": "0.25"}
EXPERIMENTS = {
    "demo": {"name": "demo", "data": "spoken_numbers"},
    "fsdd": {"name": "fsdd", "data": "fsdd"},
    "demo-english": {"data": "spoken_english", "llm": "smollm2", "hours": "0.5"},
    "demo-speech": {"data": "table"},
    "demo-short": {"name": "demo_short", "data": "spoken_numbers", **SHORT},
    "experiment": {},
}
"""Targets that are a whole experiment, and the options that they fix."""
COMPARISONS = {"demo-english": demo_english.choices, "demo-speech": demo_speech.choices}
"""Targets of these that end in a table, and their functions of the options that they fix after those given."""
OF_SUBMISSION = ("run", "program", "sbatch_args", *(field.name for field in fields(Cluster) if field.name != "jobs"))
"""Options that are not passed on to a job."""
SUBMITTED = (*STAGES, "evaluate", "prepare", "shar")
TARGETS = (
    *(*STAGES, ADAPTING, "evaluate", "transcribe", "report", "data-report", "llm"),
    *(*PREPARING, "prepare", *EXPERIMENTS),
)

KINDS = (Recipe, Experiment, Preparation, Cluster)
"""What a target is made of. Their fields are options, and the docstrings of these the help, the first of each name."""
NO_OPTIONS = (
    *("stage", "overrides", "recipe", "preparation", "programs", "folder", "settings", "before", "arguments"),
)
"""Fields that follow from the target and from other options."""
TYPES = {field.name: field.type for kind in KINDS for field in fields(kind) if field.name not in NO_OPTIONS}
NUMERIC = [name for name, kind in TYPES.items() if kind in (int, int | None)]
TOLD = {param.arg_name: param.description or "" for kind in reversed(KINDS) for param in parse_from_object(kind).params}
OPTIONS = {name: TOLD[name] for name in TYPES if name not in NUMERIC} | {
    "llm_run": "Run folder of stage 2, where it has a name of its own.",
    "output": "Where scores or a report are written.",
    "name": "Name of the experiment, whose folder is runs/NAME.",
    "eval_table": "Recordings of other voices that demo-speech scores besides: a table, or a folder with texts.",
    "prepare_args": "Further arguments of the program that prepares the corpus, in one word.",
    "program": "How `speechllm` is started, in one word; as this one was started without it.",
    "array": "Tasks of the array that packs Shar.",
    "sbatch_args": "Further options of sbatch, in one word.",
}
OF_WORDS = ("languages", "parts", "prepare_args", "program", "sbatch_args")
"""Options that are split into words as a shell does."""
NUMBERS = {name: TOLD[name] for name in NUMERIC} | {
    "part": "Prepare this part alone, counted from 1.",
    "side_by_side": "Steps that may run at the same time.",
}
SWITCHES = {
    "dry_run": "Print the lines and run nothing.",
    "only_needs": "Make what the target needs, and not the target.",
    "only_line": "Print the target's own line with its environment, for the tasks of a job, and run nothing.",
    "slurm": "Submit the target to SLURM.",
}
UNLIMITED = 999
"""Steps side by side without a number, as `make -j` gives it."""
DEFAULTS: dict[str, Any] = {"name": "demo", "array": "0-7"} | {
    field.name: field.default for kind in KINDS for field in fields(kind) if isinstance(field.default, str | int)
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"run: {message}")


def _number(text: str) -> int:
    """Parse a number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def _steps_side_by_side(text: str) -> int:
    return _number(text) if text else UNLIMITED


def _quoted(text: str) -> str:
    """Check that a shell could split a text into words, for argparse."""
    try:
        shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: {text}") from error
    return text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="speechllm run",
        description=PROGRAMS["run"],
        epilog="What follows -- is passed on as is: `speechllm run finetune --data fsdd -- --model.bridge.stride 2`.",
        allow_abbrev=False,
    )
    parser.add_argument("target", choices=TARGETS, help="Target: what to do.")
    for name, text in OPTIONS.items():
        kind = _quoted if name in OF_WORDS else str
        parser.add_argument(f"--{name}", type=kind, default=DEFAULTS.get(name), help=text)
    for name, text in NUMBERS.items():
        kind = _steps_side_by_side if name == "side_by_side" else _number
        parser.add_argument(f"--{name}", type=kind, default=DEFAULTS.get(name), help=text)
    for name, text in SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser


def run(arguments: list[str]) -> None:
    """Prepare data, train, evaluate or run a whole experiment: print the plain command lines, and run them.

    Args:
        arguments: see `--help`; those after `--` are passed on.

    Raises:
        UserError: a choice does not exist, or contradicts others.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:end])
    overrides = tuple(with_underscores(arguments[end + 1 :]))
    vars(options).update(EXPERIMENTS.get(options.target, {}))
    if options.target in COMPARISONS:
        vars(options).update(COMPARISONS[options.target](vars(options), overrides))
    target = Target(options, overrides)
    last = Step(f"mkdir -p {LOGS} && {target.submission()}") if options.slurm else target.step
    if options.only_line:
        print(target.programs.with_environment(last))
    elif options.dry_run:
        for step in unfinished(*last.needs, *last.after) if options.only_needs else unfinished(last):
            print(step.line)
    elif options.target in EXPERIMENTS:
        if options.target == "demo-speech":  # what is scored depends on the splits that the recordings have
            carry_out(target.preparation.cuts)
            last = target.step
        finished = not unfinished(last)
        carry_out(last, at_once=options.side_by_side or 2)
        if options.target in COMPARISONS and finished and last.makes:
            print(f"{last.makes.read_text()}{last.makes} is finished")
        elif options.target not in COMPARISONS:
            print(f"scores.json, hypotheses.jsonl, transcripts.txt and report.html are in {target.experiment.folder}")
    else:
        carry_out(*last.needs, *last.after, at_once=options.side_by_side or 1)
        if last.is_finished:
            print(f"{last.makes} is finished")
        elif not options.only_needs:
            become(last)


class Target:
    """Target of a command line.

    Args:
        options: parsed options.
        overrides: arguments for the last command.
    """

    def __init__(self, options: argparse.Namespace, overrides: tuple[str, ...]):
        self.options, self.overrides = options, overrides
        program = sys.argv[0] if Path(sys.argv[0]).name == "speechllm" else "speechllm"
        self.programs = Programs(tuple(words(options.program)) or (program,), options.trainer)

    def chosen(self, kind: Any, **given: Any) -> Any:
        """Build a dataclass of recipes from the options with its fields' names, and `given`."""
        names = {field.name for field in fields(kind)} - given.keys()
        return kind(**{name: value for name, value in vars(self.options).items() if name in names}, **given)

    def recipe(self, stage: Stage) -> Recipe:
        """Recipe of a stage; a given checkpoint and run folder belong to the target's stage."""
        run = self.options.ctc_run if stage == "pretrain_ctc" else self.options.llm_run
        if STAGES.get(self.options.target) == stage:
            run = self.options.run or run
            return self.chosen(Recipe, stage=stage, run=run, text=None, overrides=self.overrides)
        return self.chosen(Recipe, stage=stage, run=run, ckpt=None, text=None)

    @cached_property
    def preparation(self) -> Preparation:
        return self.chosen(
            Preparation,
            programs=self.programs,
            folder=self.recipe("pretrain_ctc").folder,
            parts=tuple(words(self.options.parts)),
            arguments=tuple(words(self.options.prepare_args)),
        )

    @cached_property
    def experiment(self) -> Experiment:
        recipe = replace(self.recipe("finetune"), overrides=self.overrides)
        folder = Path("runs", self.options.name)
        return Experiment(folder, recipe, self.preparation, self.programs, self.options.max_wer, self.options.split)

    @property
    def step(self) -> Step:
        """Step of the target, with all steps that it needs."""
        name = self.options.target
        if name == "demo-english":
            return demo_english.demo_english(self.experiment).table
        if name == "demo-speech":
            return demo_speech.demo_speech(self.experiment, self.options.eval_table).table
        if name in EXPERIMENTS:
            return self.experiment.report
        if name in STAGES:
            return self.training
        if name == ADAPTING:
            return self._adaptation()
        if name == "prepare":
            return self.preparation.tokenizer
        if name == "data" and self.options.part:
            return self._part()
        if name == "llm":
            return self.preparation.llm(self.options.llm) or self.preparation.tiny_llm
        if name in PREPARING:
            return getattr(self.preparation, PREPARING[name])
        return {
            "evaluate": self._evaluation,
            "transcribe": self._transcription,
            "report": self._report,
            "data-report": self._data_report,
        }[name]()

    def _part(self) -> Step:
        number, names = self.options.part, words(self.options.parts)
        if number > len(names):
            there_are = f"there are {len(names)}, {', '.join(names)}" if names else "--parts names none"
            raise UserError(f"--part {number}: {there_are}; leave --part out to prepare everything")
        return self.preparation.part(names[number - 1])

    @property
    def training(self) -> Step:
        recipe = self.recipe(STAGES[self.options.target])
        needs = [self.preparation.tokenizer]
        of_hub = [recipe.encoder] if recipe.encoder and not local_model(recipe.encoder) else []
        if recipe.stage == "finetune" and (making := self.preparation.llm(recipe.llm)):
            needs.append(making)
        elif recipe.stage == "finetune" and recipe.llm:
            of_hub.append(recipe.llm)
        ranks_wait = self.options.only_needs or self.options.trainer in ("ddp", "fsdp")  # for the first one's download
        if ranks_wait and any(not Path(name, "config.json").is_file() for name in of_hub):
            needs.append(self.programs.speechllm("fetch", *recipe.fit_arguments))
        return replace(self.programs.fit(recipe), needs=tuple(needs))

    def _adaptation(self) -> Step:
        if not self.options.text:
            raise UserError("adapt-text needs TEXT=<file with one sentence a line> (--text)")
        ckpt = self.options.ckpt or str(self.recipe("finetune").best)
        recipe: Recipe = self.chosen(Recipe, stage="finetune", ckpt=ckpt, overrides=self.overrides)
        making = self.preparation.texts_alone(self.options.text, recipe.texts_alone)
        return replace(self.programs.fit(recipe), needs=(making,), after=(self.preparation.tokenizer,))

    @property
    def _evaluated(self) -> list[Path]:
        """Checkpoints that are evaluated."""
        stages = [self.recipe(stage).best for stage in STAGES.values()]
        given = [Path(name) for name in (self.options.ckpt or "").split(",") if name]
        return given or [path for path in stages if path.exists()] or stages[:1]

    def _evaluation(self) -> Step:
        cuts = self.recipe("finetune").folder / f"{self.options.split}.jsonl.gz"
        given = (self.options.output, self.options.trainer, self.options.max_wer)
        return self.programs.evaluate(self._evaluated, cuts, *given, overrides=self.overrides)

    def _transcription(self) -> Step:
        checkpoint = self.options.ckpt or str(self.recipe("finetune").best)
        return self.programs.speechllm("transcribe", "--checkpoint", checkpoint, *self.overrides)

    def _report(self) -> Step:
        return self.programs.speechllm("report", "--run", self.options.run or "runs/demo", *self.overrides)

    def _data_report(self) -> Step:
        arguments = ["--root", str(self.recipe("finetune").folder)]
        arguments += ["--checkpoint", self.options.ckpt] if self.options.ckpt else []
        arguments += ["--output", self.options.output] if self.options.output else []
        return self.programs.speechllm("data", "report", *arguments, *self.overrides)

    def submission(self) -> str:
        """Line that submits the target.

        Raises:
            UserError: the target cannot be submitted, or its GPUs would be idle.
        """
        name, parts = self.options.target, words(self.options.parts)
        cluster: Cluster = self.chosen(Cluster, arguments=tuple(words(self.options.sbatch_args)))
        if name in STAGES:
            cluster.refuse_idle_gpus(self.options.trainer)
            recipe = self.recipe(STAGES[name])
            run = str(recipe.run_folder)
            plan = self.programs.speechllm("plan", *recipe.fit_arguments).line
            return cluster.training(run, plan, self._job(name, "--run", run))
        if name == "evaluate":
            config = self._evaluated[-1].resolve().parent.parent / "config.yaml"  # of the larger model's run
            plan = self.programs.speechllm("plan", "--config", str(config)).line if config.is_file() else None
            return cluster.evaluation(plan, self._job(name))
        if name == "prepare" and parts:
            self.preparation.part(parts[0])  # refused where the corpus has none
            return cluster.parts(len(parts), self._job("data"), self._job(name))
        if name in ("prepare", "shar"):
            return cluster.preparation(name, self._job(name), self.options.array if name == "shar" else None)
        raise UserError(f"{name} is not submitted to SLURM; these are: {', '.join(SUBMITTED)}")

    def _job(self, target: str, *more: str) -> list[str]:
        """Command of a job: this command with its options, except those for sbatch."""
        given = {name: value for name, value in vars(self.options).items() if name in (*OPTIONS, *NUMBERS)}
        told = [
            f"--{name}={value}"
            for name, value in given.items()
            if name not in OF_SUBMISSION and value is not None and value != DEFAULTS.get(name)
        ]
        return [shlex.join(self.programs.program), target, *told, *more, "--", *self.overrides]

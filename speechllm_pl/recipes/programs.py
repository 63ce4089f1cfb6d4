"""Lines that start the `speechllm` command, with the environment for a trainer."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from speechllm_pl.recipes.recipe import Recipe
from speechllm_pl.recipes.steps import Step

MIMALLOC = "lib/python*/site-packages/cmeel.prefix/lib/libmimalloc.so"


@dataclass(frozen=True)
class Programs:
    """Start of programs for a trainer."""

    program: tuple[str, ...]
    """Words that start `speechllm`: its path, perhaps behind those that enter a container."""
    trainer: str = "cpu"

    @property
    def python(self) -> tuple[str, ...]:
        """Words that start the interpreter beside the command."""
        *container, command = self.program
        return (*container, os.path.join(os.path.dirname(command), "python"))

    @property
    def environment(self) -> Mapping[str, str]:
        """One thread per process: the cpu trainer starts two processes, whose threads would wait for each other."""
        wanted = {"TOKENIZERS_PARALLELISM": "false", **({"OMP_NUM_THREADS": "1"} if self.trainer == "cpu" else {})}
        return {name: value for name, value in wanted.items() if name not in os.environ}

    @cached_property
    def training_environment(self) -> Mapping[str, str]:
        """Variables of training: on CPUs another allocator, if installed, which keeps freed memory.

        glibc's takes some per cent of a step (docs/results.md) to find room among thousands of tensors of all sizes.
        """
        library = next(Path(sys.prefix).glob(MIMALLOC), None)
        if self.trainer != "cpu" or library is None:
            return self.environment
        preloaded = f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
        kept = os.environ.get("MIMALLOC_PURGE_DELAY", "-1")
        return {**self.environment, "LD_PRELOAD": preloaded, "MIMALLOC_PURGE_DELAY": kept}

    def speechllm(self, *arguments: str) -> Step:
        return Step(shlex.join([*self.program, *arguments]), environment=self.environment)

    def with_environment(self, step: Step) -> str:
        """Line of a step of `speechllm` that sets the step's environment itself, inside the container."""
        if not step.environment:
            return step.line
        container = shlex.join(self.program[:-1])
        variables = shlex.join(["env", *(f"{name}={value}" for name, value in step.environment.items())])
        return f"{container} {variables} {step.line.removeprefix(container).lstrip()}".lstrip()

    def fit(self, recipe: Recipe) -> Step:
        return replace(self.speechllm("fit", *recipe.fit_arguments), environment=self.training_environment)

    def evaluate(
        self,
        checkpoints: Sequence[Path],
        cuts: Path,
        output: str | None = None,
        trainer: str = "cpu",
        max_wer: str | None = None,
        overrides: Sequence[str] = (),
    ) -> Step:
        """Step that scores checkpoints, on every device unless the trainer has only one."""
        arguments = ["--checkpoint", f"[{','.join(map(str, checkpoints))}]", "--cuts", str(cuts)]
        arguments += ["--output", output] if output else []
        arguments += ["--devices", "auto"] if trainer != "single" else []
        arguments += ["--max_wer", max_wer] if max_wer else []
        return self.speechllm("evaluate", *arguments, *overrides)

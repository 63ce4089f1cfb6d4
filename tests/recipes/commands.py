"""What `speechllm run` would start, read back from what `--dry-run` prints."""

import shlex
from collections.abc import Callable


def lines(speechllm: Callable, *arguments: str) -> list[str]:
    """The lines that a target stands for, in order; the last is the target's own."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    done = speechllm("run", *arguments[:end], "--dry-run", *arguments[end:])
    assert done.status == 0, done.err
    return done.out.splitlines()


def last_words(speechllm: Callable, *arguments: str) -> list[str]:
    return shlex.split(lines(speechllm, *arguments)[-1])


def value(words: list[str], option: str) -> str:
    """What the last of an option's occurrences is given."""
    return words[len(words) - words[::-1].index(option)]

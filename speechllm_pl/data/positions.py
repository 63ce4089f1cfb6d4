"""Count the LLM input positions of each utterance before any audio is read.

Texts are tokenised once: the counts of a large manifest are kept beside its index, under the tokenizer's digest.
"""

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.cuts import Cuts
from speechllm_pl.data.mixture import TrainingCuts
from speechllm_pl.storage.machine_lock import machine_lock
from speechllm_pl.storage.progress import progress_bar

AT_ONCE = 10_000
"""Number of texts tokenised together."""

TO_DO = np.iinfo(np.uint32).max
"""Marks a text that has not been counted yet."""

TOKENS_PER_SECOND = 5.0
"""Tokens of text in a second of speech, as `speechllm plan` assumes."""

_in_memory: WeakKeyDictionary[Cuts, dict[str, np.ndarray]] = WeakKeyDictionary()

log = logging.getLogger(__name__)


class LlmInput(NamedTuple):
    """Lengths of the LLM's input `[instruction][audio][BOS][text]`, as stage 2 defines it.

    Attributes:
        audio: `(N,)` seconds → `(N,)` audio embeddings.
        instruction: language → tokens before the audio.
        tokens: texts → tokens of each.
        digest: digest of the tokenizer.
        limit: positions of the LLM; None if they are unbounded.
    """

    audio: Callable[[np.ndarray], np.ndarray]
    instruction: Callable[[str], int]
    tokens: Callable[[Sequence[str]], list[int]]
    digest: str
    limit: int | None = None

    def most(self, max_duration: float) -> int:
        """Positions of a batch of `max_duration` seconds of speech."""
        return int(self.audio(np.array([max_duration]))[0]) + round(TOKENS_PER_SECOND * max_duration)

    def before_bos(self, cuts: TrainingCuts, factor: float = 1.0) -> np.ndarray:
        """Positions of the longest instruction and of audio `factor` times as long as the recordings, `(N,)`."""
        longest = max(self.instruction(group.language) for group in cuts.groups)
        return self.audio(cuts.durations * np.float32(factor)) + longest

    def text(self, cuts: TrainingCuts, factor: float = 1.0) -> np.ndarray:
        """Tokens of the transcripts, `(N,)`, with room for `factor` times as many."""
        counts = cuts.of_sources(lambda source: count_tokens(source, self.tokens, self.digest))
        return counts if factor == 1 else np.ceil(counts * factor).astype(counts.dtype)


def within_limit(cuts: TrainingCuts, llm_input: LlmInput, factor: float = 1.0) -> TrainingCuts:
    """Select the cuts that fit the LLM's positions, even when augmentation lengthens them; report how many do not.

    Raises:
        UserError: none fits.
    """
    limit = llm_input.limit
    if limit is None:
        return cuts
    taken = llm_input.before_bos(cuts, factor).astype(np.int64) + 1 + llm_input.text(cuts, factor)
    fits = taken <= limit
    if fits.all():
        return cuts
    if not fits.any():
        raise UserError(
            f"every training utterance takes more than the LLM's {limit} positions, the shortest {taken.min()}: give a"
            " longer --model.bridge.stride, or cut the utterances"
        )
    rank_zero_info(
        f"left out {(~fits).sum()} of {len(cuts)} training utterances that take more than the LLM's {limit} positions,"
        f" the longest {taken.max()}: give a longer --model.bridge.stride, or cut them"
    )
    return cuts.chosen(fits)


def count_tokens(cuts: Cuts, tokens: Callable[[Sequence[str]], list[int]], digest: str) -> np.ndarray:
    """Number of tokens of each transcript, `(n,)` uint32, stored or counted now.

    Counts are stored in memory, or in the `index_folder` of cuts that have one: one process of a machine counts while
    the others wait, and an interrupted one is continued. Of several machines the first to finish counts: what others
    have mapped stays.
    """
    folder = cast(Path | None, getattr(cuts, "index_folder", None))
    if folder is None:
        known = _in_memory.setdefault(cuts, {})
        if digest not in known:
            known[digest] = _counted(cuts, tokens, np.full(len(cuts), TO_DO, np.uint32))
        return known[digest]
    path = folder / f"tokens-{digest}.npy"
    try:
        if not path.exists():
            lock = path.with_suffix(".lock")
            with machine_lock(lock) as name:
                if not path.exists():
                    _count_into(path, path.with_name(f".{path.name}.{name}"), cuts, tokens)
                lock.unlink(missing_ok=True)
        return np.asarray(np.load(path, mmap_mode="r"))
    except OSError as error:
        log.warning("counts of tokens cannot be kept in %s (%s): they are made at every start", folder, error)
        return _counted(cuts, tokens, np.full(len(cuts), TO_DO, np.uint32))


def _count_into(path: Path, partial: Path, cuts: Cuts, tokens: Callable[[Sequence[str]], list[int]]) -> None:
    _go_on_counting(partial, cuts, tokens)
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a disk without hard links, where the first to finish cannot be told for sure
        if not path.exists():
            partial.replace(path)
    partial.unlink(missing_ok=True)


def _go_on_counting(partial: Path, cuts: Cuts, tokens: Callable[[Sequence[str]], list[int]]) -> None:
    """Count into a file, from where an interrupted process has left it."""
    try:
        counts = np.load(partial, mmap_mode="r+")
    except (OSError, ValueError, EOFError):
        counts = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint32, shape=(len(cuts),))
        counts[:] = TO_DO
    _counted(cuts, tokens, counts)
    cast(np.memmap, counts).flush()


def _counted(cuts: Cuts, tokens: Callable[[Sequence[str]], list[int]], counts: np.ndarray) -> np.ndarray:
    """Fill in the missing counts, from the first to the last."""
    done = int(np.argmax(counts == TO_DO)) if (counts == TO_DO).any() else len(counts)
    texts = cuts.select(np.arange(done, len(counts))).texts()
    with progress_bar("tokens of transcripts", len(counts), initial=done, unit=" texts") as bar:
        while some := list(itertools.islice(texts, AT_ONCE)):
            counts[done : done + len(some)] = tokens(some)
            done += len(some)
            bar.update(len(some))
    return counts

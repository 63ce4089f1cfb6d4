"""Composition of training epochs from sources and languages, and the order of reading.

A group is one language of one source. Of an epoch, which lasts as long as all the data together, it gets

    share = weight of its source * hours ** alpha, divided by the sum of these over all groups,

as XLSR balances languages (arXiv 2006.13979). With alpha 1 and equal weights every utterance comes once an epoch; with
alpha 0 all groups are heard equally long. A source of weight 0.5 is heard half as often as one of weight 1 that has
the same hours.

A group is an endless stream: its utterances in one random order, then all of them in another. Epochs take one slice
of it after the other, so none of its utterances is ahead of another by more than one. A slice's length is rounded up or
down so that its expectation over seeds is exact, and that after any number of epochs not one utterance is missing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from lhotse.cut import Cut

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.cuts import Cuts
from speechllm_pl.data.epoch_plan import Draw, EpochBatches
from speechllm_pl.data.utterance import is_text_alone

PHASE, BEGINNING, ORDER = 2, 3, 4
"""Streams of random numbers: where a group's rounding begins, where in an epoch its first utterance stands, and how a
pass of a group is shuffled. (1 is the order of batches.)"""


@dataclass(frozen=True)
class TrainSource:
    """Training data of one kind.

    Attributes:
        cuts: Path of the manifest or Shar folder, relative to `data.root` unless absolute.
        weight: Weight of its hours, relative to those of the other sources.
        share: Share of an epoch that it gets, above 0 and below 1, in place of a weight; the other sources divide the
            rest among them.
    """

    cuts: str
    weight: float = 1.0
    share: float | None = None


class Group(NamedTuple):
    """One language of one source."""

    source: str
    language: str


class TrainingCuts(Sequence[Cut]):
    """Cuts of several sources, one source after the other.

    Args:
        sources: cuts of each source, by name.
        max_seconds: longer cuts are left out.

    Raises:
        UserError: a source has none that is short enough.
    """

    def __init__(self, sources: Mapping[str, Cuts], max_seconds: float = math.inf):
        self.sources = dict(sources)
        too_long = [np.flatnonzero(~(cuts.durations <= max_seconds)) for cuts in sources.values()]
        for (name, cuts), rows in zip(sources.items(), too_long, strict=True):
            if len(rows) == len(cuts):
                which = f" of data.train.{name}" if name else ""
                raise UserError(f"no training utterance{which} is at most data.max_seconds = {max_seconds} s long")
        self._leave_out(too_long)
        self.left_out = sum(map(len, too_long))

    def _leave_out(self, rows: list[np.ndarray]) -> None:
        kept = [len(cuts) - len(each) for cuts, each in zip(self.sources.values(), rows, strict=True)]
        self._starts = np.cumsum([0, *kept])  # (S + 1,) where each source begins
        self._left_out = rows  # of each source, in its order
        self._kept_before = [each - np.arange(len(each)) for each in rows]  # each of them
        self.durations = self.of_sources(lambda cuts: cuts.durations)  # (N,) float32 seconds
        self.groups, self.group_of = self._grouped()  # (N,) uint16

    def chosen(self, which: np.ndarray) -> "TrainingCuts":
        """Cuts selected by an `(N,)` mask."""
        fewer = copy(self)
        others = [np.flatnonzero(~part) for part in np.split(which, self._starts[1:-1])]
        fewer._leave_out(
            [
                np.union1d(rows, self._rows(source, self._starts[source] + more))
                for source, (rows, more) in enumerate(zip(self._left_out, others, strict=True))
            ]
        )
        fewer.left_out = self.left_out
        return fewer

    @property
    def characters(self) -> str:
        """All characters of the sources' transcripts, each once."""
        return "".join(sorted(set().union(*(cuts.characters for cuts in self.sources.values()))))

    @property
    def language_codes(self) -> list[str]:
        """Languages of the training data, sorted."""
        return sorted({group.language for group in self.groups})

    def of_sources(self, known: Callable[[Cuts], np.ndarray]) -> np.ndarray:
        """Apply `known` to each source and concatenate the values of the cuts used, `(N,)`."""
        return np.concatenate(self._kept(known))

    def _kept(self, known: Callable[[Cuts], np.ndarray]) -> list[np.ndarray]:
        """Values of the cuts used, for each source."""
        return [np.delete(known(cuts), rows) for cuts, rows in zip(self.sources.values(), self._left_out, strict=True)]

    def texts_alone(self) -> np.ndarray:
        """Whether each cut is of a source of texts without audio, whose first cut is one, `(N,)`."""
        alone = [is_text_alone(cuts[0]) for cuts in self.sources.values()]
        return np.repeat(alone, np.diff(self._starts))

    def members(self, group: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Cuts of a group in the order of the disk, `(n,)` int32, and the shard of each if there are shards."""
        members = np.flatnonzero(self.group_of == group).astype(np.int32)
        source = list(self.sources).index(self.groups[group].source)
        starts = getattr(self.sources[self.groups[group].source], "shard_starts", None)
        if starts is None:
            return members, None
        return members, np.searchsorted(starts, self._rows(source, members), side="right") - 1

    def _rows(self, source: int, positions: np.ndarray) -> np.ndarray:
        """Rows of cuts in their source."""
        positions = positions - self._starts[source]
        return positions + np.searchsorted(self._kept_before[source], positions, side="right")

    def _grouped(self) -> tuple[list[Group], np.ndarray]:
        """Groups that have cuts, and the group of each cut, `(N,)` uint16."""
        groups: list[Group] = []
        group_of = []
        for (name, cuts), languages in zip(self.sources.items(), self._kept(lambda cuts: cuts.languages), strict=True):
            present, number = np.unique(languages, return_inverse=True)
            group_of.append((number + len(groups)).astype(np.uint16))
            groups += [Group(name, cuts.language_codes[language]) for language in present]
        return groups, np.concatenate(group_of)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Cut: ...

    @overload
    def __getitem__(self, index: slice) -> list[Cut]: ...

    def __getitem__(self, index: int | slice) -> Cut | list[Cut]:
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        cuts, row = self._found(range(len(self))[index])
        return cuts[row]

    def where(self, position: int) -> str:
        """File and location of a cut, without reading anything."""
        cuts, row = self._found(position)
        return cuts.where(row)

    def _found(self, position: int) -> tuple[Cuts, int]:
        """Source of a cut, and its row there."""
        source = int(np.searchsorted(self._starts, position, side="right")) - 1
        return list(self.sources.values())[source], int(self._rows(source, np.array(position)))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what reading needs for a loader's process: it grows with what is left out, not with what is read."""
        return {name: self.__dict__[name] for name in ("sources", "_kept_before", "_starts")}


class Mixture:
    """Draws epochs from the groups of the training data.

    Args:
        cuts: cuts of all sources.
        sources: weight or share of each source, by name.
        alpha: exponent of the hours of groups, 0 to 1: 1 keeps their proportions, 0 makes them equal.
        seed: seed of the order of utterances.
        lanes: parts into which an epoch read from shards is divided; they are read side by side.
        shuffle_buffer: utterances of a lane among which reading from shards shuffles.
    """

    def __init__(
        self,
        cuts: TrainingCuts,
        sources: Mapping[str, TrainSource],
        alpha: float = 1.0,
        seed: int = 0,
        lanes: int = 1,
        shuffle_buffer: int = 0,
    ):
        self.cuts = cuts
        self.groups = cuts.groups
        self.seed = seed
        self.lanes = lanes
        self.shuffle_buffer = shuffle_buffer
        self.utterances = np.bincount(cuts.group_of, minlength=len(self.groups))  # (G,)
        self.seconds = np.bincount(cuts.group_of, weights=cuts.durations, minlength=len(self.groups))  # (G,)
        loads = np.array([sources[group.source].weight for group in self.groups]) * self.seconds**alpha
        loads = _with_shares(loads, [sources[group.source].share for group in self.groups], self.groups)
        self.shares = loads / loads.sum()  # (G,) of an epoch's seconds
        # Rounded, so that a rate of 1 is one: then each epoch has each utterance exactly once.
        self.rates = (self.shares * self.seconds.sum() / self.seconds).round(12)  # (G,) epochs of a group in an epoch
        phases = [self._random(group, 0, PHASE).random() for group in range(len(self.groups))]
        self._phases = np.array(phases)  # (G,) where in 0 … 1 the rounding begins
        self._members = [cuts.members(group) for group in range(len(self.groups))]
        self.from_shards = any(shards is not None for _, shards in self._members)

    def drawn_before(self, epoch: int) -> np.ndarray:
        """Number of utterances of each group in the epochs before this one, `(G,)`."""
        return np.floor(epoch * self.rates * self.utterances + self._phases).astype(np.int64)

    def draw(self, epoch: int) -> Draw:
        """Utterances of an epoch, a function of data, seed and epoch."""
        begin, end = self.drawn_before(epoch), self.drawn_before(epoch + 1)
        numbers = range(len(self.groups))
        utterances = np.concatenate([self._stream(group, begin[group], end[group]) for group in numbers])
        if not self.from_shards:
            return Draw(np.sort(utterances, kind="stable"))
        at = [
            (np.arange(end[group] - begin[group]) + self._random(group, epoch, BEGINNING).random())
            / (end[group] - begin[group])
            for group in numbers
        ]
        return Draw(utterances, np.concatenate(at), self.lanes, self.shuffle_buffer)

    def heard_before(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Number and seconds of each group's utterances in the epochs before this one, `(G,)` each."""
        drawn = self.drawn_before(epoch)
        passes, begun = np.divmod(drawn, self.utterances)
        seconds = passes * self.seconds
        for group in np.flatnonzero(begun).tolist():
            part = self._stream(group, drawn[group] - begun[group], drawn[group])
            seconds[group] += self.cuts.durations[part].sum(dtype=np.float64)
        return drawn, seconds

    def _stream(self, group: int, begin: int, end: int) -> np.ndarray:
        """Slice of a group's endless stream. Without shards a complete pass in it need not be shuffled."""
        members, _ = self._members[group]
        parts, at = [members[:0]], begin
        while at < end:
            number, first = divmod(at, len(members))
            stop = min(len(members), first + end - at)
            whole = stop - first == len(members) and not self.from_shards
            parts.append(members if whole else self._pass(group, number)[first:stop])
            at += stop - first
        return np.concatenate(parts)

    def _pass(self, group: int, number: int) -> np.ndarray:
        """One pass of a group's utterances: in random order, or in the order of randomly ordered shards."""
        members, shards = self._members[group]
        if shards is None:
            return self._random(group, number, ORDER).permutation(members)
        places = self._random(group, number, ORDER).permutation(int(shards.max()) + 1)
        return members[np.argsort(places[shards], kind="stable")]

    def _random(self, group: int, number: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, group, number, stream))

    def table(self) -> list[str]:
        """Table of the groups: hours, share of an epoch, and how often an epoch has all of it."""
        width = max(len(" ".join(group)) for group in self.groups)
        rows = [f"{'':<{width}}       hours   share  epochs an epoch"]
        for group, seconds, share, rate in zip(self.groups, self.seconds, self.shares, self.rates, strict=True):
            rows.append(f"{' '.join(group).strip():<{width}} {seconds / 3600:>11,.2f} {share:>7.1%} {rate:>16.3f}")
        return rows


def _with_shares(loads: np.ndarray, shares: list[float | None], groups: list[Group]) -> np.ndarray:
    """Scale the `(G,)` loads of sources that have a share of the epoch to it, and those of the others to the rest."""
    scaled, rest = loads.astype(np.float64), 1.0
    for source, share in {group.source: share for group, share in zip(groups, shares, strict=True) if share}.items():
        own = np.array([group.source == source for group in groups])
        scaled[own] *= share / loads[own].sum()
        rest -= share
    others = np.array([share is None for share in shares])
    scaled[others] *= rest / loads[others].sum() if rest < 1 else 1.0
    return scaled


class HeardCount:
    """Counts from the plan what a run has heard of each language, so that a resumed run knows it too.

    An epoch that the trainer cut short counts as whole once the next one begins.
    """

    def __init__(self, mixture: Mixture, batches: EpochBatches):
        self.batches = batches
        self._mixture = mixture
        self._utterances, self._seconds = mixture.heard_before(batches.epoch)
        self._done = 0  # batches of this epoch, over all ranks
        codes = [group.language for group in mixture.groups]
        self.languages = sorted(set(codes))
        self._language_of = np.array([self.languages.index(code) for code in codes])  # (G,)
        self._whole = self._by_language(mixture.utterances)

    def after(self, done: int) -> tuple[dict[str, float], dict[str, float]]:
        """Epochs and hours of each language after `done` batches of this epoch, over all ranks."""
        new = self.batches.plan.between(self._done, done)
        groups = self._mixture.cuts.group_of[new]
        number = len(self._mixture.groups)
        self._utterances = self._utterances + np.bincount(groups, minlength=number)
        durations = self._mixture.cuts.durations[new]
        self._seconds = self._seconds + np.bincount(groups, weights=durations, minlength=number)
        self._done = done
        epochs = (self._by_language(self._utterances) / self._whole).tolist()
        hours = (self._by_language(self._seconds) / 3600).tolist()
        return dict(zip(self.languages, epochs, strict=True)), dict(zip(self.languages, hours, strict=True))

    def _by_language(self, of_groups: np.ndarray) -> np.ndarray:
        return np.bincount(self._language_of, weights=of_groups, minlength=len(self.languages))


def sources_by_name(train: str | dict[str, str | TrainSource]) -> dict[str, TrainSource]:
    """Training sources by name.

    Raises:
        UserError: there is none, or one could never be heard.
    """
    named = train if isinstance(train, dict) else {"": train}
    sources = {name: TrainSource(source) if isinstance(source, str) else source for name, source in named.items()}
    if not sources:
        raise UserError("data.train names no source: give a manifest, or a mapping of at least one")
    for name, source in sources.items():
        if not 0 < source.weight < math.inf:
            raise UserError(f"data.train.{name} has weight {source.weight}: give one above 0, or leave it out")
        if source.share is not None and not 0 < source.share < 1:
            raise UserError(
                f"data.train.{name} has share {source.share}: give one above 0 and below 1, or leave it out"
            )
    shares = [source.share for source in sources.values()]
    if None not in shares or sum(filter(None, shares)) >= 1:
        raise UserError(f"the shares of data.train {shares} leave nothing for others: leave one of them out")
    return sources

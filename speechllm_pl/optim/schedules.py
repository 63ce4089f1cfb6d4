"""Learning-rate schedules as pure functions of the step, relative to the optimiser's rate (the peak)."""

from abc import ABC, abstractmethod
from math import cos, pi


class Schedule(ABC):
    @abstractmethod
    def factor(self, step: int, total_steps: float) -> float:
        """The factor on the peak learning rate at optimiser step `step` of `total_steps`."""


class WarmupExponential(Schedule):
    """Linear warm-up, then exponential decay to `final_ratio` of the peak (arXiv 2307.11795, training).

    Args:
        warmup_steps: Number of steps from zero to the peak.
        decay_steps: Number of steps from the peak to `final_ratio` of it; the rate stays there afterwards.
        final_ratio: Ratio of the last learning rate to the peak.
    """

    def __init__(self, warmup_steps: int = 20_000, decay_steps: int = 480_000, final_ratio: float = 0.01):
        self.warmup_steps, self.decay_steps, self.final_ratio = warmup_steps, decay_steps, final_ratio

    def factor(self, step: int, total_steps: float) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.final_ratio ** min((step - self.warmup_steps) / self.decay_steps, 1.0)


class OneCycle(Schedule):
    """Linear warm-up over a share of the run, then half a cosine down to `final_ratio` of the peak.

    Args:
        warmup_share: Share of all steps spent warming up.
        final_ratio: Ratio of the last learning rate to the peak.
    """

    def __init__(self, warmup_share: float = 0.15, final_ratio: float = 0.001):
        self.warmup_share, self.final_ratio = warmup_share, final_ratio

    def factor(self, step: int, total_steps: float) -> float:
        warmup = max(1.0, self.warmup_share * total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(1.0, total_steps - warmup), 1.0)
        return self.final_ratio + (1 - self.final_ratio) * (1 + cos(pi * done)) / 2

import math
from itertools import pairwise

import pytest
import torch

from speechllm_pl.optim.schedules import OneCycle, Schedule, WarmupExponential


def rates(schedule: Schedule, peak: float, steps: int) -> list[float]:
    """Learning rates that a torch optimizer has at each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, steps))
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_papers_joint_stage_rises_to_its_peak_and_decays_to_its_last_rate() -> None:
    """5 k steps to 5e-4, then down to 5e-6 when 250 k steps are done."""
    schedule = WarmupExponential(5_000, 245_000, 0.01)

    def rate(step: int) -> float:
        return 5e-4 * schedule.factor(step, 100_000)

    assert 0 < rate(0) < rate(2_499) < rate(4_999)
    assert rate(2_499) == pytest.approx(2.5e-4)
    assert rate(4_999) == rate(5_000) == pytest.approx(5e-4)
    assert rate(250_000) == pytest.approx(5e-6)
    assert rate(400_000) == pytest.approx(5e-6)


def test_exponential_decay_loses_the_same_share_every_step() -> None:
    found = rates(WarmupExponential(10, 40, 0.1), peak=2.0, steps=50)
    assert max(found) == pytest.approx(2.0)
    shares = [after / before for before, after in pairwise(found[10:])]
    assert shares == pytest.approx([0.1 ** (1 / 40)] * len(shares))


def test_one_cycle_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    found = rates(OneCycle(warmup_share=0.2, final_ratio=0.05), peak=3.0, steps=100)
    steps_up = [b - a for a, b in pairwise(found[:20])]
    assert steps_up == pytest.approx([steps_up[0]] * 19)
    assert found[20] == max(found) == pytest.approx(3.0)
    assert found[60] == pytest.approx(3.0 * (0.05 + 0.95 * (1 + math.cos(math.pi / 2)) / 2))
    assert found[20:] == sorted(found[20:], reverse=True)
    assert found[-1] == pytest.approx(0.15, rel=0.05)


@pytest.mark.parametrize("schedule", [WarmupExponential(0, 10), OneCycle(0.0), OneCycle(), WarmupExponential()])
@pytest.mark.parametrize("total", [1, 2, 1_000])
def test_factors_stay_between_zero_and_one_in_runs_of_any_length(schedule: Schedule, total: int) -> None:
    assert all(0 < schedule.factor(step, total) <= 1 for step in range(total + 5))

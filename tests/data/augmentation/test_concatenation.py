"""Joining of utterances: nothing is lost, languages stay apart, and batches keep their size."""

from collections import Counter

import numpy as np
import pytest
import torch
from made_utterances import RATE, batch

from speechllm_pl.core.errors import UserError
from speechllm_pl.data.augmentation import (
    Concatenate,
    augment,
)
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.utterance import Utterance
from speechllm_pl.models.encoders.conformer import halved
from speechllm_pl.models.features import FilterBank


def area(utterances: list[Utterance]) -> float:
    """Seconds with padding."""
    return len(utterances) * max(len(each.samples) for each in utterances) / RATE


@pytest.mark.parametrize("languages", ["aaaaaaaa", "aaaabbbb", "aabbccdd", "aaaaaaa", "abcdefgh"])
def test_joining_loses_nothing_and_mixes_no_languages(languages: str) -> None:
    given = batch([1.0, 0.9, 1.0, 0.8, 0.95, 1.0, 0.9, 0.85][: len(languages)], languages)
    by_id = {each.id: each for each in given}
    sizes = Counter()
    for epoch in range(20):
        rows = augment(given, [Concatenate(max_seconds=5.0, room=1.3)], seed=0, epoch=epoch)
        parts = [row.id.split("+") for row in rows]
        assert sorted(name for names in parts for name in names) == sorted(by_id)
        assert area(rows) <= 1.3 * area(given)
        for row, names in zip(rows, parts, strict=True):
            expected = [by_id[name] for name in names]
            assert {each.language for each in expected} == {row.language}
            assert row.text == " ".join(each.text for each in expected)
            assert len(row.samples) <= 5.0 * RATE
            gap = np.zeros(round(0.2 * RATE))
            joined = np.concatenate([part for each in expected for part in (gap, each.samples)][1:])
            np.testing.assert_array_equal(row.samples, joined)
        sizes.update(len(names) for names in parts)
    assert (max(sizes) > 1) == (languages != "abcdefgh")


def test_utterances_without_a_partner_do_not_make_a_batch_longer() -> None:
    """One of eight would make six rows of twice the length out of eight."""
    given = batch([1.0] * 8, "aabcdefg")
    assert augment(given, [Concatenate()], seed=0, epoch=0) == given
    roomy = augment(given, [Concatenate(room=2.5)], seed=0, epoch=0)
    assert len(roomy) == 7


def test_nothing_is_joined_beyond_the_longest_that_is_allowed() -> None:
    given = batch([1.0] * 4)
    assert augment(given, [Concatenate(max_seconds=2.1)], seed=0, epoch=0) == given  # the pause counts too
    assert len(augment(given, [Concatenate(max_seconds=2.2)], seed=0, epoch=0)) == 2


@pytest.mark.parametrize(("characters", "rows"), [(0, 5), (40, 5), (80, 6)])
def test_joined_transcripts_make_a_batch_no_larger_than_its_room(characters: int, rows: int) -> None:
    given = batch([1.3, 1.3, 2.0, 2.0, 2.0, 2.0], "aabcde")
    texts = ["x" * (characters if each.language == "a" else 80) for each in given]
    given = [each._replace(text=text) for each, text in zip(given, texts, strict=True)]
    assert len(augment(given, [Concatenate(room=1.2)], seed=0, epoch=0)) == rows


def test_ctc_has_a_frame_more_for_two_joined_utterances_than_for_the_two() -> None:
    """So one that is feasible for each is feasible for both, also where a token is repeated across the seam."""

    def frames(samples: torch.Tensor) -> torch.Tensor:
        return halved(halved(halved(FilterBank.num_frames(samples))))

    first = torch.arange(1, 16_000, 37)[:, None]
    second = torch.arange(1, 6_000, 53)[None, :]
    joined = first + round(Concatenate().pause_seconds * RATE) + second
    assert (frames(joined) >= frames(first) + frames(second) + 1).all()


def test_joined_utterances_must_not_be_longer_than_others_may_be() -> None:
    with pytest.raises(UserError, match=r"max_seconds 30.0 .*data.max_seconds = 20"):
        SpeechDataModule("anywhere", max_seconds=20, augmentations=[Concatenate()])

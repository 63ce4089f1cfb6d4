"""Noisy copies: prefixes that stand for texts as frames of audio would."""

import random
from dataclasses import replace

import pytest
import torch

from data_prep.tiny_llm.noisy_copies import IGNORED, Noise, collate, noisy_copy, perturb
from data_prep.tiny_llm.subwords import BOS_ID, EOS_ID, FILLER_ID

VOCABULARY = range(5, 50)


def without_layout(frames: list[int]) -> list[int]:
    """What CTC makes of frames: repeats merged, then fillers removed."""
    merged = [f for n, f in enumerate(frames) if n == 0 or f != frames[n - 1]]
    return [f for f in merged if f != FILLER_ID]


def test_a_copy_without_wrong_tokens_collapses_to_its_text_as_ctc_would() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = rng.choices(range(5, 9), k=rng.randint(1, 12))  # few ids, so many real repeats
        assert without_layout(noisy_copy(text, VOCABULARY, Noise(wrong=0.0), rng)) == text


def test_a_copy_has_held_tokens_and_runs_of_fillers_up_to_the_limits() -> None:
    noise = Noise(max_fillers=3, long_run=0.2, held=0.5, wrong=0.0)
    prefix = noisy_copy(list(range(5, 45)), VOCABULARY, noise, random.Random(1))
    runs = dict.fromkeys(prefix, 0)
    length = 0
    for position, token in enumerate(prefix):
        length = length + 1 if position and prefix[position - 1] == token else 1
        runs[token] = max(runs[token], length)
    assert 3 < runs.pop(FILLER_ID) <= 12
    assert set(runs.values()) == {1, 2, 3}


def test_wrong_tokens_come_at_their_rate_and_no_noise_is_the_text_itself() -> None:
    text = list(range(5, 50)) * 40
    clean = Noise().weakened(0.0)
    assert noisy_copy(text, VOCABULARY, clean, random.Random(0)) == text
    # Frames are one per token here; a token of its own value stays, the others are replaced or dropped.
    frames = noisy_copy(text, range(1000, 1001), replace(clean, wrong=0.3), random.Random(0))
    kept = sum(5 <= frame < 50 for frame in frames) / len(text)
    assert kept == pytest.approx(0.7, abs=0.04)
    assert {1000, FILLER_ID} <= set(frames)


def test_labels_are_the_text_and_eos_and_leave_out_prefix_bos_and_padding() -> None:
    ids, labels, in_prefix = collate([([7, 4, 8], [7, 8]), ([], [9])])
    assert ids.tolist() == [[7, 4, 8, BOS_ID, 7, 8, EOS_ID], [BOS_ID, 9, EOS_ID, 0, 0, 0, 0]]
    assert labels.tolist() == [[IGNORED] * 4 + [7, 8, EOS_ID], [IGNORED, 9, EOS_ID] + [IGNORED] * 4]
    assert in_prefix.tolist() == [[True] * 3 + [False] * 4, [False] * 7]


def test_perturbing_changes_the_prefix_only_and_no_noise_changes_nothing() -> None:
    table = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    ids, _, in_prefix = collate([([7, 4, 8], [7, 8]), ([5], [9])])

    def perturbed(noise: Noise) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return perturb(table[ids], ids, in_prefix, table, noise, generator)

    changed = (perturbed(Noise()) != table[ids]).any(dim=-1)
    assert torch.equal(changed, in_prefix)
    assert torch.equal(perturbed(Noise(blur=0.0, gaussian=0.0, scale=1.0)), table[ids])

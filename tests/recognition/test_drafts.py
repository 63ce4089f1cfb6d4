"""A draft is offered again from where what has been written leaves it."""

import random

import pytest
from rapidfuzz.distance import Levenshtein

from speechllm_pl.recognition.drafts import Draft

GUESS = list("the quick brown fox")


def rest_after(guess: list, written: list) -> list:
    draft = Draft(guess)
    for token in written:
        draft.write(token)
    return draft.rest


@pytest.mark.parametrize(
    ("written", "rest"),
    [
        ("", "the quick brown fox"),
        ("the quick", " brown fox"),
        ("the quack", " brown fox"),  # a token instead of another
        ("the quiick", " brown fox"),  # one too many
        ("the quck", " brown fox"),  # one too few
        ("a quick", " brown fox"),
        ("the quick brown fox", ""),
        ("the quick brown fox jumps", ""),
    ],
)
def test_the_rest_begins_after_what_was_written(written: str, rest: str) -> None:
    assert "".join(rest_after(GUESS, list(written))) == rest


@pytest.mark.parametrize("seed", range(50))
def test_no_other_beginning_of_the_guess_is_nearer_to_what_was_written(seed: int) -> None:
    chance = random.Random(seed)
    guess = [chance.randrange(4) for _ in range(chance.randrange(12))]
    written = [chance.randrange(4) for _ in range(chance.randrange(12))]
    rest = rest_after(guess, written)
    place = len(guess) - len(rest)
    distances = [Levenshtein.distance(guess[:end], written) for end in range(len(guess) + 1)]
    assert distances[place] == min(distances)


def test_an_error_costs_two_passes_at_most() -> None:
    """One where the text differs, and one where a wrong guess at the kind of error shows."""
    text, guess = list("nine hundred ninety nine"), list("nine hundrd ninetyy mine")
    draft, passes, written = Draft(guess), 0, 0
    while written < len(text):
        passes += 1
        offered = draft.rest
        accepted = 0
        while accepted < len(offered) and text[written : written + 1] == offered[accepted : accepted + 1]:
            draft.write(text[written])
            written, accepted = written + 1, accepted + 1
        if written < len(text):  # and the token that belongs there
            draft.write(text[written])
            written += 1
    assert passes <= 1 + 2 * Levenshtein.distance(guess, text)

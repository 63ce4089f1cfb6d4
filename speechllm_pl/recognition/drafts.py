"""Guess at the text, offered to the LLM token by token and realigned whenever the LLM writes something else."""

from collections.abc import Sequence


class Draft:
    """The rest of a guess after the text written so far.

    The rest begins where the edit distance between the written text and the part before it is smallest (one row of
    Levenshtein's table, updated with each token). A wrong, missing or superfluous token does not spoil the rest.

    Args:
        tokens: the guess.
    """

    def __init__(self, tokens: Sequence[int]):
        self.tokens = list(tokens)
        self._distances = list(range(len(self.tokens) + 1))  # of what has been written to each beginning of the guess
        self._last: int | None = None

    def write(self, token: int) -> None:
        """Update the alignment with the next token of the text."""
        former, row = self._distances, [self._distances[0] + 1]
        for place, guess in enumerate(self.tokens):
            row.append(min(former[place] + (guess != token), former[place + 1] + 1, row[place] + 1))
        self._distances, self._last = row, token

    @property
    def rest(self) -> list[int]:
        """The tokens to offer next."""
        return self.tokens[self._place :]

    @property
    def _place(self) -> int:
        """Number of tokens of the guess that have been written.

        Of equally near places, one after the last written token is preferred, then the later one: the token replaces
        one of the guess (a substitution) rather than preceding it (an insertion).
        """
        nearest = min(self._distances)
        places = [place for place, distance in enumerate(self._distances) if distance == nearest]
        after_last = [place for place in places if place and self.tokens[place - 1] == self._last]
        return after_last[0] if after_last else places[-1]

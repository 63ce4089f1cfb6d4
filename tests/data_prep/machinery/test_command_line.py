"""How programs end."""

import pytest

from data_prep.machinery.command_line import Refused, run
from speechllm_pl.core.errors import UserError


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Refused("--strict: t.tsv:5: silent"), 1, "error: --strict: t.tsv:5: silent"),
        (UserError("table x has no text column"), 2, "error: table x has no text column"),
        (OSError(28, "No space left on device", "out"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_program_ends_with_one_line_and_a_status(capsys, error, status, words):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == status
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1

"""Errors as users read them."""

import signal

import pytest

from speechllm_pl.core.errors import LOST, Stopped, UserError, in_one_line, printable, user_error


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_a_wrapped_error_of_the_user_is_found_in_one_line() -> None:
    inner = raised(UserError("a.wav:\n  is empty"))
    assert user_error(raised(RuntimeError("x"), raised(KeyError("y"), inner))) == "a.wav: is empty"
    assert user_error(raised(RuntimeError("x"), raised(KeyError("y")))) is None
    assert user_error(None) is None


def test_further_types_count_where_they_are_named() -> None:
    error = raised(RuntimeError("x"), raised(ImportError("no\nmodule")))
    assert user_error(error) is None
    assert user_error(error, ImportError) == "no module"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_as_shells_say(signum: int, status: int) -> None:
    stopped = Stopped(signum)
    assert stopped.status == status
    assert str(stopped) == f"stopped by {signal.Signals(signum).name}"


def test_a_message_of_many_lines_is_one_of_at_most_300_characters() -> None:
    assert in_one_line(ValueError("one\n\n  two\tthree")) == "one two three"
    assert len(in_one_line(ValueError("word " * 1000))) == 300
    assert in_one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("hidden", ["\x1b", "\n", "\x7f", "\x9f", "\u2028", "\u2029", "\u202e", "\u2069", "\ud800"])
def test_what_moves_a_cursor_or_the_direction_is_escaped_and_letters_stay(hidden: str) -> None:
    shown = printable(f"größe{hidden}漢")
    assert shown.startswith("größe\\")
    assert shown.endswith("漢")
    assert hidden not in shown
    assert shown.encode().decode("unicode_escape").endswith(hidden + "漢".encode().decode("latin-1"))


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[../third_party/gloo/transport/tcp/pair.cc] Connection closed by peer", True),
        ("NCCL communicator was aborted", True),
        ("Connection reset by peer", True),
        ("No space left on device", False),
    ],
)
def test_an_error_of_another_rank_is_told_from_this_ones(message: str, lost: bool) -> None:
    assert bool(LOST.search(message)) == lost

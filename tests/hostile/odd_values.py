"""What stands in JSON, tables and YAML where something else should, as Hypothesis draws and shrinks it."""

from typing import NamedTuple

from hypothesis import strategies as st

TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "one two",
            "\ud800",
            "a\udcffb",
            "\x00",
            "a\nb",
            "a\tb",
            '"',
            "\x1b[2J",
            "\u2028",
            "16000",
            "en",
            "NaN",
        ]
    ),
    st.text(max_size=8),
)

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, -0.5, 1e300, -1e300, 1e-300, 2**31, 2**63, 10**400, 0.1, 8000]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(-100, 100),
    st.floats(),
)

LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)

VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


class Wrapping(NamedTuple):
    """What becomes of a file's text on its way to the disk."""

    name: str
    cut: int = 0  # bytes that are missing at its end
    flipped: tuple[int, ...] = ()  # places at which a bit is


WRAPPINGS = st.one_of(
    st.just(Wrapping("utf-8")),
    st.just(Wrapping("utf-8")),
    st.builds(
        Wrapping,
        st.sampled_from(
            ["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "with NULs", "twice"]
        ),
        st.sampled_from([0, 0, 1, 2, 20]),
        st.one_of(st.just(()), st.tuples(st.integers(0, 2000))),
    ),
)


def wrapped(text: str, wrapping: Wrapping) -> bytes:
    if wrapping.name == "with NULs":
        content = text.replace(" ", "\0").encode(errors="surrogatepass")
    elif wrapping.name == "twice":
        content = 2 * text.encode(errors="surrogatepass")
    elif wrapping.name == "latin-1":
        content = text.encode("latin-1", errors="replace")
    else:
        content = text.encode(wrapping.name, errors="surrogatepass")
    return damaged(content, wrapping)


def damaged(content: bytes, wrapping: Wrapping) -> bytes:
    changed = bytearray(content[: max(0, len(content) - wrapping.cut)])
    for place in wrapping.flipped:
        if changed:
            changed[place % len(changed)] ^= 1 << place % 8
    return bytes(changed)

"""Speech of espeak-ng as a function of its text."""

from data_prep.audio.espeak import SAMPLING_RATE, Espeak


def test_speech_does_not_depend_on_what_was_said_before():
    fresh, used = Espeak(), Espeak()
    for voice in ("pl+victor", "en-us+edward", "it+Mario"):  # flutter, synthesized breath, echo
        used("ventuno", voice, words_per_minute=150, pitch=60)
    say = {"words_per_minute": 175, "pitch": 50}
    expected = fresh("vier", "de+m2", **say)
    assert used("vier", "de+m2", **say) == expected
    assert 0.2 < len(expected) / 2 / SAMPLING_RATE < 2


def test_an_unknown_voice_yields_no_samples():
    assert Espeak()("two", "xx+nobody", words_per_minute=175, pitch=50) == b""

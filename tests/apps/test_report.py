"""`speechllm report`: the utterance to align, and runs that do not exist."""

import pytest
from lhotse import MonoCut, SupervisionSegment

from speechllm_pl.apps.program_options import ReportOptions
from speechllm_pl.apps.report import report, suitable
from speechllm_pl.core.errors import UserError


def test_a_run_that_does_not_exist_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        report(ReportOptions(run=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [(["a", "a b c d e f g h i", "a b c d", "a b c d e"], "a b c d"), (["a", "a b"], "a b")],
)
def test_the_utterance_to_align_is_the_first_of_middling_length_or_else_the_longest(texts, chosen):
    segments = [SupervisionSegment("s", "r", 0, 1, text=text) for text in texts]
    cuts = [MonoCut("c", 0, 1, 0, supervisions=[segment]) for segment in segments]
    assert suitable(cuts).supervisions[0].text == chosen

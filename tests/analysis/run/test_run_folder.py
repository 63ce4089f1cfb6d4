"""What is read back from a run folder, from event files written by TensorBoard's own writer."""

import time

import pytest
from torch.utils.tensorboard import SummaryWriter

from speechllm_pl.analysis.run.run_folder import manifest_of_tests, read_events, read_run
from speechllm_pl.core.errors import UserError


def write_start(folder, steps, value, *, tag="train/loss", began=1000.0, step_seconds=2.0, suffix=""):
    """One start of a training: its own event file, with wall times that the test chooses."""
    clock = time.time
    time.time = lambda: began  # the writer stamps the head of its file with it
    try:
        with SummaryWriter(folder, filename_suffix=suffix) as writer:
            for place, step in enumerate(steps):
                writer.add_scalar(tag, value, step, walltime=began + step_seconds * (place + 1))
    finally:
        time.time = clock


def test_curves_come_back_by_tag_in_the_order_of_steps(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step in range(5):
            writer.add_scalar("train/loss", 10 - step, step)
            writer.add_scalar("val/ctc_wer", 0.5, step)

    curves, _ = read_events(tmp_path)

    assert curves["train/loss"] == [(step, 10 - step) for step in range(5)]
    assert curves["val/ctc_wer"] == [(step, 0.5) for step in range(5)]


def test_a_resumed_start_replaces_what_was_logged_after_the_checkpoint_it_began_from(tmp_path):
    write_start(tmp_path, range(10, 60, 10), 1.0, began=1000, suffix="a")
    write_start(tmp_path, range(30, 80, 10), 2.0, began=5000, suffix="b")

    curves, _ = read_events(tmp_path)

    assert curves["train/loss"] == [(10, 1), (20, 1), (30, 2), (40, 2), (50, 2), (60, 2), (70, 2)]


def test_time_is_that_of_every_start_without_the_pauses_between_them(tmp_path):
    write_start(tmp_path, range(5), 1.0, began=1000, step_seconds=2, suffix="a")
    write_start(tmp_path, range(5), 1.0, began=9000, step_seconds=3, suffix="b")

    _, seconds = read_events(tmp_path)

    assert seconds == pytest.approx(5 * 2 + 5 * 3)


def test_a_start_that_only_tested_leaves_the_training_curves_alone(tmp_path):
    write_start(tmp_path, range(5), 1.0, began=1000, step_seconds=2, suffix="a")
    write_start(tmp_path, [0], 0.1, tag="test/wer", began=9000, suffix="b")

    curves, seconds = read_events(tmp_path)

    assert len(curves["train/loss"]) == 5
    assert seconds == pytest.approx(10)


def test_a_start_that_was_killed_before_it_wrote_anything_is_passed_over(tmp_path):
    write_start(tmp_path, range(3), 1.0)
    (tmp_path / "events.out.tfevents.1.host.1.0").touch()
    curves, _ = read_events(tmp_path)
    assert len(curves["train/loss"]) == 3


def test_the_test_manifest_is_that_of_the_stages_configuration(tmp_path):
    assert manifest_of_tests(tmp_path) is None
    (tmp_path / "config.yaml").write_text("data:\n  root: data/x\n  test: t.jsonl.gz\nrun: y\n")
    assert str(manifest_of_tests(tmp_path)) == "data/x/t.jsonl.gz"


def test_a_run_that_does_not_exist_is_named_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist.*make demo"):
        read_run(tmp_path / "nowhere")


def test_an_empty_folder_has_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        read_run(tmp_path)


def test_the_folder_of_one_stage_is_told_from_that_of_a_run(tmp_path):
    write_start(tmp_path / "logs", [1], 1.0)
    with pytest.raises(UserError, match="folder above"):
        read_run(tmp_path)


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    (tmp_path / "hypotheses.jsonl").write_text('{"id": "a"}\n{"id": \n')
    with pytest.raises(UserError, match=r"hypotheses\.jsonl, line 2"):
        read_run(tmp_path)


def test_a_line_separator_in_a_transcript_ends_no_line(tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    (tmp_path / "hypotheses.jsonl").write_text('{"id": "a", "reference": "one\u2028two"}\n')
    assert [row["reference"] for row in read_run(tmp_path).hypotheses] == ["one\u2028two"]

"""What TensorBoard is told of a run's augmentations, read back from its event file."""

import io
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import soundfile
from conftest import speak, write_cut
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from speechllm_pl.data.augmentation import Augmentation, Concatenate, PerturbGain, PerturbSpeed, augment
from speechllm_pl.data.datamodule import SpeechDataModule
from speechllm_pl.data.utterance import Utterance
from speechllm_pl.training.callbacks import AugmentationSamples, augmentation_figure, some_of_one_language

SETS = {
    "1 PerturbSpeed": PerturbSpeed(factors=(0.5,), probability=0.1),
    "2 PerturbGain": PerturbGain(gain_db=(-6, -6)),
    "3 Concatenate": Concatenate(probability=0.0),
}


def events(corpus: Path, folder: Path, augmentations: list[Augmentation], steps_done: int = 0) -> EventAccumulator:
    logger = TensorBoardLogger(folder, name="", version="logs")
    trainer = L.Trainer(accelerator="cpu", logger=logger, enable_checkpointing=False)
    trainer.datamodule = SpeechDataModule(str(corpus), augmentations=augmentations)  # type: ignore[attr-defined]
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = steps_done
    AugmentationSamples().on_train_start(trainer, BoringModel())
    logger.experiment.close()
    found = EventAccumulator(str(folder / "logs"), {"audio": 0, "images": 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def found(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    return events(corpus, tmp_path_factory.mktemp("run"), list(SETS.values()))


def heard(found: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = found.Audio(tag)
    samples, rate = soundfile.read(io.BytesIO(event.encoded_audio_string))
    assert rate == 16_000
    return samples


def test_each_augmentation_is_seen_and_heard_whatever_its_probability(found: EventAccumulator, corpus: Path) -> None:
    names = [*SETS, "4 all"]
    assert found.Tags()["images"] == [f"augmentation/{name}" for name in names]
    originals = some_of_one_language(SpeechDataModule(str(corpus)).cuts("train"))
    assert len({each.language for each in originals}) == 1
    for number, original in enumerate(originals):
        before = heard(found, f"augmentation/0 none/{number}")
        np.testing.assert_allclose(before, original.samples, atol=1e-4)
        assert len(heard(found, f"augmentation/1 PerturbSpeed/{number}")) == 2 * len(before)
        softer = heard(found, f"augmentation/2 PerturbGain/{number}")
        np.testing.assert_allclose(softer, before * 10 ** (-6 / 20), atol=1e-4)
    joined = heard(found, "augmentation/3 Concatenate/0")
    assert len(joined) == sum(len(each.samples) for each in originals) + 3_200


def test_all_together_is_what_the_first_epoch_has(found: EventAccumulator, corpus: Path) -> None:
    originals = some_of_one_language(SpeechDataModule(str(corpus)).cuts("train"))
    for number, expected in enumerate(augment(originals, list(SETS.values()), seed=0, epoch=0)):
        np.testing.assert_allclose(heard(found, f"augmentation/4 all/{number}"), expected.samples, atol=1e-4)


def test_the_figure_says_what_was_drawn_and_shows_it() -> None:
    time = np.arange(16_000) / 16_000
    before = [Utterance("tone", (0.3 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32), "text", "en")]
    before.append(before[0]._replace(id="short", samples=before[0].samples[:3_000]))
    figure = augmentation_figure(before, augment(before, [PerturbSpeed(factors=(0.5,))], 0, 0))
    left, right = figure.axes[:2]
    assert [panel.get_title() for panel in figure.axes] == ["tone", "speed 0.5", "short", "speed 0.5"]
    assert left.get_xlim() == right.get_xlim() == (0, 2.0)  # the last picture drawn would set it otherwise
    for panel, hertz, seconds in ((left, 1000, 1.0), (right, 500, 2.0)):
        (image,) = panel.images
        shown = np.asarray(image.get_array())  # (bins, frames)
        assert shown.mean(axis=1).argmax() * 16_000 / 512 == pytest.approx(hertz, abs=16)
        assert image.get_extent()[1] == pytest.approx(seconds, abs=0.05)
    plt.close(figure)


def test_a_resumed_run_and_one_without_augmentation_show_nothing(corpus: Path, tmp_path: Path) -> None:
    for name, augmentations, done in (("resumed", [PerturbGain()], 5), ("plain", [], 0)):
        tags = events(corpus, tmp_path / name, augmentations, done).Tags()
        assert tags["images"] == tags["audio"] == []


def test_recordings_that_cannot_be_read_are_passed_over(corpus: Path, tmp_path: Path) -> None:
    cuts = list(SpeechDataModule(str(corpus)).cuts("train"))
    broken = write_cut(tmp_path, "broken", speak("one"), "one", "en")
    (tmp_path / "broken.wav").unlink()
    assert {each.id for each in some_of_one_language([broken, *cuts])} == {"train-0", "train-2"}
    assert some_of_one_language([broken]) == []

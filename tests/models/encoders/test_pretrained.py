"""What is trained of a pretrained encoder, what is saved, and what stands above it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from random_encoders import SAVED
from safetensors.torch import load_file, save_file
from test_whisper import noise

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.encoders.pretrained import Adapt, PretrainedEncoderConfig
from speechllm_pl.models.features import SpecAugmentConfig

HIDES = SpecAugmentConfig(freq_masks=1, freq_width=60, time_masks=1, time_width=60, time_share=1.0)


@pytest.fixture(scope="module", params=SAVED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED[request.param](tmp_path_factory.mktemp(request.param))


def build(folder: Path, adapt: Adapt = "frozen", **settings) -> CtcModel:
    torch.manual_seed(0)
    return PretrainedEncoderConfig(name=str(folder), adapt=adapt, dropout=0.0, **settings).build(HIDES, 20)


def frozen(model: CtcModel, waveforms: Padded) -> Padded:
    found = model.frozen_frames(waveforms)
    assert found is not None
    return found


def loss(model: CtcModel) -> torch.Tensor:
    targets = Padded(torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([3, 2]))
    return model.losses(noise([16_000, 9_000]), targets)["ctc_loss"].term.total


def trained(model: CtcModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("adapt", ["frozen", "lora", "all"])
def test_what_is_trained_has_a_gradient_and_is_what_checkpoints_hold(folder: Path, adapt: Adapt) -> None:
    model = build(folder, adapt)
    loss(model).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == trained(model)
    inside = {name for name in with_gradient if name.startswith("pretrained.")}
    assert bool(inside) == (adapt != "frozen")
    assert all("lora_" in name for name in inside) == (adapt != "all")
    saved = {name for name in model.state_dict() if model.is_saved(name)}
    assert trained(model) <= saved
    if adapt != "all":
        assert saved == trained(model)


@torch.no_grad()  # with gradients torch attends with another kernel
def test_lora_begins_with_the_pretrained_frames_and_changes_them(folder: Path) -> None:
    waveforms, as_it_is = noise([16_000, 9_000]), torch.nn.Identity()
    frozen, adapted = (build(folder, adapt).eval().get_submodule("pretrained") for adapt in ("frozen", "lora"))
    assert torch.equal(frozen(waveforms, as_it_is).values, adapted(waveforms, as_it_is).values)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.equal(frozen(waveforms, as_it_is).values, adapted(waveforms, as_it_is).values)


def test_frozen_frames_do_not_vary_in_training_and_are_all_that_the_rest_reads(folder: Path) -> None:
    model, waveforms = build(folder).train(), noise([16_000, 9_000])
    first, second = model.frozen_frames(waveforms), model.frozen_frames(waveforms)
    assert first is not None
    assert second is not None
    assert torch.equal(first.values, second.values)
    assert not first.values.requires_grad
    assert not torch.equal(model.encode(first).values, model.encode(first).values)  # SpecAugment
    model.eval()
    assert torch.equal(model.encode(first).values, model.encode(waveforms).values)


@pytest.mark.parametrize("adapt", ["lora", "all"])
def test_a_trained_encoder_has_no_frozen_frames_and_its_input_is_augmented(folder: Path, adapt: Adapt) -> None:
    model, waveforms = build(folder, adapt).train(), noise([16_000, 9_000])
    assert model.frozen_frames(waveforms) is None
    assert not torch.equal(model.encode(waveforms).values, model.encode(waveforms).values)


@torch.no_grad()
def test_without_dropout_frames_in_training_are_those_in_evaluation(folder: Path) -> None:
    family, as_it_is = build(folder, "all").get_submodule("pretrained"), torch.nn.Identity()
    waveforms = noise([16_000, 9_000])
    expected = family.eval()(waveforms, as_it_is)
    for _ in range(2):
        torch.testing.assert_close(family.train()(waveforms, as_it_is).values, expected.values)


def test_frozen_frames_are_known_by_their_weights_and_features(folder: Path, tmp_path: Path) -> None:
    waveforms, model, other_head = noise([16_000, 9_000]), build(folder), build(folder, head="new", stride=3)
    for one, other in zip(frozen(model, waveforms), frozen(other_head, waveforms), strict=True):
        assert torch.equal(one, other)
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert model.frozen_digest == other_head.frozen_digest == build(moved).frozen_digest != ""
    assert build(folder, "lora").frozen_digest == build(folder, "all").frozen_digest == ""
    extractor = moved / "preprocessor_config.json"
    if extractor.exists():
        settings = json.loads(extractor.read_text())
        if "do_normalize" in settings:
            extractor.write_text(json.dumps(settings | {"do_normalize": not settings["do_normalize"]}))
            assert build(moved).frozen_digest != model.frozen_digest
            extractor.write_text(json.dumps(settings))
    content = bytearray((moved / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (moved / "model.safetensors").write_bytes(content)
    assert build(moved).frozen_digest != model.frozen_digest


def test_frozen_frames_of_another_layer_in_the_middle_of_the_weights_are_others(tmp_path: Path) -> None:
    folder = SAVED["whisper"](tmp_path / "whisper")
    weights = load_file(folder / "model.safetensors")
    (middle, *_) = [name for name in weights if name.endswith("layers.0.fc1.weight") and "encoder" in name]
    far = {name: torch.zeros(2**20).half() for name in ("a", "z")}  # two MiB on either side
    digests = set()
    for change in (0.0, 1.0):
        save_file({**weights, **far, middle: weights[middle] + change}, folder / "model.safetensors", {"format": "pt"})
        digests.add(build(folder).frozen_digest)
    assert len(digests) == 2


def test_modes_are_right_from_the_beginning(folder: Path) -> None:
    assert not any(module.training for module in build(folder).get_submodule("pretrained").modules())
    assert all(module.training for module in build(folder, "all").modules())


def test_pretrained_parameters_have_a_learning_rate_of_their_own(folder: Path) -> None:
    model = build(folder, "all", lr_factor=0.25)
    factors = {id(p): factor for p, factor in model.parameter_lr_factors()}
    named = {name: factors.get(id(p), 1.0) for name, p in model.named_parameters() if p.requires_grad}
    assert all((factor == 0.25) == name.startswith("pretrained.") for name, factor in named.items())
    assert not list(build(folder).parameter_lr_factors())


def test_frames_are_stacked_below_a_new_head(folder: Path) -> None:
    waveforms = noise([16_000, 9_000, 300])
    single, triple = (build(folder, stride=stride, head="new").eval() for stride in (1, 3))
    assert triple.seconds_per_frame == pytest.approx(3 * single.seconds_per_frame)
    frames = single.encode(waveforms).lengths
    assert triple.encode(waveforms).lengths.tolist() == [-(-count // 3) for count in frames.tolist()]


def test_an_encoder_without_a_head_has_no_own_one_and_an_unknown_kind_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="lora_r"):
        build(folder, "lora", lora_r=0)
    with pytest.raises(UserError, match=r"encoder folder .*nosuch does not exist: .*ENCODER="):
        build(tmp_path / "nosuch")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="is of model type llama, and these are known: whisper"):
        build(tmp_path)

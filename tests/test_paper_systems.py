"""Every system of the paper (arXiv 2307.11795) is a composition of `conf/`, and has the sizes that the paper's has.

The commands are those that `make` prints, parsed by the command's own parser; models are built on the meta device,
LLMs from the shapes in `conf/llm/`. What is compared with comes from the paper's table or from formulas written here.
"""

import itertools
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from forwarded import lines
from lightning.pytorch.cli import LightningCLI
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from speechllm_pl.apps.main import main
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.llm import SpecialTokens
from speechllm_pl.models.speech_llm import SpeechLLM

ROOT = Path(__file__).parents[1]
ENCODERS = {"paper": 72, "paper-24": 96, "paper-36": 142}  # millions of parameters
STRIDES = (1, 2, 3, 6, 12)  # 80 to 960 ms
RANKS = (0, 8, 16, 32)
MASKINGS = (0, 0.125, 0.25, 0.375, 0.5)
BLOOMS = {"bloom-560m": 560, "bloom-1b7": 1_700, "bloom-7b1": 7_100}  # millions, by their names
LLMS = ("llama-7b", *BLOOMS)


class System(NamedTuple):
    """Variables of make, as the paper's tables vary them; the rest is the configuration's."""

    size: str = "paper"
    stride: int = 3
    rank: int = 8
    masking: float = 0
    llm: str = "llama-7b"


def command(target: str, *variables: str) -> list[str]:
    """The arguments of the program that make would run last, as if the corpus were there."""
    return shlex.split(lines(f"make {target} DATA=mls {' '.join(variables)}")[-1])[1:]


def finetune(system: System, trainer: str = "ddp") -> list[str]:
    size, stride, rank, masking, llm = system
    variables = (f"STRIDE={stride}", f"LORA_R={rank}", f"MASKING={masking}", f"LLM={llm}", f"TRAINER={trainer}")
    return command("finetune", f"SIZE={size}", *variables)


def papers(system: System) -> list[str]:
    """`finetune` without what keeps the CTC head in tune: the paper has none in its second stage."""
    return [*finetune(system), "--model.ctc_weight", "0"]


@pytest.fixture(scope="module")
def parse() -> Iterator[Callable[[list[str]], Any]]:
    """Arguments of `fit` → what the command's own parser makes of them, built once."""
    built = []

    class Built(Exception):
        pass

    def stop(_: LightningCLI, parser: Any, arguments: Any) -> None:
        built.append(parser)
        raise Built

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(LightningCLI, "parse_arguments", stop)
        patch.setattr(sys, "argv", ["speechllm", "fit"])
        with pytest.raises(Built):
            main()
        yield lambda arguments: built[0].parse_args(arguments).fit


# sizes


@cache
def ctc_classes() -> int:
    """Pieces of the tokenizer that make trains at the paper's sizes, and the blank."""
    arguments = command("tokenizer", "SIZE=paper", "ROOT=data/new", "CORPUS=x")
    return int(arguments[arguments.index("--vocab-size") + 1]) + 1


def shape(llm: str) -> Any:
    return AutoConfig.from_pretrained(ROOT / "conf" / "llm" / llm)


def built(config: Any, llm: str, monkeypatch: pytest.MonkeyPatch) -> SpeechLLM:
    """The system of a parsed configuration, without storage; as LlmFinetuning builds it."""
    # The filter bank has no parameters, and torchaudio cannot build it on the meta device.
    monkeypatch.setattr("speechllm_pl.models.encoders.conformer.FilterBank", lambda num_bins: nn.Identity())
    chosen = config.model.init_args
    with torch.device("meta"):
        frozen = AutoModelForCausalLM.from_config(shape(llm), dtype=getattr(torch, chosen.llm_dtype))
        described = SpeechLlmConfig.from_record(chosen.as_dict())
        speech = described.build_speech(ctc_classes())
        return SpeechLLM(described, speech, frozen.requires_grad_(False), SpecialTokens(1, 2, 0))


def count(module: nn.Module, trained: bool = False) -> float:
    """Millions of parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained) / 1e6


def lora_parameters(llm: str, rank: int) -> float:
    """Millions: rank × (inputs + outputs) of each projection of self-attention, `d` wide all of them."""
    config = shape(llm)
    d, layers = config.hidden_size, config.num_hidden_layers
    fused = (d + 3 * d) + (d + d)  # BLOOM: queries, keys and values in one; output
    separate = 4 * (d + d)
    return rank * layers * (separate if llm == "llama-7b" else fused) / 1e6


def trained_parameters(system: System) -> float:
    """Millions: encoder, projector and LoRA."""
    width = shape(system.llm).hidden_size
    projector = (512 * system.stride * width + width) / 1e6
    return ENCODERS[system.size] + projector + lora_parameters(system.llm, system.rank)


def llm_parameters(llm: str) -> float:
    """Millions, from the shape."""
    config = shape(llm)
    d, layers, words = config.hidden_size, config.num_hidden_layers, config.vocab_size
    if llm == "llama-7b":  # no biases; embeddings and LM head apart; three matrices of the gated feed-forward
        return (2 * words * d + layers * (4 * d**2 + 3 * d * config.intermediate_size + 2 * d) + d) / 1e6
    # One table for embeddings and LM head; 3d + d in attention and 4d + 4d beside it, with biases; norms with both.
    return (words * d + layers * (12 * d**2 + 13 * d) + 4 * d) / 1e6


TRAINED = {
    System(stride=1): 82.5,
    System(stride=2): 84.6,
    System(stride=3): 86.7,
    System(stride=6): 93.0,
    System(stride=12): 105.6,
    System(rank=0): 78.3,
    System(rank=16): 95.1,
    System(rank=32): 111.8,
}
"""Millions of trained parameters with LLaMA-7B: encoder, projector and LoRA."""


@pytest.mark.parametrize("system", TRAINED, ids=str)
def test_llama_7b_trains_as_many_parameters_as_the_papers(parse, monkeypatch, system: System) -> None:
    model = built(parse(papers(system)), system.llm, monkeypatch)
    assert count(model, trained=True) == pytest.approx(TRAINED[system], rel=0.02)
    assert count(model) == pytest.approx(TRAINED[system] + llm_parameters(system.llm), rel=0.02)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and "llm." not in name}
    assert frozen == {"speech.head.weight", "speech.head.bias"}
    assert count(model.speech.head) == pytest.approx((512 + 1) * (1547 + 1) / 1e6)
    in_llm = {name for name, p in model.llm.named_parameters() if p.requires_grad}
    assert in_llm == {name for name, _ in model.llm.named_parameters() if "lora_" in name}


def test_the_ctc_head_is_trained_beside_what_the_paper_trains(parse, monkeypatch) -> None:
    system = System()
    model = built(parse(finetune(system)), system.llm, monkeypatch)
    assert not [name for name, p in model.named_parameters() if not p.requires_grad and "llm." not in name]
    head = (512 + 1) * (1547 + 1) / 1e6
    assert count(model, trained=True) - head == pytest.approx(TRAINED[system], rel=0.02)


@pytest.mark.parametrize("size", ENCODERS)
def test_encoders_have_the_papers_sizes(parse, monkeypatch, size: str) -> None:
    system = System(size=size)
    model = built(parse(papers(system)), system.llm, monkeypatch)
    assert count(model.speech.encoder, trained=True) == pytest.approx(ENCODERS[size], rel=0.02)
    assert count(model, trained=True) == pytest.approx(trained_parameters(system), rel=0.02)


@pytest.mark.parametrize("llm", LLMS)
def test_llms_have_their_nominal_sizes_and_lora_the_formulas(parse, monkeypatch, llm: str) -> None:
    system = System(llm=llm)
    model = built(parse(papers(system)), llm, monkeypatch)
    lora = lora_parameters(llm, system.rank)
    assert count(model.llm, trained=True) == pytest.approx(lora, rel=1e-6)
    assert count(model.llm) - lora == pytest.approx(llm_parameters(llm), rel=1e-6)
    assert count(model, trained=True) == pytest.approx(trained_parameters(system), rel=0.02)
    nominal = {"llama-7b": 6_738, **BLOOMS}[llm]
    assert llm_parameters(llm) == pytest.approx(nominal, rel=0.02)
    assert lora_parameters("llama-7b", 8) == pytest.approx(8.39, rel=0.002)
    kinds = {(p.dtype, p.requires_grad) for p in model.llm.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}  # frozen in bf16, trained in float32


# compositions


def says(config: Any, system: System) -> None:
    """The parsed configuration is that of the system, and LLM and encoder come from their files."""
    chosen = config.model.init_args
    found = (chosen.bridge.init_args.stride, chosen.lora_r, chosen.text_masking)
    assert found == (system.stride, system.rank, system.masking)
    for part, name in (("size", system.size), ("llm", system.llm)):
        for key, value in yaml.safe_load((ROOT / "conf" / part / f"{name}.yaml").read_text())["model"][
            "init_args"
        ].items():
            found = getattr(chosen, key)
            found = getattr(found, "init_args", found)  # of a class that is chosen
            assert value == ({k: found[k] for k in value} if isinstance(value, dict) else found)


def test_a_sample_of_the_papers_systems_parses_with_every_value_of_each_part(parse) -> None:
    sizes, seen = list(ENCODERS), set()
    for i, j in itertools.product(range(len(STRIDES)), range(len(MASKINGS))):
        system = System(sizes[(i + j) % 3], STRIDES[i], RANKS[(i + 2 * j) % 4], MASKINGS[j], LLMS[(i + 3 * j) % 4])
        says(parse(finetune(system)), system)
        seen |= set(enumerate(system))
    assert len(seen) == sum(map(len, (ENCODERS, STRIDES, RANKS, MASKINGS, LLMS)))


@pytest.mark.long
@pytest.mark.parametrize("size", ENCODERS)
@pytest.mark.parametrize("llm", LLMS)
def test_every_system_of_the_paper_parses(parse, size: str, llm: str) -> None:
    for stride, rank, masking in itertools.product(STRIDES, RANKS, MASKINGS):
        system = System(size, stride, rank, masking, llm)
        says(parse(finetune(system)), system)


@pytest.mark.parametrize("trainer", sorted(path.stem for path in (ROOT / "conf" / "trainer").glob("*.yaml")))
def test_both_runs_have_the_papers_batches_and_schedules_with_every_trainer(parse, trainer: str) -> None:
    stages = {
        "pretrain-ctc": (500, 1e-3, 20_000, 500_000),
        "finetune": (80, 5e-4, 5_000, 250_000),
    }  # seconds of audio a device; peak learning rate; steps of warm-up, and to the end of the schedule
    for target, (seconds, peak, warmup, end) in stages.items():
        chosen = ("LLM=llama-7b",) if target == "finetune" else ()
        config = parse(command(target, "SIZE=paper", f"TRAINER={trainer}", *chosen))
        assert config.data.max_duration == seconds
        assert config.data.root == "data/mls"
        optimizer, schedule = config.model.init_args.optimizer, config.model.init_args.schedule.init_args
        assert optimizer.class_path == "torch.optim.Adam"
        assert (optimizer.init_args.lr, list(optimizer.init_args.betas)) == (peak, [0.9, 0.98])
        assert (schedule.warmup_steps, schedule.warmup_steps + schedule.decay_steps) == (warmup, end)
        if target == "finetune":
            assert peak * schedule.final_ratio == pytest.approx(5e-6)

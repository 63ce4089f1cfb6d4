import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from speechllm_pl.core.errors import UserError
from speechllm_pl.models.llm import LlmTokenizer, add_lora, load_llm, merge_lora, merged_lora, most_positions


def test_with_lora_nothing_but_lora_is_trained(llm_folder: Path) -> None:
    llm = add_lora(load_llm(str(llm_folder)), r=2, alpha=4, dropout=0.0)
    trained = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in llm.named_parameters() if ".lora_" in name}


def test_fresh_lora_leaves_the_llm_as_it_was(llm_folder: Path) -> None:
    ids = torch.tensor([[1, 5, 7, 4]])
    plain = load_llm(str(llm_folder))(ids).logits
    lora = add_lora(load_llm(str(llm_folder)), r=2, alpha=4, dropout=0.0)(input_ids=ids).logits
    assert torch.equal(plain, lora)


def test_an_unknown_architecture_is_refused_with_its_linear_layers() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing, self.reading = nn.Linear(2, 2), nn.Linear(2, 2)

    with pytest.raises(UserError, match=r"Strange.*mixing, reading.*lora_r 0"):
        add_lora(Strange(), r=2, alpha=4, dropout=0.0)


def test_a_loaded_llm_is_frozen(llm_folder: Path) -> None:
    assert not any(parameter.requires_grad for parameter in load_llm(str(llm_folder)).parameters())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(max_position_embeddings=24), 24),
        (transformers.GPT2Config(n_positions=25), 25),
        (transformers.GPTNeoXConfig(max_position_embeddings=26), 26),
        (transformers.FalconConfig(max_position_embeddings=27), 27),
        (transformers.FalconConfig(max_position_embeddings=27, alibi=True), None),
        (transformers.BloomConfig(), None),
        (transformers.MptConfig(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions_are_bounded_as_the_llms_shape_says(
    config: transformers.PretrainedConfig, expected: int | None
) -> None:
    assert most_positions(config) == expected


def test_a_missing_or_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_llm(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="neither a folder nor a hub model"):
        load_llm(str(tmp_path))
    with pytest.raises(UserError, match="nowhere does not exist"):
        LlmTokenizer(str(tmp_path / "nowhere"))


def test_default_devices_hold_for_all_constructors_after_loading(llm_folder: Path) -> None:
    script = f"""
import torch
from speechllm_pl.models.llm import load_llm
load_llm({str(llm_folder)!r})
with torch.device("meta"):
    print(torch.linspace(0, 1, 3).device, torch.zeros(1).device)
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["meta", "meta"]


def test_texts_are_encoded_without_special_tokens_and_decoded_back(llm_folder: Path) -> None:
    tokenizer = LlmTokenizer(str(llm_folder))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    encoded = tokenizer.encode(["one eight", ""])
    assert encoded == [[4, 11], []]
    assert tokenizer.decode([1, 4, 11, 2, 0]) == "one eight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_is_merged_for_a_while_and_every_bit_is_as_before_then(llm_folder: Path, dtype: torch.dtype) -> None:
    """bf16 sums do not come back: some of these weights change by adding and subtracting what LoRA learnt."""

    def adapted() -> nn.Module:
        torch.manual_seed(0)
        llm = add_lora(load_llm(str(llm_folder), dtype), r=2, alpha=4, dropout=0.0)
        for name, parameter in llm.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        return llm.eval()

    llm, ids = adapted(), torch.tensor([[1, 5, 7, 4]])
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    trained = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        apart, for_good = llm(input_ids=ids).logits, merge_lora(adapted())(input_ids=ids).logits
        for _ in range(2):
            with merged_lora(llm):
                merged = llm(input_ids=ids).logits
            assert torch.equal(merged, for_good)
            torch.testing.assert_close(merged, apart, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.2)
            assert torch.equal(llm(input_ids=ids).logits, apart)
        with pytest.raises(KeyError), merged_lora(llm):
            raise KeyError
    after = llm.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name for name, parameter in llm.named_parameters() if parameter.requires_grad} == trained
    loss = llm(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in llm.named_parameters() if "lora_A" in n)

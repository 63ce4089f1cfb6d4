"""Hugging Face folder of the LLM: made once for the same texts and settings, and complete when it has its name."""

import functools
import hashlib
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data_prep.tiny_llm.copy_scores import copy_scores
from data_prep.tiny_llm.noisy_copies import Noise
from data_prep.tiny_llm.pretraining import LlmRecipe, batches, make_model, pretrain
from data_prep.tiny_llm.subwords import SPECIAL_TOKENS, encode, train_tokenizer
from data_prep.tiny_llm.text_pool import TextPool, hold_out
from speechllm_pl.core.errors import UserError


def build(
    texts: dict[str, list[str]],
    output: Path,
    *,
    dev: dict[str, list[str]] | None = None,
    recipe: LlmRecipe,
    evaluated: int = 256,
) -> dict[str, Any]:
    """Pretrain an LLM on texts, write it into the folder `output`, and return what `pretraining.json` records.

    A folder of the same settings and texts is left as it is. The folder appears under its name only when it
    is complete.

    Args:
        texts: training transcripts by language.
        dev: texts by language to measure copying on, none of which is trained on; 2 % of `texts` if None.
        evaluated: the largest number of held-out texts measured.

    Raises:
        UserError: `output` exists and was not made by this program.
    """
    settings = {**vars(recipe), "texts": _digest(texts), "dev_texts": _digest(dev or {})}
    if (record := _existing_record(output)) and record["settings"] == settings:
        print(f"{output}: already there, with the same settings and texts; nothing to do")
        return record

    started = time.monotonic()
    rng = random.Random(recipe.seed)
    held_out = hold_out(texts, dev, rng)
    pool = TextPool(texts, set(held_out))
    tokenizer = train_tokenizer((t for of in texts.values() for t in of), recipe.vocabulary_size)
    model = make_model(recipe, len(tokenizer))
    noise = Noise()
    vocabulary = range(len(SPECIAL_TOKENS), len(tokenizer))
    of_word = functools.cache(functools.partial(encode, tokenizer))  # no token reaches beyond a word
    data = batches(pool, lambda text: [i for word in text.split() for i in of_word(word)], vocabulary, recipe, noise)
    losses = pretrain(model, data, recipe)
    seconds = time.monotonic() - started

    sample = rng.sample(held_out, min(evaluated, len(held_out)))
    held, wrong = Noise(wrong=0.0), noise
    record = {
        "settings": settings,
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "seconds": round(seconds, 1),
        "loss": {"first": losses[0], "last": sum(losses[-10:]) / len(losses[-10:])},
        "held_out_texts": len(sample),
        "noisy_copy": copy_scores(model, tokenizer, sample, held, recipe.seed),
        "noisy_copy_with_wrong_tokens": copy_scores(model, tokenizer, sample, wrong, recipe.seed),
    }
    _write(output, model, tokenizer, record)
    return record


def _digest(texts: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]


def _existing_record(output: Path) -> dict[str, Any] | None:
    if not output.exists():
        return None
    try:
        return json.loads((output / "pretraining.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{output}: exists but was not made by tiny_llm; remove it or choose another") from None


def _write(output: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any]) -> None:
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    if output.exists():
        shutil.rmtree(output)
    partial.rename(output)

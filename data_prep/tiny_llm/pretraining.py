"""LLaMA of the embedded default: its settings, its batches and its training."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from data_prep.tiny_llm.noisy_copies import IGNORED, Noise, Sequences, collate, noisy_copy, perturb
from data_prep.tiny_llm.subwords import BOS_ID, EOS_ID, FILLER_ID, PAD_ID
from data_prep.tiny_llm.text_pool import TextPool
from speechllm_pl.core.bf16 import bf16_is_faster
from speechllm_pl.optim.muon_adamw import MuonAdamW, grouped
from speechllm_pl.storage.progress import progress_bar

DRAWN_TOGETHER = 512  # sequences sorted by length at a time: enough for batches with little padding


@dataclass(frozen=True)
class LlmRecipe:
    """Settings that, besides the texts, decide the result."""

    steps: int = 1300
    batch_tokens: int = 1600
    """Tokens of a batch, padding included."""
    learning_rate: float = 4e-3
    plain: float = 0.05
    """Share of sequences without a prefix."""
    easy: float = 0.7
    """Share of the steps over which texts grow to full length and prefixes to full noise."""
    vocabulary_size: int = 384
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 4
    heads: int = 4
    initializer_range: float = 0.06
    tied: bool = True
    """Whether the output layer is the embedding table."""
    precision: str = "auto"
    """Of matrix products in training: bf16, fp32, or auto, the faster one here. The weights are kept in fp32."""
    seed: int = 0


def make_model(recipe: LlmRecipe, vocabulary_size: int) -> LlamaForCausalLM:
    """Make a LLaMA with random weights, drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        initializer_range=recipe.initializer_range,
        max_position_embeddings=2048,
        tie_word_embeddings=recipe.tied,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    config.filler_token_id = FILLER_ID  # not LLaMA's own, but saved in config.json like the rest
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD_ID, bos_token_id=BOS_ID, eos_token_id=EOS_ID, do_sample=False
    )
    return model


def batches(
    pool: TextPool, encode_text: Callable[[str], list[int]], vocabulary: range, recipe: LlmRecipe, noise: Noise
) -> Iterator[tuple[Sequences, Noise]]:
    """Iterate over one batch a step, of sequences of similar length, with the noise to apply to its embeddings."""
    rng = random.Random(recipe.seed)
    step = 0
    while step < recipe.steps:
        progress = min(1.0, step / max(1.0, recipe.easy * recipe.steps))
        current = noise.weakened(progress)
        max_words = min(pool.longest, 2 + math.ceil(progress * pool.longest))
        pairs = []
        for _ in range(DRAWN_TOGETHER):
            text = encode_text(pool.draw(rng, max_words))
            is_plain = rng.random() < recipe.plain
            pairs.append(([] if is_plain else noisy_copy(text, vocabulary, current, rng), text))
        groups = _groups_of_similar_length(pairs, recipe.batch_tokens)
        rng.shuffle(groups)
        for group in groups[: recipe.steps - step]:
            yield collate(group), current
            step += 1


def _groups_of_similar_length(
    pairs: list[tuple[list[int], list[int]]], batch_tokens: int
) -> list[list[tuple[list[int], list[int]]]]:
    def length(pair: tuple[list[int], list[int]]) -> int:
        return len(pair[0]) + len(pair[1]) + 2  # BOS and EOS

    groups: list[list[tuple[list[int], list[int]]]] = [[]]
    for pair in sorted(pairs, key=length):  # the newest is the longest, so it decides the padded length
        if groups[-1] and (len(groups[-1]) + 1) * length(pair) > batch_tokens:
            groups.append([])
        groups[-1].append(pair)
    return groups


def pretrain(model: LlamaForCausalLM, data: Iterable[tuple[Sequences, Noise]], recipe: LlmRecipe) -> list[float]:
    """Train `model` in place on the batches; return the loss of every step (nats per token with loss)."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = MuonAdamW(grouped(model.parameters(), model.model.layers), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    in_bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and bf16_is_faster(model.device))
    torch.backends.cuda.enable_flash_sdp(not in_bf16)  # its bf16 backward is slow on CPUs, which this covers too
    losses: list[float] = []
    model.train()
    progress = progress_bar("pretraining", recipe.steps, unit=" steps")
    for batch, noise in data:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
            table = model.model.embed_tokens.weight
            embeddings = perturb(table[batch.ids], batch.ids, batch.in_prefix, table, noise, generator)
            hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state  # (B, T, D)
            labels = batch.labels[:, 1:]
            logits = model.lm_head(hidden[:, :-1][labels != IGNORED])  # (tokens with loss, V)
            loss = cross_entropy(logits.float(), labels[labels != IGNORED])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        progress.update()
    progress.close()
    return losses

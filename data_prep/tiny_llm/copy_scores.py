"""Measures of how well held-out texts are copied from noisy prefixes."""

import random
from collections.abc import Sequence

import jiwer
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data_prep.tiny_llm.noisy_copies import Noise, noisy_copy, perturb
from data_prep.tiny_llm.subwords import BOS_ID, PAD_ID, SPECIAL_TOKENS, encode


@torch.inference_mode()
def copy_scores(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    noise: Noise,
    seed: int,
    batch_size: int = 64,
) -> dict[str, float]:
    """Word error rate and share of exact texts among greedy transcripts of noisy prefixes."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    table = model.model.embed_tokens.weight
    vocabulary = range(len(SPECIAL_TOKENS), len(table))
    model.eval()
    hypotheses: list[str] = []
    for start in range(0, len(texts), batch_size):
        tokens = [encode(tokenizer, text) for text in texts[start : start + batch_size]]
        prefixes = [torch.tensor(noisy_copy(t, vocabulary, noise, rng)) for t in tokens]
        ids = pad_sequence(prefixes, batch_first=True, padding_value=PAD_ID, padding_side="left")  # (B, P)
        embeddings = perturb(table[ids], ids, ids != PAD_ID, table, noise, generator)
        bos = table[BOS_ID].expand(len(ids), 1, -1)
        generated = model.generate(  # pyright: ignore[reportAttributeAccessIssue]  (transformers' own protocol)
            inputs_embeds=torch.cat([embeddings, bos], dim=1),
            attention_mask=torch.cat([ids != PAD_ID, torch.ones(len(ids), 1, dtype=torch.bool)], dim=1).long(),
            max_new_tokens=2 * max(map(len, tokens)) + 8,
        )
        hypotheses += tokenizer.batch_decode(generated, skip_special_tokens=True)
    exact = sum(h == t for h, t in zip(hypotheses, texts, strict=True)) / len(texts)
    return {"wer": jiwer.wer(list(texts), hypotheses), "exact": exact}

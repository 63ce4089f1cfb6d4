"""Build and pretrain the tiny LLaMA that stands in for a large one, from the transcripts of Lhotse manifests.

Why it is needed: a speech LLM repeats what the audio embeddings in its context say. A large LLM can copy from
its context before it hears any audio; a tiny one made from scratch cannot, and then it does not learn it from
a few hours of speech. So it learns it here, from text alone, in two to three minutes on one core.

What it is trained on, always as next-token prediction:

* plain text, `<s> text </s>`, loss on everything: the language model;
* noisy copies, `prefix <s> text </s>`, loss on the text only. The prefix is what audio embeddings will look
  like: the text's tokens with runs of `<filler>` between them, some held for several frames, some missing or
  wrong (`noisy_copy`), and at the level of embeddings blurred, scaled and noisy (`perturb`).

Most texts are recombined word spans of the transcripts, because the ability that counts is to copy a text
that was never seen. The result is an ordinary Hugging Face folder. `pretraining.json` in it records the
settings and how well texts that were held out are copied.
"""

import argparse
import functools
import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jiwer
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from data_prep.command_line import run
from data_prep.transcripts import supervisions
from speechllm_pl.core.allocator import keep_freed_memory
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.progress import progress_bar
from speechllm_pl.optim.muon_adamw import MuonAdamW, grouped

PAD, BOS, EOS, UNK, FILLER = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<filler>")  # ids 0 to 4
PAD_ID, BOS_ID, EOS_ID, UNK_ID, FILLER_ID = range(len(SPECIAL_TOKENS))
IGNORED = -100  # a label without loss
LONGEST_TOKEN = 8  # letters: from few texts, longer tokens are compounds too rare to be learned from speech
FEW = 200  # transcripts, with fewer of which an LLM learns them, and not to write
DRAWN_TOGETHER = 512  # sequences sorted by length at a time: enough for batches with little padding


# --- texts -------------------------------------------------------------------------------------------------


def read_texts(manifests: Iterable[Path]) -> dict[str, list[str]]:
    """The distinct transcripts of Lhotse cut manifests by language, in the manifests' order.

    Raises:
        UserError: a manifest is missing or broken, or holds no transcript.
    """
    texts: dict[str, dict[str, None]] = {}  # the inner dict is an ordered set
    for manifest in manifests:
        for supervision in supervisions(manifest):
            if text := " ".join((supervision.text or "").split()):
                texts.setdefault(supervision.language or "", {})[text] = None
    if not texts:
        raise UserError(f"no transcripts in {', '.join(map(str, manifests))}; nothing to train on")
    return {language: list(of_language) for language, of_language in texts.items()}


def too_few(texts: dict[str, list[str]]) -> str:
    """What to do instead, where there is too little text to make an LLM of; empty where there is enough."""
    count = sum(map(len, texts.values()))
    if count >= FEW:
        return ""
    return (
        f"{count} different transcripts are too few to make an LLM of, which takes minutes all the same: interrupt it,"
        f" and give a pretrained one, such as LLM=bloom-560m (from {FEW} on it is worth it)"
    )


class TextPool:
    """Draws training texts: transcripts, parts of them, and new texts spliced from parts.

    Args:
        texts: transcripts by language; splices stay inside one language.
        held_out: texts that are never drawn, not even by chance.
        recombined: the share of texts that are spliced rather than transcripts as they are.
    """

    def __init__(self, texts: dict[str, list[str]], held_out: set[str], recombined: float = 0.7) -> None:
        self.held_out = held_out
        self.recombined = recombined
        kept = {language: [t for t in of if t not in held_out] for language, of in texts.items()}
        self.transcripts = [[t.split() for t in of] for of in kept.values() if of]
        self.sizes = [len(of) for of in self.transcripts]
        self.longest = max((len(words) for of in self.transcripts for words in of), default=0)
        if not self.longest:
            raise UserError("every training text is held out; give another --dev-manifest")

    def draw(self, rng: random.Random, max_words: int) -> str:
        """A text of at most `max_words` words."""
        while True:
            transcripts = rng.choices(self.transcripts, self.sizes)[0]
            words = rng.choice(transcripts)
            if len(words) > max_words or rng.random() < self.recombined:
                words = self._splice(transcripts, rng, max_words)
            if (text := " ".join(words)) not in self.held_out:
                return text

    def _splice(self, transcripts: list[list[str]], rng: random.Random, max_words: int) -> list[str]:
        wanted = rng.randint(1, max_words)
        words: list[str] = []
        while len(words) < wanted:
            source = rng.choice(transcripts)
            start = rng.randrange(len(source))
            words += source[start : start + rng.randint(1, 6)]
        return words[:wanted]


def hold_out(texts: dict[str, list[str]], dev: dict[str, list[str]] | None, rng: random.Random) -> list[str]:
    """Texts to measure copying on: those of dev, else 2 % of the transcripts, at least one."""
    if dev is not None:
        return [text for of_language in dev.values() for text in of_language]
    everything = [text for of_language in texts.values() for text in of_language]
    return rng.sample(everything, max(1, len(everything) // 50)) if len(everything) > 1 else everything


# --- tokenizer ---------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Byte pair encoding over characters; few texts simply give fewer pieces than `vocabulary_size`.

    It adds no BOS or EOS of its own. `tokenizer.filler_token` names the token that stands for a frame
    without text.
    """
    tokenizer = Tokenizer(BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        max_token_length=LONGEST_TOKEN,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"filler_token": FILLER},
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# --- the task ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """How far a prefix is from the text it stands for. Rates are probabilities per token or per frame."""

    max_fillers: int = 4
    """Longest usual run of fillers between two tokens."""
    long_run: float = 0.03
    """Rate of pauses: runs of up to four times `max_fillers`."""
    held: float = 0.25
    """Rate of tokens that last two or three frames."""
    wrong: float = 0.03
    """Rate of tokens that are replaced by another, by a filler, or dropped, so that the text's own
    probability has to help."""
    blur: float = 0.1
    """Largest weight of something else in a frame's embedding."""
    gaussian: float = 0.2
    """Largest standard deviation of the noise on embeddings, relative to their own root mean square."""
    scale: float = 1.2
    """Largest factor, up or down, on the embeddings of a prefix."""

    def weakened(self, share: float) -> "Noise":
        """The same kinds of noise, at a share (0 to 1) of their strength; the scale stays."""
        return Noise(
            max_fillers=round(share * self.max_fillers),
            long_run=share * self.long_run,
            held=share * self.held,
            wrong=share * self.wrong,
            blur=share * self.blur,
            gaussian=share * self.gaussian,
            scale=self.scale,
        )


def noisy_copy(tokens: Sequence[int], vocabulary: range, noise: Noise, rng: random.Random) -> list[int]:
    """A prefix that stands for `tokens` as frames of audio would: fillers between them, some held or wrong.

    As in CTC, a token that really occurs twice running has a filler between, so that a held token and a
    repeated one can be told apart.

    Args:
        tokens: token ids of a text.
        vocabulary: ids that a wrong token is drawn from.
    """
    prefix = [FILLER_ID] * _run_of_fillers(noise, rng)
    for token in tokens:
        frames = [token] * (rng.randint(2, 3) if rng.random() < noise.held else 1)
        if rng.random() < noise.wrong:
            frames = rng.choice(([rng.choice(vocabulary)], [FILLER_ID], []))
        if prefix and frames and prefix[-1] == frames[0]:
            prefix.append(FILLER_ID)
        prefix += frames + [FILLER_ID] * _run_of_fillers(noise, rng)
    return prefix or [FILLER_ID]


def _run_of_fillers(noise: Noise, rng: random.Random) -> int:
    longest = noise.max_fillers * (4 if rng.random() < noise.long_run else 1)
    return rng.randint(0, longest)


class Sequences(NamedTuple):
    """A batch, right-padded: with a causal mask nothing sees the padding, so no attention mask is needed."""

    ids: Tensor  # (B, T)
    labels: Tensor  # (B, T) ids, IGNORED in prefixes and padding
    in_prefix: Tensor  # (B, T) bool


def collate(pairs: Sequence[tuple[list[int], list[int]]]) -> Sequences:
    """(prefix, text) pairs of token ids as `prefix <s> text </s>`, with loss after <s> only."""
    rows = [torch.tensor([*prefix, BOS_ID, *text, EOS_ID]) for prefix, text in pairs]
    ids = pad_sequence(rows, batch_first=True, padding_value=PAD_ID)
    column = torch.arange(ids.shape[1])
    prefix_lengths = torch.tensor([len(prefix) for prefix, _ in pairs])[:, None]
    row_lengths = torch.tensor([len(row) for row in rows])[:, None]
    with_loss = (column > prefix_lengths) & (column < row_lengths)
    return Sequences(ids, ids.masked_fill(~with_loss, IGNORED), column < prefix_lengths)


def perturb(
    embeddings: Tensor,
    ids: Tensor,
    in_prefix: Tensor,
    table: Tensor,
    noise: Noise,
    generator: torch.Generator,
) -> Tensor:
    """Make the prefixes' embeddings as imperfect as audio embeddings will be; the rest stays as it is.

    A filler takes on some of a neighbor, any other frame some of a random token; every row is then scaled by
    its own factor and gets its own level of Gaussian noise.

    Args:
        embeddings: (B, T, D).
        ids: (B, T) token ids.
        in_prefix: (B, T) bool.
        table: (V, D) the token embeddings.

    Returns:
        (B, T, D).
    """
    rows, columns = ids.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, 1, generator=generator)  # (…, 1), to multiply embeddings with

    before, after = embeddings.roll(1, dims=1), embeddings.roll(-1, dims=1)
    neighbor = torch.where(uniform(rows, columns) < 0.5, before, after)
    stranger = table[torch.randint(len(SPECIAL_TOKENS), len(table), ids.shape, generator=generator)]
    other = torch.where((ids == FILLER_ID)[..., None], neighbor, stranger)
    frames = torch.lerp(embeddings, other, noise.blur * uniform(rows, columns))
    rms = table.detach().square().mean().sqrt()
    level = noise.gaussian * rms * uniform(rows, 1)
    frames = frames + level * torch.randn(embeddings.shape, generator=generator)
    frames = frames * noise.scale ** (2 * uniform(rows, 1) - 1)
    return torch.where(in_prefix[..., None], frames, embeddings)


# --- training ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Everything, besides the texts, that decides the result."""

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
    precision: str = "bf16"
    """Of matrix products in training: bf16 or fp32. The weights are kept in fp32."""
    seed: int = 0


def make_model(recipe: Recipe, vocabulary_size: int) -> LlamaForCausalLM:
    """A LLaMA with random weights, drawn from the recipe's seed."""
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
    pool: TextPool, encode_text: Callable[[str], list[int]], vocabulary: range, recipe: Recipe, noise: Noise
) -> Iterator[tuple[Sequences, Noise]]:
    """One batch a step, of sequences of similar length, with the noise to apply to its embeddings."""
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


def pretrain(model: LlamaForCausalLM, data: Iterable[tuple[Sequences, Noise]], recipe: Recipe) -> list[float]:
    """Train `model` in place on the batches; the loss of every step (nats per token with loss)."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = MuonAdamW(grouped(model.parameters(), model.model.layers), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.1, cycle_momentum=False
    )
    losses: list[float] = []
    model.train()
    progress = progress_bar("pretraining", recipe.steps, unit=" steps")
    for batch, noise in data:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
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


# --- measuring ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def copy_scores(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    noise: Noise,
    seed: int,
    batch_size: int = 64,
) -> dict[str, float]:
    """Greedy transcripts of noisy prefixes against the texts: word error rate and share of exact texts."""
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


# --- the folder --------------------------------------------------------------------------------------------


def build(
    texts: dict[str, list[str]],
    output: Path,
    *,
    dev: dict[str, list[str]] | None = None,
    recipe: Recipe = Recipe(),
    evaluated: int = 256,
) -> dict[str, Any]:
    """Write the pretrained LLM for these texts into the folder `output`; what `pretraining.json` records.

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


def main() -> None:
    defaults = Recipe()
    parser = argparse.ArgumentParser(prog="python -m data_prep.tiny_llm", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--manifest", type=Path, nargs="+", required=True, help="Lhotse cuts to train on")
    parser.add_argument("--dev-manifest", type=Path, nargs="+", help="cuts whose texts are held out to measure")
    parser.add_argument("--output", type=Path, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--vocabulary", type=int, default=defaults.vocabulary_size, help="most pieces")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default=defaults.precision)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    args = parser.parse_args()
    if args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    torch.set_num_threads(1)  # the result then does not depend on the machine's number of cores
    keep_freed_memory()
    transformers_logging.disable_progress_bar()  # of saving, which takes no time
    torch.backends.cuda.enable_flash_sdp(False)  # its bf16 backward is slow on CPUs, which this switch covers too
    texts = read_texts(args.manifest)
    if warning := too_few(texts):
        print(warning)
    record = build(
        texts,
        args.output,
        dev=read_texts(args.dev_manifest) if args.dev_manifest else None,
        recipe=Recipe(steps=args.steps, vocabulary_size=args.vocabulary, precision=args.precision, seed=args.seed),
    )
    clean, wrong = record["noisy_copy"], record["noisy_copy_with_wrong_tokens"]
    print(f"{args.output}: {record['parameters'] / 1e6:.2f} M parameters, {record['vocabulary']} tokens")
    print(f"pretrained in {record['seconds']:.0f} s, loss {record['loss']['last']:.3f}")
    print(f"copies of {record['held_out_texts']} held-out texts:")
    print(f"  noisy prefix             WER {clean['wer']:6.1%}   exact {clean['exact']:6.1%}")
    print(f"  and {Noise().wrong:.0%} of tokens wrong   WER {wrong['wer']:6.1%}   exact {wrong['exact']:6.1%}")


if __name__ == "__main__":
    run(main)

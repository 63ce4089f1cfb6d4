"""Speed of the decoders of trained runs, in one process and in turn: passes of the LLM, wall and CPU time, and texts.

    python benchmarks/decoding_speed.py runs/demo/finetune runs/demo/pretrain_ctc

Utterances from all over the test set are sorted by length into batches of 1 and of 16. Each batch is decoded by one
decoder after the other, so that all meet the same load of the machine; a factor is the median over the repetitions of
the greedy decoder's time over another's in the same repetition, with the smallest and the largest.
"Frames to text" begins with the encoder's frames and includes the LLM's reading of the prompt; "end to end" begins with
the waveform.

`assisted` is transformers' own assisted generation, which takes one utterance at a time, with the same CTC drafts by
prompt lookup: they are the ids of the columns in which the LLM reads audio. Relaxed modes stand beside the exact one.

    python benchmarks/decoding_speed.py runs/demo/finetune --only-equality --utterances 400

counts the utterances whose text is the same by greedy and by speculative decoding, in fp32, fails unless all
are, and measures nothing.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from machine import describe
from torch import Tensor
from transformers.utils import logging as transformers_logging

from speechllm_pl.core.metrics import score, table
from speechllm_pl.core.padded import Padded
from speechllm_pl.data.batch import Batch
from speechllm_pl.data.dataset import SpeechDataset
from speechllm_pl.data.epoch_plan import PlannedBatch
from speechllm_pl.data.manifest import durations_of, read_manifest
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.decoding_options import DecodingOptions
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.recognizer import Heard, Recognizer
from speechllm_pl.recognition.text_end import token_caps

Decode = Callable[[Recognizer, Heard, Sequence[str]], list[Hypothesis]]
"""From what was heard of a batch, and its languages, to its texts."""

EXACT = {
    "greedy": DecodingOptions(),
    "speculative": DecodingOptions("speculative"),
    "beam": DecodingOptions("beam"),
}
RELAXED = {
    "accept-entropy 0.7": DecodingOptions("speculative", accept_entropy=0.7),
    "accept-probability 0.2": DecodingOptions("speculative", accept_probability=0.2),
}


class Moment(NamedTuple):
    """Reading of both clocks."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: "Moment") -> "Moment":
        return Moment(self.wall - start.wall, self.cpu - start.cpu)


@dataclass
class Result:
    """One decoder on one size of batches: an entry of each list a repetition."""

    from_frames: list[Moment] = field(default_factory=list)
    end_to_end: list[Moment] = field(default_factory=list)
    texts: dict[str, Hypothesis] = field(default_factory=dict)  # by id


def asked(options: DecodingOptions) -> Decode:
    return lambda recognizer, heard, languages: recognizer.write(heard, languages, options)


def ctc(recognizer: Recognizer, heard: Heard, languages: Sequence[str]) -> list[Hypothesis]:
    return heard.hypotheses


def assisted(recognizer: Recognizer, heard: Heard, languages: Sequence[str]) -> list[Hypothesis]:
    """Write with transformers' assisted generation, for a batch of one."""
    model, tokenizer, audio = cast(SpeechLLM, recognizer.model), recognizer.llm_tokenizer, heard.audio
    assert tokenizer is not None
    assert audio is not None
    llm = cast(Any, model.llm)
    prompt = model.prompt(audio, recognizer.instruction(languages))  # its last column is BOS
    (draft,) = tokenizer.encode([heard.hypotheses[0].text])
    guess = [model.tokens.bos, *draft, model.tokens.eos]
    columns = prompt.embeddings.shape[1] - 1
    spare = max(0, len(guess) - columns)  # columns on the left that only hold the guess
    ids = torch.full((1, spare + columns + 1), model.tokens.unk)
    ids[0, : len(guess)] = torch.tensor(guess)
    ids[0, -1] = model.tokens.bos
    mask = torch.nn.functional.pad(prompt.mask, (spare, 0))
    embeddings = torch.nn.functional.pad(prompt.embeddings, (0, 0, spare, 0))
    passes = []

    def with_audio(_: Any, __: Any, looked_up: Tensor) -> Tensor:
        passes.append(looked_up.shape[1])
        if len(passes) > 1:
            return looked_up
        return torch.cat([embeddings.to(looked_up.dtype), looked_up[:, embeddings.shape[1] :]], 1)

    hook = llm.get_input_embeddings().register_forward_hook(with_audio)
    try:
        written = llm.generate(
            input_ids=ids,
            attention_mask=mask,
            prompt_lookup_num_tokens=len(guess),
            max_new_tokens=int(token_caps(audio.frames * model.speech.seconds_per_frame)),
            do_sample=False,
            eos_token_id=model.tokens.eos,
            pad_token_id=tokenizer.pad_id,
        )[0, ids.shape[1] :].tolist()
    finally:
        hook.remove()
    ended = bool(written) and written[-1] == model.tokens.eos
    text = tokenizer.decode(written[: len(written) - ended])
    return [Hypothesis(text, truncated=not ended, num_tokens=len(written), passes=len(passes))]


def batches_of(path: Path, utterances: int, size: int) -> list[Batch]:
    """Utterances from all over a manifest, sorted by length, in batches; short ones first."""
    cuts = read_manifest(path)
    data, spread = SpeechDataset(cuts), np.linspace(0, len(cuts) - 1, min(utterances, len(cuts))).astype(int)
    order = spread[durations_of(cuts)[spread].argsort(kind="stable")]
    found = []
    for start in range(0, len(order), size):
        batch = data[PlannedBatch(order[start : start + size], seed=0)]
        found.append(batch._replace(waveforms=batch.waveforms.clone()))  # the next one is read into the same memory
    return found


def measure(
    recognizer: Recognizer, batches: list[Batch], ways: dict[str, Decode], repetitions: int, precision: Any
) -> dict[str, Result]:
    """Decode each batch with each way in turn, in `repetitions` rounds after a batch to warm up."""
    results = {name: Result() for name in ways}
    with recognizer.decoding(precision):
        for decode in ways.values():
            timed(recognizer, batches[0], decode)
        for _ in range(repetitions):
            spent: dict[str, list[tuple[Moment, Moment]]] = {name: [] for name in ways}
            for batch in batches:
                for name, decode in ways.items():
                    found, *moments = timed(recognizer, batch, decode)
                    results[name].texts.update(zip(batch.ids, found, strict=True))
                    spent[name].append((moments[0], moments[1]))
            for name, moments in spent.items():
                from_frames, end_to_end = zip(*moments, strict=True)
                results[name].from_frames.append(Moment(*map(sum, zip(*from_frames, strict=True))))
                results[name].end_to_end.append(Moment(*map(sum, zip(*end_to_end, strict=True))))
            print(".", end="", file=sys.stderr, flush=True)
    return results


def timed(recognizer: Recognizer, batch: Batch, decode: Decode) -> tuple[list[Hypothesis], Moment, Moment]:
    """Texts of a batch, and the times from the encoder's frames and from the waveforms."""
    started = Moment.now()
    encoded = recognizer.speech.encode(Padded(batch.waveforms, batch.lengths))
    begun = Moment.now()
    found = decode(recognizer, recognizer.heard_in(encoded), batch.languages)
    done = Moment.now()
    return found, done.since(begun), done.since(started)


def factor(slower: Sequence[float], faster: Sequence[float]) -> str:
    """Median, smallest and largest of the ratios of two decoders' times in the same repetitions."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def wer(batches: list[Batch], result: Result) -> float:
    """Average WER in %."""
    rows = [row for batch in batches for row in zip(batch.ids, batch.languages, batch.texts, strict=True)]
    ids, languages, references = zip(*rows, strict=True)
    return 100 * table(score(ids, languages, references, [result.texts[id_].text for id_ in ids]))["average"]["wer"]


def equal(one: Result, other: Result) -> str:
    same = sum(one.texts[id_] == other.texts[id_] for id_ in one.texts)
    return f"{same} of {len(one.texts)}"


def show(batches: list[Batch], results: dict[str, Result]) -> None:
    """Print a row for each decoder of one size of batches."""
    audio = sum(batch.seconds for batch in batches)
    base = results.get("greedy", next(iter(results.values())))
    print("| Decoder | passes | frames to text, wall | CPU | end to end, wall | CPU | RTFx, CPU | accepted % | WER % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        texts = result.texts.values()
        tokens = max(1, sum(each.num_tokens for each in texts))
        cells = [
            name,
            f"{sum(each.passes for each in texts) / len(texts):.2f}",
            *(
                factor(
                    [getattr(m, clock) for m in getattr(base, part)], [getattr(m, clock) for m in getattr(result, part)]
                )
                for part in ("from_frames", "end_to_end")
                for clock in ("wall", "cpu")
            ),
            f"{audio / median(moment.cpu for moment in result.end_to_end):.0f}",
            f"{100 * sum(each.drafted for each in texts) / tokens:.0f}",
            f"{wer(batches, result):.2f}",
        ]
        print(f"| {' | '.join(cells)} |")


def benchmark(run: Path, args: argparse.Namespace) -> None:
    """Print the figures of one run."""
    recognizer = Recognizer.load(run / "checkpoints/best.ckpt", args.llm)
    cast(Any, recognizer.model).float()  # also an LLM that is kept in bf16
    throughput: dict[str, list[list[float]]] = {}
    is_llm = recognizer.stage == "llm"
    for size in args.batches:
        batches = batches_of(args.cuts, args.utterances, size)
        if args.only_equality:
            pair = {name: asked(EXACT[name]) for name in ("greedy", "speculative")}
            found = measure(recognizer, batches, pair, 1, "32-true")
            same = equal(found["greedy"], found["speculative"])
            print(f"{run}, batches of {size}, fp32: texts of speculative equal to greedy's: {same}", flush=True)
            if found["greedy"].texts != found["speculative"].texts:
                sys.exit("speculative decoding has changed a text")
            continue
        chosen = {name: asked(options) for name, options in {**EXACT, **RELAXED}.items()} if is_llm else {}
        chosen |= {"assisted": assisted} if is_llm and size == 1 and not args.no_assisted else {}
        ways = {name: decode for name, decode in {**chosen, "ctc": ctc}.items() if name not in args.leave_out}
        results = measure(recognizer, batches, ways, args.repetitions, "32-true")
        print(f"\n{run}, batches of {size}, fp32, {len(results['ctc'].texts)} utterances\n")
        show(batches, results)
        for name, result in results.items():
            throughput.setdefault(name, []).append([moment.cpu for moment in result.end_to_end])
        if is_llm:
            pair = {name: ways[name] for name in ("greedy", "speculative")}
            in_bf16 = measure(recognizer, batches, pair, 1, "bf16-mixed")
            print(
                f"\ntexts of speculative equal to greedy's: {equal(results['greedy'], results['speculative'])} in fp32,"
            )
            print(f"{equal(in_bf16['greedy'], in_bf16['speculative'])} in bf16")
            for name in ("assisted",) if "assisted" in results else ():
                print(f"texts of {name} equal to greedy's: {equal(results['greedy'], results[name])}")
    for name, (one, *others) in throughput.items():
        for size, many in zip(args.batches[1:], others, strict=False):
            print(
                f"{name}: batches of {size} have {factor(one, many)} times the RTFx of {args.batches[0]}, by CPU time"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--cuts", type=Path, default=Path("data/spoken_numbers/test.jsonl.gz"))
    parser.add_argument("--llm", help="folder of the LLM, if it has moved since training")
    parser.add_argument("--utterances", type=int, default=100, help="number of them, or fewer if there are fewer")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="utterances in a batch")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--leave-out", nargs="+", default=[], help="decoders that are not measured")
    parser.add_argument("--no-assisted", action="store_true", help="leave out transformers' assisted generation")
    parser.add_argument("--only-equality", action="store_true", help="only count equal texts of greedy and speculative")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    print(describe(args.threads))
    for run in args.runs:
        benchmark(run, args)


if __name__ == "__main__":
    main()

"""Trained model with everything it needs to turn speech into text; knows no trainer and no data set.

recognizer = Recognizer.load("runs/demo/finetune/checkpoints/best.ckpt")
with recognizer.decoding():
    found = recognizer.transcribe(waveforms, lengths, ["de", "en"])
print(found["llm"][0].text)
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from speechllm_pl.core.ctc_tokenizer import CtcTokenizer
from speechllm_pl.core.errors import UserError
from speechllm_pl.core.own_vocabulary import restored
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import Prompt, pad_tokens
from speechllm_pl.models.config import DESCRIPTIONS, CtcConfig, SpeechLlmConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.llm import (
    LlmTokenizer,
    is_quantized,
    llm_commit,
    load_llm,
    merged_lora,
)
from speechllm_pl.models.speech_llm import Audio, SpeechLLM
from speechllm_pl.recognition.ctc_beam import ctc_beam_search, ctc_texts
from speechllm_pl.recognition.ctc_greedy import greedy_ctc, largest_entropies
from speechllm_pl.recognition.decoding_options import DecodingOptions, Precision
from speechllm_pl.recognition.hypothesis import Hypothesis
from speechllm_pl.recognition.joint import jointly_ranked
from speechllm_pl.recognition.llm_text import generate, with_texts
from speechllm_pl.recognition.recombination import recombined
from speechllm_pl.storage.checkpoints import RECORD, read_checkpoint
from speechllm_pl.storage.digests import damaged
from speechllm_pl.storage.pretrained_files import refuse_other_weights, weights_digest
from speechllm_pl.storage.recorded import BESIDE_THE_DESCRIPTION, present_settings, wrong_settings
from speechllm_pl.storage.shards import refuse_other_keys, refuse_other_shapes

LONGEST_SECONDS = 30.0
"""Longest piece for checkpoints that do not tell how long their training's utterances were."""

log = logging.getLogger(__name__)

PREFIX = "model."
"""Prefix of the names of a model's tensors in a checkpoint."""


class Heard(NamedTuple):
    """What encoder and CTC head make of B utterances."""

    logits: Tensor  # (B, T, V) of the CTC head
    frames: Tensor  # (B,) real frames
    hypotheses: list[Hypothesis]  # by greedy CTC decoding
    audio: Audio | None  # what the LLM is given, in stage 2

    def rows(self, places: Sequence[int]) -> "Heard":
        """Select some of the utterances."""
        rows = torch.tensor(places, device=self.frames.device)
        audio = None if self.audio is None else Audio(*(part[rows] for part in self.audio))
        return Heard(self.logits[rows], self.frames[rows], [self.hypotheses[place] for place in places], audio)


class Recognizer:
    """Waveforms in, hypotheses out.

    Args:
        model: model of stage 1 or stage 2.
        tokenizer: tokenizer of the CTC classes.
        llm_tokenizer, prompt: needed in stage 2.
        precision: precision of the training.

    Attributes:
        longest_seconds: the longest utterance of the training, if that is known.
    """

    def __init__(
        self,
        model: CtcModel | SpeechLLM,
        tokenizer: CtcTokenizer,
        llm_tokenizer: LlmTokenizer | None = None,
        prompt: Prompt = Prompt(),  # noqa: B008 (frozen)
        precision: Precision = "32-true",
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.llm_tokenizer = llm_tokenizer
        self.prompt = prompt
        self.precision: Precision = precision
        self.longest_seconds: float | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        llm: str | None = None,
        device: str | torch.device = "cpu",
        encoder: str | None = None,
    ) -> "Recognizer":
        """Load the recogniser of a checkpoint of either stage, in evaluation mode.

        Args:
            path: a file, a folder of shards, or a consolidated folder.
            llm: folder or name of the LLM, if it has moved since training.
            encoder: folder or name of a pretrained encoder, if it has moved.

        Raises:
            UserError: the checkpoint or its LLM is missing, damaged, edited or another one, or the device does not
                exist.
        """
        checkpoint = read_checkpoint(path)
        record, state = checkpoint[RECORD], checkpoint["state_dict"]
        settings, kind = present_settings(record["settings"]), DESCRIPTIONS[record["stage"]]
        if problem := wrong_settings(kind, settings, state):
            raise UserError(damaged(Path(path), problem))
        if llm is not None:
            settings |= {"llm": llm, "llm_revision": None}
        if encoder is not None:
            if "name" not in settings["encoder"]["init_args"]:
                raise UserError(f"checkpoint {path} has no pretrained encoder: leave --encoder out")
            moved = settings["encoder"]["init_args"] | {"name": encoder, "revision": None}
            settings["encoder"] = {**settings["encoder"], "init_args": moved}
        try:
            beside = {name: settings[name] for name in BESIDE_THE_DESCRIPTION if name in settings}
            recognizer = _untrained(kind.from_record(settings), **beside)
        except UserError as error:
            raise UserError(f"checkpoint {path}: {error}") from error
        recognizer.precision = record.get("precision", recognizer.precision)
        recognizer.longest_seconds = record.get("longest_seconds")
        recognizer.fill(state)
        try:
            recognizer.model.eval().to(device)
        except (RuntimeError, AssertionError) as error:  # an unknown name, no driver, no memory
            reason = str(error).splitlines()[0]
            raise UserError(
                f"device {device} cannot be used ({reason}): give another, such as cpu or cuda:0"
            ) from error
        return recognizer

    def check_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Check that a checkpoint has the tensors of this model.

        Raises:
            UserError: one is missing or unexpected, or has another shape.
        """
        ours = {PREFIX + name: value for name, value in self.model.state_dict().items() if self.model.is_saved(name)}
        refuse_other_keys(set(ours), state)
        refuse_other_shapes(ours, state)

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of a checkpoint; call `check_tensors` first."""
        self.check_tensors(state)
        self.model.load_state_dict({name.removeprefix(PREFIX): value for name, value in state.items()}, strict=False)

    @property
    def stage(self) -> Literal["ctc", "llm"]:
        """Stage of the training."""
        return "llm" if isinstance(self.model, SpeechLLM) else "ctc"

    def systems(self, options: DecodingOptions) -> tuple[str, ...]:
        """Systems of which `transcribe` returns hypotheses, that to judge by last."""
        return ("ctc", "llm") if isinstance(self.model, SpeechLLM) and options.asks_llm else ("ctc",)

    def warn_of_ctc_head(self, options: DecodingOptions, guarded: bool = False) -> None:
        """Warn of a search or a guard that relies on the CTC head where stage 2 trained the encoder without it."""
        config = self.model.config if isinstance(self.model, SpeechLLM) else None
        moved = config is not None and not config.freeze_encoder and not config.trains_ctc_head
        searched = options.ctc_weight or options.decoder not in ("greedy", "beam")
        if moved and (searched or guarded):
            log.warning(
                "%s relies on the CTC head, which was not trained with the encoder in stage 2 and may hear wrongly:"
                " train with a ctc_weight above 0, or decode with greedy%s",
                f"decoder {options.decoder}" if searched else "the guard",
                " and --guard false" if guarded else "",
            )

    def longest_piece(self, given: float | None) -> float:
        """Longest piece of a recording in seconds: what is given, or else the longest utterance of the training.

        Warns of one that is longer than these utterances, or if their length is not known.
        """
        trained = self.longest_seconds
        if given and trained and given > trained:
            log.warning(
                "max_seconds %g is longer than any utterance of the training (%.1f s), so texts may be wrong: give"
                " less, or leave it out",
                *(given, trained),
            )
        if longest := given or trained:
            return longest
        log.warning(
            "the checkpoint does not tell how long the utterances of its training were, so pieces have up to %g s:"
            " give max_seconds",
            LONGEST_SECONDS,
        )
        return LONGEST_SECONDS

    @property
    def speech(self) -> CtcModel:
        """Features, encoder and CTC head."""
        return self.model.speech if isinstance(self.model, SpeechLLM) else self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @contextmanager
    def decoding(self, precision: Precision | None = None) -> Iterator[None]:
        """Context in which `transcribe` is fastest.

        Args:
            precision: precision of the computation; default is that of training.
        """
        kind = {"16": torch.float16, "bf16": torch.bfloat16}.get((precision or self.precision).partition("-")[0])
        with (
            torch.inference_mode(),
            self.merged(),
            torch.autocast(self.device.type, kind, enabled=kind is not None),
        ):
            yield

    def merged(self) -> AbstractContextManager[None]:
        """Context in which LoRA is merged into the LLM's weights, unless they are in 4 bits. Not for sharded ones."""
        if isinstance(self.model, SpeechLLM) and not is_quantized(self.model.llm):
            return merged_lora(self.model.llm)
        return nullcontext()

    def instruction(self, languages: Sequence[str]) -> Padded:
        """Tokens of the LLM before the audio of utterances in these languages."""
        assert self.llm_tokenizer is not None
        texts = [self.prompt.before_audio(language) for language in languages]
        return pad_tokens(self.llm_tokenizer.encode(texts), self.device)

    @torch.no_grad()
    def transcribe(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        languages: Sequence[str],
        options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
        all_ended: Callable[[bool], bool] = bool,
    ) -> dict[str, list[Hypothesis]]:
        """Return one hypothesis per utterance from each of `systems`.

        Args:
            waveforms: `(B, N)` samples at 16 kHz in -1 … 1, zero-padded, on the recogniser's device; or `(B, T, dim)`
                frames of a frozen encoder.
            lengths: `(B,)` real samples or frames.
            languages: languages of the B utterances, for an instruction that names them.
            all_ended: receives whether all texts of this batch have ended, and returns whether to stop. Ranks that
                share an LLM's weights must continue until the last one has ended.
        """
        heard = self.hear(waveforms, lengths, options)
        if heard.audio is None:
            return {"ctc": heard.hypotheses}
        return {"ctc": heard.hypotheses, "llm": self.write(heard, languages, options, all_ended)}

    @torch.no_grad()
    def hear(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
    ) -> Heard:
        """Run the encoder and the CTC head; arguments as of `transcribe`."""
        return self.heard_in(self.speech.encode(Padded(waveforms, lengths)), options)

    @torch.no_grad()
    def heard_in(self, encoded: Padded, options: DecodingOptions = DecodingOptions()) -> Heard:  # noqa: B008 (frozen)
        """Run the CTC head, and the bridge if an LLM is to be asked, on `(B, T, dim)` encoder frames."""
        logits, frames = self.speech.head(encoded.values), encoded.lengths
        audio = None
        if isinstance(self.model, SpeechLLM) and options.asks_llm:
            audio = self.model.audio(encoded, logits)
        if options.decoder == "ctc-beam":
            ngram = (options.ngram, options.ngram_weight)
            found = ctc_beam_search(logits, frames, self.tokenizer, options.num_beams, *ngram)
        else:
            found = greedy_ctc(logits, frames, self.tokenizer)
        return Heard(logits, frames, found, audio)

    @torch.no_grad()
    def write(
        self,
        heard: Heard,
        languages: Sequence[str],
        options: DecodingOptions = DecodingOptions(),  # noqa: B008 (frozen)
        all_ended: Callable[[bool], bool] = bool,
    ) -> list[Hypothesis]:
        """Ask the LLM of stage 2; arguments as of `transcribe`."""
        assert isinstance(self.model, SpeechLLM)
        assert self.llm_tokenizer is not None
        written = [replace(each, num_tokens=0) for each in heard.hypotheses]  # no token of the LLM
        doubtful = list(range(len(written)))
        if options.accept_entropy is not None:
            entropies = largest_entropies(heard.logits, heard.frames).tolist()
            doubtful = [row for row in doubtful if not entropies[row] <= options.accept_entropy]  # also NaN
        if doubtful:
            part = heard.rows(doubtful)
            assert part.audio is not None
            asked = self.model, part.audio, self.instruction([languages[row] for row in doubtful]), self.llm_tokenizer
            drafts = ctc_texts(part.hypotheses, part.logits, part.frames, self.tokenizer, options.ctc_candidates)
            found = generate(*asked, options, all_ended, drafts)
            if options.ctc_weight:
                by_ctc = part.logits, part.frames, self.tokenizer, options.ctc_weight
                found = jointly_ranked(found, *by_ctc)
                if options.ctc_candidates:
                    texts = [[text.text for text in each.alternatives] for each in found]
                    new = [recombined(each, options.ctc_candidates) for each in texts]
                    found = jointly_ranked(with_texts(*asked, options, found, new), *by_ctc)
            for row, hypothesis in zip(doubtful, found, strict=True):
                written[row] = hypothesis
        return written


def _untrained(config: CtcConfig, tokenizer: bytes, llm_digest: str = "", encoder_digest: str = "") -> Recognizer:
    """Build the untrained recogniser of a description.

    Args:
        config: description of a model of either stage.
        tokenizer: tokenizer of the CTC classes.
        llm_digest: digest of the LLM's weights.
        encoder_digest: digest of the weights of a pretrained encoder.

    Raises:
        UserError: the LLM or a pretrained encoder cannot be loaded, or has another digest.
    """
    known = restored(tokenizer)
    speech = config.build_speech(known.vocab_size)
    if speech.digest:
        encoder: Any = config.encoder
        refuse_other_weights("encoder", encoder.name, speech.digest, encoder_digest)
    if not isinstance(config, SpeechLlmConfig):
        return Recognizer(speech, known)
    commit = llm_commit(config.llm, config.llm_revision)
    llm_tokenizer = LlmTokenizer(config.llm, commit)
    llm = load_llm(config.llm, config.dtype, config.quantize, commit)
    refuse_other_weights("LLM", config.llm, weights_digest(config.llm, commit), llm_digest)
    model = SpeechLLM(config, speech, llm, llm_tokenizer.special_tokens)
    return Recognizer(model, known, llm_tokenizer, Prompt(config.instruction))

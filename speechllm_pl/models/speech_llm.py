"""Causal LLM that hears: audio embeddings made of encoder frames stand before the text (arXiv 2307.11795)."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import Columns, assemble, mask_tokens, next_token_labels, pad_tokens
from speechllm_pl.models import simulated_audio, simulated_posteriors
from speechllm_pl.models.bridges.protocol import Bridge
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.ctc import CtcModel
from speechllm_pl.models.direct_alignment import DirectAlignment
from speechllm_pl.models.llm import SpecialTokens, add_lora, embedding_table, most_positions
from speechllm_pl.models.losses import LossTerm, WeightedTerm, ctc_loss, next_token_loss
from speechllm_pl.models.simulated_audio import RealFrames
from speechllm_pl.models.simulated_posteriors import RealPosteriors


class Audio(NamedTuple):
    """Audio embeddings for the LLM, and the CTC head's view of the same frames."""

    embeddings: Tensor  # (B, A, D)
    lengths: Tensor  # (B,)
    encoded: Tensor  # (B, T, dim) encoder frames
    frames: Tensor  # (B,) real encoder frames


def embedding_lengths(config: SpeechLlmConfig, samples: Tensor) -> Tensor:
    """Numbers of audio embeddings for numbers of samples."""
    return config.bridge.embedding_lengths(config.encoder.frame_lengths(samples))


class SpeechLLM(nn.Module):
    """The model of stage 2: encoder, bridge and causal LLM.

    Args:
        config: the description.
        speech: the model of stage 1; its CTC head is kept. With `freeze_encoder` it is always in evaluation mode,
            without SpecAugment or dropout: the same waveform has the same frames each time.
        llm: a frozen causal LM. Where its configuration names a `filler_token_id`, a token that it skips in copying,
            the alignment's blank starts at the embedding of that.
        tokens: the LLM's special tokens.

    Attributes:
        real_audio: what the audio embeddings of texts without audio are drawn from, set from outside.
    """

    def __init__(self, config: SpeechLlmConfig, speech: CtcModel, llm: nn.Module, tokens: SpecialTokens):
        super().__init__()
        self.config, self.tokens = config, tokens
        self.real_audio: RealFrames | RealPosteriors | None = None
        table = embedding_table(llm)  # (V, D)
        llm_config = cast(Any, llm).config
        self.speech = speech
        self.projector: Bridge = config.bridge.build(speech.dim, table.shape[1])  # so named in checkpoints
        filler = getattr(llm_config, "filler_token_id", None)
        blank = None if filler is None else table[filler]
        self.alignment = None
        if config.alignment_weight > 0:
            self.alignment = DirectAlignment(table.shape[1], blank=blank, sampled=config.alignment_classes)
        self.most_positions = most_positions(llm_config)
        self.llm = add_lora(llm, config.lora_r, config.lora_alpha, config.lora_dropout) if config.lora_r else llm
        if config.train_llm:
            self.llm.requires_grad_(True)
        self.speech.head.requires_grad_(config.trains_ctc_head)
        if config.freeze_bridge:
            self.projector.requires_grad_(False)
            if self.alignment is not None:
                self.alignment.requires_grad_(False)
        if config.freeze_encoder:
            self.speech.requires_grad_(False)
            self.speech.eval()  # Lightning keeps the modes that it finds

    def train(self, mode: bool = True) -> "SpeechLLM":
        super().train(mode)
        if self.config.freeze_encoder:
            self.speech.eval()
        return self

    def is_saved(self, name: str) -> bool:
        """Whether checkpoints hold this entry of the state dict: all do but those of the frozen LLM."""
        return self.config.train_llm or not name.startswith("llm.") or "lora_" in name

    @property
    def text_embeddings(self) -> Tensor:
        """The LLM's input embeddings, `(V, D)`."""
        return embedding_table(self.llm)

    def listen(self, waveforms: Padded) -> Audio:
        """Compute audio embeddings of `(B, N)` samples."""
        frames = self.speech.encode(waveforms)
        return self.audio(frames, self.speech.head(frames.values) if self.projector.reads_ctc_logits else None)

    def audio(self, frames: Padded, ctc_logits: Tensor | None) -> Audio:
        """Compute audio embeddings of `(B, T, dim)` encoder frames; a bridge may read their `(B, T, V)` logits."""
        embeddings: Padded = self.projector(frames, ctc_logits if self.projector.reads_ctc_logits else None)
        return Audio(*embeddings, *frames)

    @property
    def seconds_per_embedding(self) -> float:
        return self.projector.stride * self.speech.seconds_per_frame

    def listen_or_simulate(self, waveforms: Padded, text: Padded, targets: Padded | None, simulated: int) -> Audio:
        """Compute the audio embeddings of a batch whose last `simulated` rows are texts without audio.

        Encoder frames are those of the other rows. For these rows waveforms have a length alone, which their embeddings
        are as many as.
        """
        if not simulated:
            return self.listen(waveforms)
        spoken = len(waveforms.lengths) - simulated
        classes = targets and Padded(targets.values[spoken:], targets.lengths[spoken:])
        alone = Padded(text.values[spoken:], text.lengths[spoken:])
        made = self.simulate(waveforms.lengths[spoken:], alone, classes)
        if not spoken:
            return Audio(*made, made.values[:0], made.lengths[:0])
        heard = self.listen(Padded(waveforms.values[:spoken], waveforms.lengths[:spoken]))
        longest = max(made.values.shape[1], heard.embeddings.shape[1])
        rows = [pad(part, (0, 0, 0, longest - part.shape[1])) for part in (heard.embeddings, made.values)]
        return heard._replace(embeddings=torch.cat(rows), lengths=torch.cat([heard.lengths, made.lengths]))

    def simulate(self, samples: Tensor, text: Padded, targets: Padded | None) -> Padded:
        """Simulate audio embeddings of texts.

        Args:
            samples: `(B,)` numbers of samples that their audio might have.
            text: LLM tokens of them.
            targets: CTC classes of them, for CTC posteriors.
        """
        real, wrong = self.real_audio, self.config.simulated_wrong
        if isinstance(real, RealFrames):
            lengths = embedding_lengths(self.config, samples)
            return simulated_audio.simulate(text, lengths, self.text_embeddings, real, wrong)
        if real is None or targets is None:
            raise UserError("texts without audio must be a source of their own in data.train, beside one with audio")
        lengths = self.config.encoder.frame_lengths(samples)
        frames, posteriors = simulated_posteriors.simulate(targets, lengths, real, wrong)
        return self.projector(frames, posteriors.log())

    def losses(
        self, waveforms: Padded, targets: Padded, instruction: Padded, text: Padded, simulated: int = 0
    ) -> dict[str, WeightedTerm]:
        """The named terms of stage 2's loss; the same names for every batch.

        Args:
            waveforms: `(B, N)` samples.
            targets: CTC classes of the reference.
            instruction: LLM tokens before the audio.
            text: LLM tokens of the reference.
            simulated: number of rows, the last ones, that are texts without audio (encoder and bridge are frozen).

        Raises:
            UserError: an utterance takes more positions than the LLM has.
        """
        audio, next_token = self(waveforms, instruction, text, targets, simulated)
        terms = {"next_token_loss": WeightedTerm(next_token, 1.0)}
        if self.alignment is not None and not self.config.freeze_bridge:
            terms["alignment_loss"] = WeightedTerm(self.alignment_loss(audio, text), self.config.alignment_weight)
        if self.config.trains_ctc_head:
            terms["ctc_loss"] = WeightedTerm(self.ctc_loss(audio, targets), self.config.ctc_weight)
        return terms

    def prompt(self, audio: Audio, instruction: Padded, text: Padded | None = None) -> Columns:
        """Lay out audio among text. Without a text the columns end at BOS, ready for generation."""
        embed = cast(Any, self.llm).get_input_embeddings()  # the module: some scale what they look up
        if text is None:
            text = pad_tokens([[]] * len(audio.lengths), audio.lengths.device)
        masking = self.config.text_masking if self.training else 0.0
        dtype, bos = audio.embeddings.dtype, torch.tensor(self.tokens.bos, device=audio.lengths.device)
        return assemble(
            Padded(embed(instruction.values).to(dtype), instruction.lengths),
            Padded(audio.embeddings, audio.lengths),
            embed(bos).to(dtype),
            Padded(embed(mask_tokens(text.values, masking, self.tokens.unk)).to(dtype), text.lengths),
            next_token_labels(text, self.tokens.eos),
        )

    def logits(self, columns: Columns) -> Tensor:
        """Logits, `(B, K, V)`, of BOS and the text columns only, never of audio."""
        return self.llm(
            inputs_embeds=columns.embeddings.to(self.text_embeddings.dtype),
            attention_mask=columns.mask,
            position_ids=columns.positions,
            logits_to_keep=columns.labels.shape[1],
            use_cache=False,
        ).logits

    def forward(
        self,
        waveforms: Padded,
        instruction: Padded,
        text: Padded,
        targets: Padded | None = None,
        simulated: int = 0,
    ) -> tuple[Audio, LossTerm]:
        """Compute the audio embeddings and the next-token loss on text and EOS; arguments as of `losses`.

        Raises:
            UserError: an utterance takes more positions than the LLM has.
        """
        audio = self.listen_or_simulate(waveforms, text, targets, simulated)
        columns = self.prompt(audio, instruction, text)
        self._refuse_too_long(columns)
        return audio, next_token_loss(self.logits(columns), columns.labels)

    def _refuse_too_long(self, columns: Columns) -> None:
        limit = self.most_positions
        if limit is None or columns.mask.shape[1] <= limit:  # a device need not be asked
            return
        if (longest := int(columns.positions.max()) + 1) > limit:
            raise UserError(
                f"an utterance takes {longest} positions of the LLM, which has {limit}: shorten what augmentation joins"
                " (max_seconds of Concatenate), or give a longer --model.bridge.stride"
            )

    def alignment_loss(self, audio: Audio, text: Padded) -> LossTerm:
        """Direct alignment of the audio embeddings with the text's (needs an `alignment_weight`)."""
        assert self.alignment is not None
        return self.alignment(Padded(audio.embeddings, audio.lengths), text, self.text_embeddings)

    def ctc_loss(self, audio: Audio, targets: Padded) -> LossTerm:
        """Stage 1's loss on the same frames, which keeps the CTC head in tune with the encoder."""
        return ctc_loss(Padded(self.speech.head(audio.encoded), audio.frames), targets)

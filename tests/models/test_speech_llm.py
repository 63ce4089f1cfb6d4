"""The whole of stage 2 as a module: what is trained, what it computes, and that batches change nothing."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForCausalLM

from speechllm_pl.core.errors import UserError
from speechllm_pl.core.padded import Padded
from speechllm_pl.core.prompt import pad_tokens
from speechllm_pl.models.bridges import ProjectorConfig
from speechllm_pl.models.config import SpeechLlmConfig
from speechllm_pl.models.encoders.conformer import ConformerConfig
from speechllm_pl.models.llm import LlmTokenizer, SpecialTokens, load_llm
from speechllm_pl.models.simulated_posteriors import Deviations, RealPosteriors, simulate
from speechllm_pl.models.speech_llm import SpeechLLM
from speechllm_pl.recognition.llm_text import generate

LENGTHS = [16_000, 7_000, 300, 22_222, 5_000, 12_800, 9_999, 3_000]
TEXTS = [[4, 5, 6], [7], [], [8, 9, 10, 11, 4, 5], [6, 6], [5], [11, 10, 9], [4, 4]]
INSTRUCTIONS = [[], [7, 8], [9], [], [10, 10, 4], [5], [], [6]]


def build(llm: nn.Module, encoder: ConformerConfig, **options) -> SpeechLLM:
    torch.manual_seed(0)
    config = SpeechLlmConfig(llm="random", encoder=encoder, **options)
    return SpeechLLM(config, config.build_speech(20), llm, SpecialTokens(bos=1, eos=2, unk=3))


def audio_batch() -> Padded:
    generator = torch.Generator().manual_seed(2)
    waveforms = torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, length in zip(waveforms, LENGTHS, strict=True):
        row[:length] = 0.1 * torch.randn(length, generator=generator)
    return Padded(waveforms, torch.tensor(LENGTHS))


def tokens(rows: list[list[int]]) -> Padded:
    return pad_tokens(rows)


def one(row: int) -> tuple[Padded, Padded, Padded]:
    """Utterance `row` as a batch of its own."""
    waveforms, lengths = audio_batch()
    audio = Padded(waveforms[row : row + 1, : LENGTHS[row]], lengths[row : row + 1])
    return audio, tokens([INSTRUCTIONS[row]]), tokens([TEXTS[row]])


@pytest.fixture(params=["llama", "llama with lora", "bloom"])
def model(request, llm_folder: Path, small_encoder: ConformerConfig) -> SpeechLLM:
    if request.param == "bloom":
        torch.manual_seed(1)
        llm = BloomForCausalLM(BloomConfig(vocab_size=12, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3))
        llm.requires_grad_(False)
        return build(llm, small_encoder, lora_r=0).eval()
    model = build(load_llm(str(llm_folder)), small_encoder, lora_r=8 if "lora" in request.param else 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero when fresh, which would hide what LoRA does
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


# what is trained


@pytest.mark.parametrize(
    ("options", "trained", "frozen"),
    [
        ({"lora_r": 0}, {"speech.encoder", "speech.head", "projector"}, {"llm"}),
        ({"lora_r": 8}, {"speech.encoder", "speech.head", "projector", "lora"}, {"llm"}),
        (
            {"lora_r": 8, "freeze_encoder": True},
            {"projector", "lora"},
            {"llm", "speech.encoder", "speech.head"},
        ),
        ({"lora_r": 0, "train_llm": True}, {"speech.encoder", "speech.head", "projector", "llm"}, set()),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_frozen_parts_stay_bit_identical_and_trained_parts_move(
    llm_folder: Path, small_encoder: ConformerConfig, options: dict, trained: set, frozen: set
) -> None:
    model = build(load_llm(str(llm_folder)), small_encoder, **options)
    model.train()

    def part_of(name: str) -> str:
        if "lora_" in name:
            return "lora"
        return next(part for part in ("speech.encoder", "speech.head", "projector", "llm") if part in name)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    waveforms = audio_batch()
    for _ in range(3):
        audio, loss = model(waveforms, tokens(INSTRUCTIONS), tokens(TEXTS))
        total = loss.total + model.ctc_loss(audio, Padded(torch.ones(8, 1).long(), torch.ones(8).long())).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    changed = {
        part_of(name)
        for name, value in model.state_dict().items()
        if "features" not in name and not torch.equal(value, before[name])
    }
    assert changed == trained
    assert not changed & frozen
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items() if "features" in n)


def test_a_frozen_encoder_has_no_dropout_from_the_first_step(llm_folder: Path, small_encoder: ConformerConfig) -> None:
    """Lightning keeps the modes that it finds, so `train()` may never be called."""
    model = build(load_llm(str(llm_folder)), small_encoder, freeze_encoder=True)
    assert not any(part.training for part in model.speech.modules())
    model.train()
    assert model.training
    assert not any(part.training for part in model.speech.modules())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_frames_vary_from_step_to_step_unless_the_encoder_is_frozen(
    llm_folder: Path, small_encoder: ConformerConfig, frozen: bool, dropout: float
) -> None:
    """Without dropout it is SpecAugment alone that varies them."""
    encoder = replace(small_encoder, dropout=dropout)
    model = build(load_llm(str(llm_folder)), encoder, freeze_encoder=frozen).train()
    frames = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        frames.append(model.listen(audio_batch()).encoded)
    assert torch.equal(*frames) == frozen


def test_text_masking_hides_inputs_in_training_only(llm_folder: Path, small_encoder: ConformerConfig) -> None:
    model = build(load_llm(str(llm_folder)), small_encoder, lora_r=0, text_masking=0.9)
    with torch.no_grad():
        audio = model.eval().listen(audio_batch())
        plain = model.prompt(audio, tokens(INSTRUCTIONS), tokens(TEXTS))
        masked = model.train().prompt(audio, tokens(INSTRUCTIONS), tokens(TEXTS))
    assert torch.equal(plain.labels, masked.labels)
    text = plain.labels.shape[1] - 1
    assert torch.equal(plain.embeddings[:, :-text], masked.embeddings[:, :-text])
    unknown = model.text_embeddings[3]
    hidden = (masked.embeddings[:, -text:] == unknown).all(-1).float().mean()
    assert hidden > 0.7
    assert not (plain.embeddings[:, -text:] == unknown).all(-1).any()


# what it computes


@torch.no_grad()
def test_logits_are_those_of_the_llm_on_one_utterances_plain_sequence(model: SpeechLLM) -> None:
    waveforms = audio_batch()
    columns = model.prompt(model.listen(waveforms), tokens(INSTRUCTIONS), tokens(TEXTS))
    logits = model.logits(columns)
    for row, text in enumerate(TEXTS):
        audio = model.listen(one(row)[0])
        table = model.llm.get_input_embeddings().weight
        sequence = torch.cat([table[INSTRUCTIONS[row]], audio.embeddings[0], table[[1, *text]]])
        expected = model.llm(inputs_embeds=sequence[None]).logits[0, -len(text) - 1 :]
        torch.testing.assert_close(logits[row, : len(text) + 1], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_loss_is_the_mean_log_likelihood_of_text_and_end(model: SpeechLLM) -> None:
    waveforms = audio_batch()
    _, loss = model(waveforms, tokens(INSTRUCTIONS), tokens(TEXTS))
    expected = 0.0
    for row, text in enumerate(TEXTS):
        audio = model.listen(one(row)[0])
        table = model.llm.get_input_embeddings().weight
        sequence = torch.cat([table[INSTRUCTIONS[row]], audio.embeddings[0], table[[1, *text]]])
        scores = model.llm(inputs_embeds=sequence[None]).logits[0].log_softmax(-1)
        start = len(sequence) - len(text) - 1
        expected -= sum(scores[start + n, token].item() for n, token in enumerate([*text, 2]))
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)
    assert loss.count.item() == sum(map(len, TEXTS)) + len(TEXTS)


@torch.no_grad()
def test_a_batch_of_eight_gives_what_eight_batches_of_one_give(model: SpeechLLM, llm_folder: Path) -> None:
    tokenizer = LlmTokenizer(str(llm_folder))
    waveforms = audio_batch()
    audio, loss = model(waveforms, tokens(INSTRUCTIONS), tokens(TEXTS))
    logits = model.logits(model.prompt(audio, tokens(INSTRUCTIONS), tokens(TEXTS)))
    together = generate(model, audio, tokens(INSTRUCTIONS), tokenizer)
    assert len({found.text for found in together}) > 1
    total = 0.0
    for row, text in enumerate(TEXTS):
        alone, loss_alone = model(*one(row))
        total += loss_alone.total.item()
        instruction = tokens([INSTRUCTIONS[row]])
        expected = model.logits(model.prompt(alone, instruction, tokens([text])))[0]
        torch.testing.assert_close(logits[row, : len(text) + 1], expected, atol=1e-4, rtol=0)
        assert generate(model, alone, instruction, tokenizer) == [together[row]]
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


@torch.no_grad()
def test_generation_takes_the_likeliest_token_of_the_full_forward_at_every_step(
    model: SpeechLLM, llm_folder: Path
) -> None:
    tokenizer = LlmTokenizer(str(llm_folder))
    audio = model.listen(one(1)[0])
    instruction = tokens([INSTRUCTIONS[1]])
    [found] = generate(model, audio, instruction, tokenizer)
    cap = -(-int(audio.frames[0]) * 2 // 1) + 10  # 25 tokens a second are 2 a frame
    ids: list[int] = []
    while len(ids) < cap and 2 not in ids:
        columns = model.prompt(audio, instruction, tokens([ids]))
        ids.append(int(model.logits(columns)[0, -1].argmax()))
    assert found.text == tokenizer.decode(ids)
    assert found.truncated == (2 not in ids)


def test_weights_in_half_precision_are_given_embeddings_of_their_type(
    llm_folder: Path, small_encoder: ConformerConfig
) -> None:
    model = build(load_llm(str(llm_folder), torch.bfloat16), small_encoder, lora_r=8)
    _, loss = model(audio_batch(), tokens(INSTRUCTIONS), tokens(TEXTS))
    loss.total.backward()
    assert loss.total.isfinite()
    assert model.projector.linear.weight.grad is not None


def test_the_blank_of_the_alignment_starts_from_the_filler(llm_folder: Path, small_encoder: ConformerConfig) -> None:
    llm = load_llm(str(llm_folder))
    llm.config.filler_token_id = 5
    model = build(llm, small_encoder, alignment_weight=1.0)
    assert model.alignment is not None
    assert torch.equal(model.alignment.blank, llm.get_input_embeddings().weight[5])
    audio = model.listen(audio_batch())
    assert model.alignment_loss(audio, tokens(TEXTS)).total > 0


def test_the_ctc_loss_of_stage_2_is_that_of_fp32_logits_under_autocast(
    llm_folder: Path, small_encoder: ConformerConfig
) -> None:
    model = build(load_llm(str(llm_folder)), small_encoder).eval()
    text = tokens([[4, 5], [7], [], [8, 9], [6, 6], [5], [11], [4]])
    with torch.autocast("cpu", torch.bfloat16):
        audio = model.listen(audio_batch())
        found = model.ctc_loss(audio, text).total
    head = model.speech.head
    logits = audio.encoded.double() @ head.weight.double().T + head.bias.double()
    expected = nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), text.values, audio.frames, text.lengths, reduction="sum"
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_text_beyond_the_llms_last_position_is_refused_and_padding_does_not_count(
    llm_folder: Path, small_encoder: ConformerConfig
) -> None:
    model = build(load_llm(str(llm_folder)), small_encoder, lora_r=0).eval()
    waveforms = audio_batch()
    texts = TEXTS[::-1]  # the longest text does not belong to the longest audio
    audio = model.listen(waveforms)
    taken = [len(i) + a + 1 + len(t) for i, a, t in zip(INSTRUCTIONS, audio.lengths.tolist(), texts, strict=True)]
    columns = model.prompt(audio, tokens(INSTRUCTIONS), tokens(texts))
    model.most_positions = max(taken)
    assert columns.mask.shape[1] > model.most_positions
    model(waveforms, tokens(INSTRUCTIONS), tokens(texts))
    model.most_positions -= 1
    with pytest.raises(UserError, match=rf"takes {max(taken)} positions of the LLM, which has {max(taken) - 1}"):
        model(waveforms, tokens(INSTRUCTIONS), tokens(texts))


def test_a_longer_stride_gives_proportionally_fewer_embeddings(
    llm_folder: Path, small_encoder: ConformerConfig
) -> None:
    counts = []
    for stride in (1, 2, 3, 6, 12):
        model = build(load_llm(str(llm_folder)), small_encoder, lora_r=0, bridge=ProjectorConfig(stride)).eval()
        audio = model.listen(audio_batch())
        assert audio.lengths.tolist() == [-(-n // stride) for n in audio.frames.tolist()]
        counts.append(int(audio.lengths.sum()))
    assert all(longer > shorter for longer, shorter in pairwise(counts))


# texts without audio


@pytest.mark.parametrize("stride", [1, 3])
def test_simulated_posteriors_stand_as_frames_before_the_bridge(
    llm_folder: Path, small_encoder: ConformerConfig, stride: int
) -> None:
    """Of two utterances with audio and two texts, which are as long as their audio would be."""
    bridge = ProjectorConfig(stride=stride)
    model = build(load_llm(str(llm_folder)), small_encoder, bridge=bridge, simulated_from="posteriors").eval()
    waveforms = Padded(audio_batch().values[:4], audio_batch().lengths[:4])
    classes = [[5, 6], [7], [], [8, 8, 9]]
    text, targets = tokens(TEXTS[:4]), tokens(classes)
    with pytest.raises(UserError, match="beside one with audio"):
        model(waveforms, tokens(INSTRUCTIONS[:4]), text, targets, simulated=2)
    one_frame = Deviations(torch.tensor([0.9]), torch.zeros(1, model.speech.dim))
    real = (torch.randn(20, model.speech.dim), torch.eye(20).roll(1, 1), one_frame, one_frame, torch.tensor([1]))
    model.real_audio = RealPosteriors(*real)

    torch.manual_seed(5)
    audio, loss = model(waveforms, tokens(INSTRUCTIONS[:4]), text, targets, simulated=2)
    frames = model.config.encoder.frame_lengths(waveforms.lengths)
    torch.manual_seed(5)
    made, _ = simulate(tokens(classes[2:]), frames[2:], model.real_audio, model.config.simulated_wrong)
    assert audio.lengths.tolist() == [-(-int(number) // stride) for number in frames]
    heard = model.listen(Padded(waveforms.values[:2], waveforms.lengths[:2]))
    for row, expected in enumerate([*heard.embeddings, *model.projector(made).values]):
        length = int(audio.lengths[row])
        torch.testing.assert_close(audio.embeddings[row, :length], expected[:length], rtol=1e-4, atol=1e-5)
    assert loss.total.isfinite()
    assert loss.count == sum(len(row) + 1 for row in TEXTS[:4])

"""Tokenizer of the LLM: byte pairs over characters, and a token for a frame without text."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK, FILLER = SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<filler>")  # ids 0 to 4
PAD_ID, BOS_ID, EOS_ID, UNK_ID, FILLER_ID = range(len(SPECIAL_TOKENS))
LONGEST_TOKEN = 8  # letters: from few texts, longer tokens are compounds too rare to be learned from speech


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train byte pair encoding over characters; few texts simply give fewer pieces than `vocabulary_size`.

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

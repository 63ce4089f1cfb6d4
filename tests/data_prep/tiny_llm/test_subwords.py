"""Tokenizer of the tiny LLM."""

from data_prep.tiny_llm.subwords import FILLER_ID, SPECIAL_TOKENS, encode, train_tokenizer


def test_special_tokens_come_first_and_texts_come_back() -> None:
    texts = ["dreiundzwanzig", "zwei", "l'été"]
    tokenizer = train_tokenizer(texts, 60)
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIAL_TOKENS)))) == list(SPECIAL_TOKENS)
    assert tokenizer.convert_tokens_to_ids("<filler>") == FILLER_ID
    assert [tokenizer.decode(encode(tokenizer, text)) for text in texts] == texts

"""Corpora in, Lhotse cut sets out; also the tokenizer and the tiny LLM of the embedded default."""

"""Preparation of corpora as Lhotse manifests; also the tokenizer, the tiny LLM of the embedded default and SmolLM2.

Each module of this folder, and each of the packages `shar` and `tiny_llm`, is a program: `python -m data_prep.NAME`.
What they share: `corpora` (from a corpus's files to manifests), `audio` (recordings) and `machinery` (processes,
pieces of long work, the command line).
"""

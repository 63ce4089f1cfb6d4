"""The tiny LLM of the embedded default, pretrained on text alone. Run as `python -m data_prep.tiny_llm`."""

"""The programs behind the `speechllm` command."""

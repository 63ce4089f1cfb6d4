"""Top floor: the programs behind the `speechllm` command."""

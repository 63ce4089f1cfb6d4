"""First floor: `nn.Module`s only. Knows no Lightning, file or YAML."""

"""`nn.Module`s and the dataclasses that describe them. Knows no trainer, no data set and no YAML."""
